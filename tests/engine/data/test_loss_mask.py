"""Which tokens are learned: found by the ends of the spans as by the place of every token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backend.engine.data.loss_mask import are_side_by_side, by_ends, by_places, learned_tokens
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
CUTS = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(st.sampled_from(PIECES), max_size=9), st.lists(CUTS, max_size=3))
def test_both_ways_find_the_same_tokens(pieces: list[str], cuts: list[tuple[int, int]]) -> None:
    text = "".join(pieces)
    spans = [(min(a, b, len(text)), min(max(a, b), len(text))) for a, b in cuts]
    (encoding,) = STARTER_TOKENIZER([text], add_special_tokens=False).encodings

    found = by_ends(encoding, spans, text)

    assert found is not None
    by_each = by_places(encoding, spans, text)
    np.testing.assert_array_equal(found.learned, by_each.learned)
    assert found.beyond == by_each.beyond


def test_a_tokenizer_of_bytes_is_known_as_one() -> None:
    assert are_side_by_side(STARTER_TOKENIZER)


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


def test_where_characters_have_no_token_every_place_is_compared(
    leaves_out: PreTrainedTokenizerFast,
) -> None:
    text = "the cat the"
    (encoding,) = leaves_out([text]).encodings

    assert not are_side_by_side(leaves_out)
    assert by_ends(encoding, [(3, 8)], text) is None
    found = learned_tokens(encoding, [(3, 8), (8, len(text))], text, side_by_side=False)
    assert found.learned.tolist() == [False, False, True, True, False]


def test_tokens_added_around_a_text_are_not_learned(leaves_out: PreTrainedTokenizerFast) -> None:
    (encoding,) = leaves_out(["the cat"]).encodings

    assert by_ends(encoding, [(0, 7)], "the cat").learned.tolist() == [False, True, True, False]  # type: ignore[union-attr]


def learned(text: str, answer: str) -> str:
    """Return the text of the tokens that have a loss where an answer is in a text."""
    (encoding,) = STARTER_TOKENIZER([text], add_special_tokens=False).encodings
    begin = text.index(answer)
    mask = by_ends(encoding, [(begin, begin + len(answer))], text)
    assert mask is not None
    return str(STARTER_TOKENIZER.decode(np.array(encoding.ids)[mask.learned].tolist()))


def test_a_word_that_is_joined_to_the_blank_before_it_is_learned() -> None:
    assert learned("Assistant: the cat", "the cat") == " the cat"


def test_no_word_after_the_answer_is_learned() -> None:
    assert learned("a cat\n the dog", "a cat") == "a cat"
