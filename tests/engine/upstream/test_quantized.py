"""What bitsandbytes does to 4-bit weights that an answer has packed for AVX512-BF16.

Packing is plain PyTorch, so it is done here by hand, on any processor; to compute with packed
weights needs the right one (the gradients, in `test_quantization`).
"""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu as pack
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.engine.tiny import STARTER, lora, write_adapter
from tests.engine.upstream.plain_models import distance, logits
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def quantised(*, double: bool) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    model = AutoModelForCausalLM.from_pretrained(
        STARTER, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    for layer in four_bit(model):
        layer.support_avx512bf16_for_cpu = False  # what is packed here, is packed by hand
    return model


def four_bit(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def pack_all(model: torch.nn.Module) -> None:
    """Do what the first answer does where the processor has AVX512-BF16."""
    for layer in four_bit(model):
        layer.weight.data, layer.weight.quant_state = pack(
            layer.weight.data, layer.weight.quant_state
        )


def test_saving_after_an_answer_changes_the_answers() -> None:
    """`state_dict` unpacks; without double quantisation, the scales stay turned."""
    model = quantised(double=False)
    before = logits(model)
    pack_all(model)

    model.state_dict()

    wrong = distance(logits(model), before) > 0.3 * float(before.abs().max())
    assert_still(wrong, "saving of packed 4-bit weights", "quantization.py (guard)", bnb)


def test_a_merge_after_an_answer_is_garbage(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", STARTER, lora(r=2))

    def merged(packed: bool) -> list[torch.Tensor]:
        model = PeftModel.from_pretrained(quantised(double=True), folder).eval()
        if packed:
            pack_all(model)
        whole = model.merge_and_unload(safe_merge=True)
        return [
            bnb.functional.dequantize_4bit(each.weight.data, each.weight.quant_state).float()
            for each in four_bit(whole)
        ]

    pairs = list(zip(merged(True), merged(False), strict=True))
    errors = [float((left - right).norm() / right.norm()) for left, right in pairs]
    assert_still(
        min(errors) > 0.5, "merges into packed 4-bit weights", "quantization.py (guard)", bnb
    )
