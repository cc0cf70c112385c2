"""Blends by `add_weighted_adapter` of PEFT, and conversions to plain LoRA."""

from pathlib import Path

import peft
import pytest
import torch
from peft import KasaConfig, PeftModel, convert_to_lora, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import (
    Write,
    changes,
    distance,
    gap,
    load,
    logits,
    lora_layers,
)
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_a_blend_forgets_dora_magnitudes(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True)), "dora")
    before = logits(model)
    model.add_weighted_adapter(["dora"], [1.0], "blend", combination_type="cat")
    model.base_model.set_adapter("blend")
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    wrong = any("blend" not in layer.lora_magnitude_vector for layer in layers) or (
        distance(logits(model), before) > 1e-3
    )
    assert_still(wrong, "blends of DoRA", "blends.py (unfit)")


def test_a_failed_blend_leaves_an_empty_adapter_that_a_retry_takes_for_done(
    base: Path, write: Write
) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    ties = {"adapters": ["one", "two"], "weights": [1.0, 1.0], "combination_type": "ties"}
    with pytest.raises(TypeError):
        model.add_weighted_adapter(**ties, adapter_name="blend", density=None)
    wrong = "blend" in model.peft_config
    model.add_weighted_adapter(**ties, adapter_name="blend", density=0.5)
    wrong &= not any(change.any() for change in changes(model, "blend").values())
    assert_still(wrong, "failed blends", "combine.py (combine)")


def test_a_blend_with_pissa_changes_the_base(base: Path, write: Write) -> None:
    model = load(base, write("pissa", lora(r=4, init_lora_weights="pissa")), "pissa")
    before = logits(model)
    model.add_weighted_adapter(["pissa"], [1.0], "blend", combination_type="cat")
    model.set_adapter("pissa")
    assert_still(distance(logits(model), before) > 1e-2, "blends of PiSSA", "lifecycle.py (_baked)")


def test_linear_blends_are_not_the_weighted_sum(base: Path, write: Write) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.add_weighted_adapter(["one", "two"], [0.7, 0.3], "blend", combination_type="linear")
    one, two = changes(model, "one"), changes(model, "two")
    wanted = {key: 0.7 * one[key] + 0.3 * two[key] for key in one}
    wrong = gap(changes(model, "blend"), wanted) > 1e-2
    assert_still(wrong, "cross terms of linear blends (issue 3004)", "combine.py (measure)")


def test_a_list_of_weights_that_is_too_short_is_cut_off(base: Path, write: Write) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.add_weighted_adapter(["one", "two"], [1.0], "blend", combination_type="cat")
    wrong = gap(changes(model, "blend"), changes(model, "one")) < 1e-5
    assert_still(wrong, "weights that are missing", "requests/blending.py (Combine)")


def test_converting_dora_drops_its_magnitudes(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True, target_modules=["q_proj"])))
    before = logits(model)
    config, tensors = convert_to_lora(model, 64)
    plain = get_peft_model(fresh(base), config)
    peft.set_peft_model_state_dict(plain, tensors)
    assert_still(
        distance(logits(plain), before) > 1e-3,
        "convert_to_lora of DoRA",
        "plain_lora.py (_dora_change)",
    )


def blended(model: PeftModel) -> torch.Tensor:
    """Answer with the only adapter, copied by a blend of it alone."""
    name = next(iter(model.peft_config))
    model.add_weighted_adapter([name], [1.0], "blend", combination_type="cat")
    model.base_model.set_adapter("blend")
    return logits(model)


def test_a_blend_forgets_biases(base: Path) -> None:
    torch.manual_seed(0)
    config = lora(r=2, lora_bias=True, init_lora_weights=False)
    model = get_peft_model(fresh(base), config, adapter_name="biased")
    for layer in lora_layers(model).values():
        layer.lora_B["biased"].bias.data.fill_(0.3)
    before = logits(model)
    wrong = distance(blended(model), before) > 1e-2
    wrong &= gap(changes(model, "blend"), changes(model, "biased")) < 1e-5  # the rest is right
    assert_still(
        wrong, "blends of lora_bias (issue 3761)", "config_validation.py (require_plain_lora)"
    )


def test_a_blend_forgets_the_diagonal_of_kasa(base: Path) -> None:
    torch.manual_seed(0)
    config = lora(r=4, kasa_config=KasaConfig())
    model = get_peft_model(fresh(base), config, adapter_name="kasa")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    before = logits(model)
    wrong = distance(blended(model), before) > 1e-2
    assert_still(wrong, "blends of KaSA (issue 3761)", "config_validation.py (require_plain_lora)")


def test_a_blend_forgets_whole_layers(base: Path) -> None:
    config = lora(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(fresh(base), config, adapter_name="head")
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    before = logits(model)
    wrong = distance(blended(model), before) > 1e-2
    assert_still(wrong, "blends of modules_to_save", "config_validation.py (require_plain_lora)")
