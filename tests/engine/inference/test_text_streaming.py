"""Text while it comes: whole words, right where characters take several tokens."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backend.engine.inference import rows
from backend.engine.inference.sampling import Sampler
from backend.engine.inference.text_streaming import TextStream, spans, visible
from backend.settings import STARTER

TEXTS = [
    "Arr, the cat be on the mat!",
    "two\nlines\n\nand a  double space",
    "Ünïcödé – naïve café, 3 €",
    "家は大きい。 👩‍🚀 works",
    " leading and trailing ",
]


@pytest.fixture(scope="module")
def starter() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(STARTER / "model")


@pytest.fixture(scope="module")
def one_byte_each() -> PreTrainedTokenizerFast:
    """The hardest tokenizer: every byte is a token of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["starter", "one_byte_each"])
def test_pieces_add_up_and_hold_no_half_character(
    which: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(which)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    stream = TextStream(tokenizer)

    pieces = [*(stream.add(token) for token in tokens), stream.end()]

    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces[:-1]).split() == text.split()[: len("".join(pieces[:-1]).split())]


def test_a_broken_character_is_shown_at_the_end(one_byte_each: PreTrainedTokenizerFast) -> None:
    tokens = one_byte_each("a é").input_ids[:-1]
    stream = TextStream(one_byte_each)
    assert "".join([*(stream.add(t) for t in tokens), stream.end()]) == "a \ufffd"


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("stops", [False, True])
def test_text_is_sent_now_and_then_and_adds_up(
    starter: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, seconds: float, stops: bool
) -> None:
    monkeypatch.setattr(rows, "TEXT_EVERY_S", seconds)
    tokens = starter(" ".join(TEXTS), add_special_tokens=False).input_ids
    sent: list[str] = []
    room = len(tokens) + stops
    row = rows.Row([], None, Sampler(0.0, 0), room, sent.append, TextStream(starter))

    ended = [row.take(token, []) for token in tokens]
    if stops:
        row.stop(1.0)

    assert ended == [False] * (len(tokens) - 1) + [not stops]
    assert "".join(sent) == starter.decode(tokens, skip_special_tokens=True)
    assert len(sent) == 2 if seconds else len(sent) > 10


@pytest.mark.parametrize("text", TEXTS)
def test_spans_add_up_to_the_text_and_count_every_token(
    one_byte_each: PreTrainedTokenizerFast, text: str
) -> None:
    tokens = one_byte_each(text).input_ids
    found = spans(one_byte_each, tokens)
    assert "".join(piece for piece, _ in found) == text
    assert sum(length for _, length in found) == len(tokens)
    assert ("é" in text) == any(piece == "é" and length == 2 for piece, length in found)


def test_a_token_is_always_visible(starter: PreTrainedTokenizerFast) -> None:
    assert visible(starter, starter.eos_token_id).strip()
    newline = starter("\n", add_special_tokens=False).input_ids[-1]
    assert "⏎" in visible(starter, newline)
    assert Path(STARTER).exists()
