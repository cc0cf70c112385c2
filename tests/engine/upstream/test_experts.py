"""Mixtures of experts in PEFT: names that mean something else, and the order of wrappers."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.architectures.tiny_models import tiny_model
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
IDS = torch.arange(5, 25)[None]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def lora(**options: object) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, **options)  # type: ignore[arg-type]


def adapted(model: torch.nn.Module) -> set[str]:
    found = (name for name, part in model.named_modules() if isinstance(part, LoraLayer))
    return {name.rsplit(".", 2)[-2] for name in found}


def test_a_linear_layer_cannot_be_named_where_experts_had_its_name() -> None:
    model = tiny_model("deepseek_v3")
    get_peft_model(model, lora(target_modules=["gate_proj", "up_proj"]))
    wrong = "shared_experts" not in adapted(model)
    assert_still(wrong, "names of shared experts", "adaptable.py (require_unchanged)")


def test_an_adapter_that_was_used_changes_the_nesting_of_the_next_one() -> None:
    model = tiny_model("mixtral")
    peft = get_peft_model(model, lora(target_modules=[], target_parameters=BOTH[:1]))
    with torch.no_grad():
        peft(IDS)
    plain = peft.unload()
    again = get_peft_model(plain, lora(target_modules=[], target_parameters=BOTH))
    outer = again.get_submodule("base_model.model.model.layers.0.mlp.experts")
    wrong = outer.parameter_name != "down_proj"
    assert_still(wrong, "the order of adapted parameters", "coexistence.py (tidy)")


def test_adapters_of_different_parameters_cannot_share_a_model(tmp_path: Path) -> None:
    peft = get_peft_model(tiny_model("mixtral"), lora(target_modules=[], target_parameters=BOTH))
    try:
        peft.add_adapter("other", lora(target_modules=[], target_parameters=BOTH[:1]))
        wrong = False
    except ValueError:
        wrong = True
    assert isinstance(peft, PeftModel)
    assert_still(wrong, "adapters of different parameters", "coexistence.py (can_share)")


def test_mamba_refuses_its_output_projection() -> None:
    try:
        get_peft_model(tiny_model("mamba"), lora(target_modules=["out_proj"]))
        wrong = False
    except ValueError:
        wrong = True
    assert_still(wrong, "LoRA on Mamba's out_proj", "adaptable.py (adaptable)")
