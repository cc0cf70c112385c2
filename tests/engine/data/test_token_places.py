"""Where tokens are in a text, by their bytes or as the tokenizer tells; which are in a span."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backend.engine.data import token_places
from backend.engine.data.token_places import TextTokens, tokenised
from backend.settings import STARTER

STARTER_TOKENIZER = AutoTokenizer.from_pretrained(STARTER / "model")
PIECES = (
    "the cat",
    "\u00e9\U0001f600",
    "\U0001f469\u200d\U0001f467",
    " \n",
    "<|end|>",
    "\u6f22\u5b57",
    "a\u0301",
)
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 60), max_size=6, unique=True).map(sorted)


def by_bytes(texts: list[str], tokenizer: Any) -> TextTokens | None:
    pieces = token_places._pieces_of(tokenizer)
    return pieces and token_places._side_by_side(texts, tokenizer.backend_tokenizer, pieces)


def as_told(texts: list[str], tokenizer: Any) -> TextTokens:
    return token_places._as_told(texts, tokenizer, special=False)


def each_alone(tokens: TextTokens, spans: list[tuple[int, int]]) -> list[tuple[bool, bool]]:
    """Compare every token with every span: whether it is inside one, and whether it reaches out."""
    found = []
    for start, end in zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True):
        touching = [(b, f) for b, f in spans if start < f and end > b and start < end]
        kept = [(b, f) for b, f in touching if end <= f or tokens.text[f:end].isspace()]
        found.append((bool(kept), any(start < b or end > f for b, f in kept)))
    return found


@given(TEXTS, CUTS)
def test_both_ways_find_the_same(texts: list[str], cuts: list[int]) -> None:
    fast, told = by_bytes(texts, STARTER_TOKENIZER), as_told(texts, STARTER_TOKENIZER)
    size = len("".join(texts))
    cuts = [min(cut, size) for cut in cuts]
    spans = [(b, f) for b, f in zip(cuts[::2], cuts[1::2], strict=False) if b < f]

    assert fast is not None
    for name in ("text", "ids", "starts", "ends", "counts"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(told, name))
    inside, reaching = fast.inside(spans)
    reaches = np.isin(np.arange(len(inside)), reaching)
    assert list(zip(inside.tolist(), reaches.tolist(), strict=True)) == each_alone(told, spans)
    every = np.arange(size)
    own = [(fast.starts <= place) & (place < fast.ends) for place in every]
    assert fast.at(every).tolist() == [int(np.argmax(each)) if each.any() else -1 for each in own]


@pytest.fixture
def leaves_out() -> PreTrainedTokenizerFast:
    """A tokenizer that drops spaces and puts a token of its own at both ends."""
    words = {"[B]": 0, "[E]": 1, "the": 2, "cat": 3, "?": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.normalizer = normalizers.Strip()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([AddedToken("[B]"), AddedToken("[E]")])
    made.post_processor = TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 0), ("[E]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_where_characters_have_no_token_the_tokenizer_tells_the_places(
    leaves_out: PreTrainedTokenizerFast,
) -> None:
    tokens = tokenised(["the cat the", "cat "], leaves_out, special=True)

    assert by_bytes(["the cat"], leaves_out) is None
    assert tokens.counts.tolist() == [5, 3]
    inside, _ = tokens.inside([(3, 8), (8, 11), (11, 15)])
    assert inside.tolist() == [False, False, True, True, False, False, True, False]
    assert tokens.at(np.array([0, 3, 4, 10, 11, 14])).tolist() == [1, -1, 2, 3, 6, -1]


def byte_level(**parts: Any) -> Any:
    """Return a copy of the starter's tokenizer with other parts."""
    copied = AutoTokenizer.from_pretrained(STARTER / "model")
    for name, part in parts.items():
        setattr(copied.backend_tokenizer, name, part)
    return copied


def test_a_text_that_the_tokenizer_changes_has_the_places_of_its_own_characters() -> None:
    changing = byte_level(normalizer=normalizers.NFC())
    texts = ["the cat", "a\u0301 the cat"]

    assert by_bytes(texts[:1], changing) is not None
    assert by_bytes(texts, changing) is None
    tokens = tokenised(texts, changing, special=False)
    assert tokens.starts[tokens.at(np.array([7, 9]))].tolist() == [7, 9]


@pytest.mark.parametrize("text", ["the cat \n the", "the cat \n the a\u0301"])
def test_blanks_in_an_answer_count_where_a_tokenizer_leaves_them_out_of_places(text: str) -> None:
    trimming = byte_level(
        normalizer=normalizers.NFC(), post_processor=processors.ByteLevel(trim_offsets=True)
    )

    tokens = tokenised([text], trimming, special=False)

    assert tokens.inside([(0, len(text))])[0].all()


def test_special_tokens_are_read_as_the_tokenizer_is_set() -> None:
    tokenizer = byte_level()
    tokenizer("x<|end|>", split_special_tokens=True)  # sets the tokenizer below for the next call

    tokens = tokenised(["x<|end|>"], tokenizer, special=False)

    assert tokens.ids.tolist() == tokenizer("x<|end|>", add_special_tokens=False).input_ids


def learned(text: str, answer: str) -> str:
    """Return the text of the tokens that have a loss where an answer is in a text."""
    tokens = tokenised([text], STARTER_TOKENIZER, special=False)
    begin = text.index(answer)
    inside, _ = tokens.inside([(begin, begin + len(answer))])
    return str(STARTER_TOKENIZER.decode(tokens.ids[inside].tolist()))


def test_a_word_that_is_joined_to_the_blank_before_it_is_learned() -> None:
    assert learned("Assistant: the cat", "the cat") == " the cat"


def test_no_word_after_the_answer_is_learned() -> None:
    assert learned("a cat\n the dog", "a cat") == "a cat"
