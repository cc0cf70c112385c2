"""What Transformers 5.23 does with quantised files and named program code."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config

from tests.engine.stored_bases import WEIGHTS, configure, write_fp8
from tests.engine.tiny import write_base
from tests.engine.upstream.still import assert_still


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def unpacked(folder: Path, block: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    said = FineGrainedFP8Config(dequantize=True, weight_block_size=(block, block))
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=said
    )
    return model


def test_short_last_blocks_get_wrong_scales(base: Path) -> None:
    true = write_fp8(base, block=40)
    found = unpacked(base, 40).state_dict()

    wrong = any(not torch.allclose(found[key], weight) for key, weight in true.items())
    assert_still(
        wrong, "scales of short blocks", "stored_quantization.py (_has_even_blocks)", transformers
    )


def test_weights_that_are_not_packed_keep_their_stored_type(base: Path) -> None:
    write_fp8(base, block=32)
    found = unpacked(base, 32, torch.bfloat16)

    wrong = {each.dtype for each in found.parameters()} != {torch.bfloat16}
    assert_still(
        wrong,
        "the type of weights that are not packed",
        "stored_quantization.py (settle)",
        transformers,
    )


def test_an_unpacked_model_is_saved_packed_and_does_not_say_so(base: Path, tmp_path: Path) -> None:
    write_fp8(base, block=32)
    unpacked(base, 32).save_pretrained(tmp_path / "saved")  # type: ignore[operator]

    saved = load_file(tmp_path / "saved" / WEIGHTS)
    said = (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    packed = any(each.dtype == torch.float8_e4m3fn for each in saved.values())
    wrong = packed and "quantization_config" not in said
    assert_still(wrong, "saving an unpacked model", "stored_quantization.py (settle)", transformers)


def test_named_code_changes_which_tokenizer_is_read(base: Path) -> None:
    configure(base, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    plain = AutoTokenizer.from_pretrained(base)
    configure(base, "tokenizer_config.json", auto_map=["evil.Tokens", None])
    named = AutoTokenizer.from_pretrained(base, trust_remote_code=False)

    wrong = plain("Élan, why?").input_ids != named("Élan, why?").input_ids
    assert_still(
        wrong,
        "tokenizers of files that name code",
        "model_folder.py (_tokenizer_file_without_code)",
        transformers,
    )
