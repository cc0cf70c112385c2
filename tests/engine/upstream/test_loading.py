"""What PEFT lets in from an adapter folder."""

import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.tuners import tuners_utils
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import WEIGHTS, Q, Write, distance, load, logits
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_base_weights_in_an_adapter_overwrite_the_base(base: Path, write: Write) -> None:
    folder = write("carrier", lora(r=2, target_modules=["q_proj"]))
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{Q}.base_layer.weight"] = torch.zeros(64, 64)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(
        fresh(base).lm_head.weight.shape  # the head decides every answer
    )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    model = load(base, folder)

    with model.disable_adapter():
        zeroed = not logits(model).any()
    layer = model.get_submodule(Q).get_base_layer()
    assert_still(
        zeroed and not layer.weight.any(),
        "base weights in adapters",
        "file_validation.py (_layer_names)",
    )


def test_numbers_that_are_not_finite_load_in_silence(base: Path, write: Write) -> None:
    folder = write("broken", lora(r=2))
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{Q}.lora_B.weight"].fill_(float("nan"))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    wrong = bool(logits(load(base, folder)).isnan().any())
    assert_still(wrong, "NaN in adapters", "file_validation.py (scan)")


def test_a_foreign_regular_expression_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`(([a-z0-9_.])+)+!` runs for ever; here it is enough that one would be run."""
    run = []

    def fullmatch(pattern: str, text: str) -> None:
        run.append(pattern)

    monkeypatch.setattr(re, "fullmatch", fullmatch)
    tuners_utils.check_target_module_exists(lora(target_modules="a+"), "model.q_proj")
    assert_still(
        bool(run), "regular expressions as targets", "config_validation.py (_plain_targets)"
    )


def test_loading_into_a_name_keeps_the_old_configuration(base: Path, write: Write) -> None:
    weak = write("weak", lora(r=4, lora_alpha=4))
    strong = write("strong", lora(r=4, lora_alpha=64), 1)
    model = load(base, weak, "one")
    model.load_adapter(strong, "one")
    wrong = distance(logits(model), logits(load(base, strong))) > 1e-2
    assert_still(wrong, "load_adapter into an existing name", "library.py (new_adapter_id)")


def test_a_failed_load_leaves_half_an_adapter(base: Path, write: Write, tmp_path: Path) -> None:
    model = load(base, write("good", lora(r=2)), "one")
    other = LlamaForCausalLM(LlamaConfig.from_pretrained(base, hidden_size=32, head_dim=8))
    get_peft_model(other, lora(r=2)).save_pretrained(tmp_path / "bad", save_embedding_layers=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path / "bad", "two")
    assert_still("two" in model.peft_config, "half-made adapters", "peft_io.py (load_plainly)")


def test_an_adapter_of_fewer_layers_loads_with_empty_ones(base: Path, write: Write) -> None:
    folder = write("short", lora(r=2))
    tensors = {k: t for k, t in load_file(folder / WEIGHTS).items() if "layers.0." in k}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    layer = load(base, folder).get_submodule(Q.replace("layers.0", "layers.1"))
    wrong = "default" in layer.lora_A and not layer.lora_B["default"].weight.any()
    assert_still(wrong, "adapters of fewer layers", "file_validation.py (_require_same_layers)")


def test_pissa_changes_the_base_under_the_others(base: Path, write: Write) -> None:
    plain, pissa = write("plain", lora(r=4)), write("pissa", lora(r=4, init_lora_weights="pissa"))
    model = load(base, plain, "plain")
    before = logits(model)
    model.load_adapter(pissa, "pissa")
    assert_still(
        distance(logits(model), before) > 1e-2, "PiSSA beside others", "lifecycle.py (_baked)"
    )
