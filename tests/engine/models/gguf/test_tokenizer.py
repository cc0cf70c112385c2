"""Tokenizers of GGUF files: text is split and spelled as llama.cpp does, the ids are the file's.

The ids of awkward texts were compared with llama.cpp's own for each name here; these tests keep the
rules that made them equal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from backend.catalogue import gguf_families as known
from backend.engine.models.gguf import checks, conversion, tokenizer
from backend.errors import ModelError, Unsupported
from backend.files import gguf_header
from tests.engine.models.gguf import gguf_files
from tests.engine.models.gguf.families import FAMILIES, VOCABULARY

MARK = "\u2581"
SPLITS = {
    "gpt-2": ("ab 1234!?", ["ab", "Ġ1234", "!?"]),
    "smollm": ("ab 12 c", ["ab", "Ġ", "1", "2", "Ġc"]),
    "starcoder": ("x12", ["x", "1", "2"]),
    "falcon": ("a,b 12345", ["a", ",", "b", "Ġ", "123", "45"]),
    "bloom": ("a, b 123", ["a", ",", "Ġb", "Ġ123"]),
    "llama-bpe": ("ab 12345 it's", ["ab", "Ġ", "123", "45", "Ġit", "'s"]),
    "qwen2": ("ab 123", ["ab", "Ġ", "1", "2", "3"]),
    "stablelm2": ("ab 123\n\nx", ["ab", "Ġ", "1", "2", "3", "ĊĊ", "x"]),
    "tekken": ("camelCase HTTPServer", ["camel", "Case", "ĠHTTPServer"]),
}


def read(folder: Path, vocabulary: Any, *, name: str = "llama", **changes: Any) -> Any:
    """Write a file with a vocabulary, check it and read its tokenizer."""
    family = FAMILIES[name]
    file = gguf_files.write(
        folder / "model.gguf", family, gguf_files.tiny(family, **changes), vocabulary=vocabulary
    )
    header = gguf_header.read(file)
    checks.about(header)
    with conversion.alone(file) as there:
        return tokenizer.read(header, there)


def split_as(name: str | None) -> Any:
    """Return the usual vocabulary with another way to split text."""

    def vocabulary(writer: gguf.GGUFWriter) -> None:
        gguf_files.add_vocabulary(writer)
        settings = writer.kv_data[0]
        if name is None:
            del settings["tokenizer.ggml.pre"]
        else:
            settings["tokenizer.ggml.pre"].value = name

    return vocabulary


@pytest.mark.parametrize("name", SPLITS)
def test_text_is_split_as_the_file_says(name: str, tmp_path: Path) -> None:
    text, pieces = SPLITS[name]

    made = read(tmp_path, split_as(name))

    found = made.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces


def test_transformers_knows_the_names_that_are_left_to_it() -> None:
    """Names that it learns later can be compared with llama.cpp and added."""
    assert set(GGUF_PRE_TOKENIZER_SPLITS) - {"jina-v5-nano"} == set(known.KNOWN_SPLITS)
    assert not set(known.KNOWN_SPLITS) & {*known.LIKE_GPT2, *known.DIGITS_FIRST}
    assert not set(known.KNOWN_SPLITS) & set(known.EXPRESSIONS)


@pytest.mark.parametrize("name", ["deepseek-llm", "default", "made-up", None])
def test_an_unknown_way_to_split_is_refused(name: str | None, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="so it would read texts wrongly"):
        read(tmp_path, split_as(name))


def test_nothing_is_added_to_the_vocabulary(tmp_path: Path) -> None:
    """Transformers 5.23 adds `<|endoftext|>`, for which the model has no row."""
    made = read(tmp_path, gguf_files.add_vocabulary)

    assert len(made) == VOCABULARY
    assert "<|endoftext|>" not in made.get_vocab()
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (1, 2, 0)
    assert made.chat_template == gguf_files.TEMPLATE
    assert made.decode(made("the tests, in 12 lines\n").input_ids) == "the tests, in 12 lines\n"
    assert made("x</s>").input_ids[-1] == 2


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe"])
def test_a_text_begins_as_the_file_says(said: bool | None, name: str, tmp_path: Path) -> None:
    def vocabulary(writer: gguf.GGUFWriter) -> None:
        split_as(name)(writer)
        key = "tokenizer.ggml.add_bos_token"
        if said is None:
            del writer.kv_data[0][key]
        else:
            writer.kv_data[0][key].value = said

    made = read(tmp_path, vocabulary)

    begins = (
        said if said is not None else name == "llama-bpe"
    )  # as llama.cpp, where it says nothing
    assert (made("the").input_ids[0] == 1) is begins


# --- SentencePiece ---

PIECES = (
    "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK, "a", "b", f"{MARK}a",
    "ab", f"{MARK}ab", f"{MARK}{MARK}", "<mark>",
)  # fmt: skip


def sentences(*, prefix: bool | None = None, scores: Sequence[float] = ()) -> Any:
    def vocabulary(writer: gguf.GGUFWriter) -> None:
        kinds = [2, 3, 3, *[6] * 256, *[1] * 7, 4]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(list(PIECES))
        writer.add_token_scores(list(scores) or [-float(n) for n in range(len(PIECES))])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    return vocabulary


@pytest.mark.parametrize(
    ("prefix", "text", "pieces"),
    [
        (True, "ab", [f"{MARK}ab"]),
        (None, "ab", [f"{MARK}ab"]),
        (False, "ab", ["ab"]),
        (True, " ab", [MARK, f"{MARK}ab"]),
        (True, "</s>ab", ["</s>", f"{MARK}ab"]),
        (False, "</s>ab", ["</s>", "ab"]),
        (True, "é", [MARK, "<0xC3>", "<0xA9>"]),
        (False, "a<mark>b", ["a", "<mark>", "b"]),
    ],
)
def test_spaces_are_spelled_as_llama_cpp_does(
    prefix: bool | None, text: str, pieces: list[str], tmp_path: Path
) -> None:
    made = read(tmp_path, sentences(prefix=prefix), vocab_size=len(PIECES))

    assert made.tokenize(text)[-len(pieces) :] == pieces
    assert len(made) == len(PIECES)
    assert made(text).input_ids[0] == 1


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("prefix", [True, False])
def test_what_is_spelled_is_read_back(name: str, prefix: bool, tmp_path: Path) -> None:
    made = read(tmp_path, sentences(prefix=prefix), name=name, vocab_size=len(PIECES))

    for text in ("ab ab", "a  é 中\nb", " b"):
        assert made.decode(made(text).input_ids, skip_special_tokens=True) == text


# --- vocabularies that do not fit ---


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({"tokenizer.ggml.bos_token_id": 300}, "its bos token is 300"),
        ({"tokenizer.ggml.eos_token_id": 2**32 - 1}, "its eos token is 4294967295"),
        ({"tokenizer.ggml.token_type": [1] * 7}, "its list of token_type does not fit"),
        ({"tokenizer.ggml.tokens": ["x"] * 400}, "it has 400 tokens, but room for 300"),
        ({"tokenizer.ggml.merges": 7}, "its tokenizer has no merges"),
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of the kind 'bert'"),
        ({"tokenizer.chat_template": 3}, "its chat template is not a text"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_named(
    spoil: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    def vocabulary(writer: gguf.GGUFWriter) -> None:
        gguf_files.add_vocabulary(writer)
        for key, value in spoil.items():
            del writer.kv_data[0][key]
            kind = gguf.GGUFValueType.get_type(value)
            if isinstance(value, int):
                kind = gguf.GGUFValueType.UINT32
            writer.add_key_value(key, value, kind)

    with pytest.raises((ModelError, Unsupported)) as caught:
        read(tmp_path, vocabulary)

    assert sentence in caught.value.what
