"""Merges by PEFT."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import Q, Write, distance, load, logits, set_strength
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_unloading_a_merged_model_keeps_the_change(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)))
    model.merge_adapter()
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    assert_still(wrong, "unload() while merged", "merge.py (merge)")


def test_a_merge_that_fails_half_way_leaves_a_half_merged_base(base: Path, write: Write) -> None:
    model = load(base, write("broken", lora(r=2)))
    last = model.get_submodule(Q.replace("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"))
    last.lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    assert_still(wrong, "merges that fail", "merge.py (merge)")


def test_a_misspelt_adapter_is_not_merged_in_silence(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    merged = model.merge_and_unload(adapter_names=["god"])
    wrong = distance(logits(merged), logits(fresh(base))) < 1e-6
    assert_still(
        wrong, "unknown names in merge_and_unload", "merge_requirements.py (check_variant)"
    )


def test_strength_between_merge_and_unmerge_spoils_the_base(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)))
    model.merge_adapter()
    set_strength(model, 0.3)
    model.unmerge_adapter()
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    assert_still(wrong, "set_scale while merged", "merge.py (merge)")


def test_repeated_layers_merge_wrongly(base: Path) -> None:
    torch.manual_seed(0)
    config = lora(r=2, layer_replication=[[0, 2], [1, 2]], init_lora_weights=False)
    model = get_peft_model(fresh(base), config)
    before = logits(model)
    wrong = distance(logits(model.merge_and_unload()), before) > 1e-3
    assert_still(wrong, "merges of layer_replication", "config_validation.py (require_plain_lora)")


def test_a_merge_into_tied_embeddings_is_wrong(base: Path) -> None:
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig.from_pretrained(base, tie_word_embeddings=True))
    config = lora(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(tied, config)
    before = logits(model)
    wrong = distance(logits(model.merge_and_unload()), before) > 1e-3
    assert_still(wrong, "merges into tied embeddings", "file_validation.py (_require_same_layers)")


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_bf16_base_is_another_after_a_merge_was_taken_back(
    base: Path, write: Write, dora: bool
) -> None:
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    before = logits(half)
    model = PeftModel.from_pretrained(half, write("adapter", lora(r=4, use_dora=dora))).eval()
    model.merge_adapter()
    model.unmerge_adapter()
    wrong = distance(logits(model.unload()), before) > 1e-2
    assert_still(wrong, "unmerging in bf16", "merge.py (merge)")


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_bf16_merge_answers_unlike_the_adapter(base: Path, write: Write, dora: bool) -> None:
    """Its weights are rounded once; in fp32 the two agree to 1e-4, and DoRA loses no more."""
    folder = write("adapter", lora(r=4, use_dora=dora))

    def moved(dtype: torch.dtype) -> float:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        peft = PeftModel.from_pretrained(model, folder).eval()
        before = logits(peft)
        return distance(logits(peft.merge_and_unload()), before)

    assert moved(torch.float32) < 1e-4
    assert_still(
        moved(torch.bfloat16) > 1e-2, "merges in bf16", "merge_requirements.py (merge_precision)"
    )
