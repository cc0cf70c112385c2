"""What Transformers makes of a GGUF file without a word."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.engine.models.gguf import gguf_files
from tests.engine.models.gguf.families import FAMILIES
from tests.engine.models.gguf.test_tokenizer import PIECES, sentences, split_as
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def read(file: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)


def words(file: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)


def test_settings_of_a_family_are_left_out(tmp_path: Path) -> None:
    original = gguf_files.tiny(FAMILIES["gemma2"], final_logit_softcapping=3.0)
    file = gguf_files.write(tmp_path / "model.gguf", FAMILIES["gemma2"], original)

    assert_still(
        read(file).config.final_logit_softcapping != 3.0,
        "settings left out of a GGUF file's configuration",
        "gguf/settings.py (configuration)",
        transformers,
    )


def test_tensors_without_a_name_are_left_out(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    more = {"blk.0.attn_q_norm.weight": np.ones(8)}
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family), more=more)
    try:
        silent = read(file) is not None
    except Exception:
        silent = False

    assert_still(
        silent, "tensors left out of a GGUF file", "conversion.py (_require_size)", transformers
    )


def test_a_token_is_added_beyond_the_vocabulary(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family))

    assert_still(
        len(words(file)) > family_rows(file),
        "a token of GPT-2 added to a GGUF file's vocabulary",
        "gguf/tokenizer.py (_corrected)",
        transformers,
    )


def family_rows(file: Path) -> int:
    return len(gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].data)


def test_unknown_ways_to_split_text_become_gpt2s(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    file = gguf_files.write(
        tmp_path / "model.gguf",
        family,
        gguf_files.tiny(family),
        vocabulary=split_as("smollm"),
    )
    pieces = words(file).backend_tokenizer.pre_tokenizer.pre_tokenize_str("12")

    assert_still(
        len(pieces) == 1,
        "another splitting of text for unknown names in GGUF files",
        "gguf/tokenizer.py (_splitting)",
        transformers,
    )


def test_a_space_is_put_before_a_text_against_the_file(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    model = gguf_files.tiny(family, vocab_size=len(PIECES))
    file = gguf_files.write(
        tmp_path / "model.gguf", family, model, vocabulary=sentences(prefix=False)
    )

    assert_still(
        words(file).tokenize("ab")[-1] != "ab",
        "add_space_prefix of GGUF files left out",
        "gguf/tokenizer.py (_set_spaces)",
        transformers,
    )


def test_a_model_from_a_gguf_file_is_not_written(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family))
    try:
        read(file).save_pretrained(tmp_path / "folder")
        refused = False
    except ValueError:
        refused = True

    assert_still(
        refused,
        "models from GGUF files that cannot be saved",
        "conversion.py (read_model)",
        transformers,
    )
