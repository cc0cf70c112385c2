"""Names, strengths and the active set in PEFT."""

from pathlib import Path

import pytest
from peft import get_peft_model
from safetensors.torch import load_file

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import (
    IDS,
    WEIGHTS,
    Write,
    distance,
    load,
    logits,
    set_strength,
)
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_an_adapter_called_like_a_module_spoils_the_saving_of_another(
    base: Path, write: Write, tmp_path: Path
) -> None:
    folder = write("good", lora(r=2))
    model = load(base, folder, "good")
    model.load_adapter(folder, "self_attn")
    model.save_pretrained(tmp_path / "out", save_embedding_layers=False)
    saved = load_file(tmp_path / "out" / "good" / WEIGHTS)
    wrong = saved.keys() != load_file(folder / WEIGHTS).keys()
    assert_still(wrong, "names of modules (issue 3584)", "library.py (new_adapter_id)")


def test_a_misspelt_adapter_switches_all_off(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.base_model.set_adapter(["god"])
    wrong = distance(logits(model), logits(fresh(base))) < 1e-6
    assert_still(wrong, "unknown names in set_adapter", "session.py (Session.resolve)")


def test_switching_makes_an_adapter_learn(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.set_adapter("good")
    wrong = any(parameter.requires_grad for parameter in model.parameters())
    assert_still(wrong, "set_adapter for inference", "session.py (Session.activate)")


def test_deleting_the_last_adapter_breaks_the_model(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.delete_adapter("good")
    try:
        logits(model)
        wrong = False
    except KeyError:
        wrong = True
    assert_still(wrong, "the last adapter's deletion", "session.py (Session.drop)")


def test_dora_without_strength_is_not_the_base(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True)))
    set_strength(model, 0.0)
    wrong = distance(logits(model), logits(fresh(base))) > 1e-2
    assert_still(wrong, "DoRA's strength", "scaling.py (require_strength)")


def test_whole_layers_of_an_adapter_do_not_scale(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        fresh(base), lora(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    set_strength(model, 0.0)
    wrong = distance(logits(model), logits(fresh(base))) > 1e-2
    assert_still(
        wrong, "the strength of modules_to_save", "config_validation.py (require_plain_lora)"
    )


def test_saving_writes_every_adapter(base: Path, write: Write, tmp_path: Path) -> None:
    """What a checkpoint of Trainer therefore does, and what resuming brings back."""
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.save_pretrained(tmp_path / "out", save_embedding_layers=False)
    wrong = (tmp_path / "out" / "two" / WEIGHTS).exists()
    assert_still(wrong, "checkpoints of several adapters", "trainer.py (AdapterTrainer.save_model)")


def test_single_tokens_of_an_adapter_do_not_scale(base: Path) -> None:
    model = get_peft_model(
        fresh(base), lora(r=2, target_modules=["q_proj"], trainable_token_indices=IDS[0].tolist())
    )
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data.add_(0.5)
    full = logits(model)
    set_strength(model, 0.0)
    wrong = distance(logits(model), full) < 1e-6 and distance(full, logits(fresh(base))) > 1e-2
    assert_still(
        wrong, "the strength of single tokens", "config_validation.py (require_plain_lora)"
    )
