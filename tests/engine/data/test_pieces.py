"""Long texts in pieces: nothing is lost, and what a cut loses is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.engine.data import tokenization
from backend.engine.data.token_arrays import Encoded, in_pieces
from tests.engine.data.test_tokenization import read, tokenizer

__all__ = ["tokenizer"]


def test_a_long_text_is_learned_whole_in_pieces(tmp_path: Path, tokenizer: Any) -> None:
    words = " ".join(str(number) for number in range(3_000))
    found = read(tmp_path, [{"text": "short"}, {"text": words}])
    (whole,) = tokenization.encode([found.train[1]], tokenizer, 1_000_000)

    corpus = tokenization.tokenise(found, tokenizer, max_length=64)

    pieces = [each for each in corpus.train if len(each) > 8]
    assert all(each.ids[0] == tokenizer.bos_token_id for each in pieces)
    said = np.concatenate([whole.ids[:1], *(each.ids[1:] for each in pieces)])
    assert said.tolist() == whole.ids.tolist()
    assert max(len(each) for each in pieces) == 64
    assert min(len(each) for each in pieces) >= 60
    assert all(each.learned[1:].all() for each in pieces)
    assert corpus.stats.lost_share == 0.0
    assert {group.kind: (group.count, group.places) for group in corpus.stats.groups} == {
        "pieces": (1, ("row 2",))
    }
    assert corpus.stats.rows == 2


def test_a_cut_says_how_much_is_lost(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "on and " * count} for count in (5, 400)]
    found = read(tmp_path, rows)
    found.long_examples = "cut"
    lengths = [len(t) for t in tokenization.encode(found.train, tokenizer, 10_000)]

    stats = tokenization.tokenise(found, tokenizer, max_length=16).stats

    assert stats.cut == 1
    assert stats.lost_share == pytest.approx((lengths[1] - 16) / (sum(lengths) - 2))


def test_conversations_are_cut_unless_splitting_is_chosen(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "Count.", "completion": " ".join(map(str, range(500)))}
    found = read(tmp_path, [row])
    assert tokenization.tokenise(found, tokenizer, max_length=64).stats.cut == 1

    found.long_examples = "split"
    corpus = tokenization.tokenise(found, tokenizer, max_length=64)

    (whole,) = tokenization.encode([found.train[0]], tokenizer, 10_000)
    assert sum(int(each.learned.sum()) for each in corpus.train) == int(whole.learned.sum())
    assert [each.asked != (0, 0) for each in corpus.train][:2] == [True, False]


def test_pieces_of_one_text_can_be_held_out(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path, [{"text": " ".join(map(str, range(3_000)))}])
    found.eval_share = 0.1

    corpus = tokenization.tokenise(found, tokenizer, max_length=64)

    share = len(corpus.held_out) / (len(corpus.held_out) + len(corpus.train))
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("longest", [8, 9, 63])
def test_pieces_begin_as_their_text_does(longest: int) -> None:
    bos, rows = 7, [[7, *range(100, 130)], [7, 1, 2], list(range(40, 60))]
    ids = np.array([each for row in rows for each in row], dtype=np.int32)
    encoded = _encoded_rows(ids, rows, bos)

    split = in_pieces(encoded, longest, bos)

    texts = [
        split.ids[start:end].tolist()
        for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]
    assert all(0 < len(text) <= longest for text in texts)
    for number, row in enumerate(rows, 1):
        own = [t for t, n in zip(texts, split.numbers, strict=True) if n == number]
        assert all((text[0] == bos) == (row[0] == bos) for text in own)
        joined = [each for text in own for each in text if each != bos]
        assert joined == [each for each in row if each != bos]
    assert int(split.learned.sum()) == int(encoded.learned.sum())
    assert split.rows == 3
    assert len(set(split.keys.tolist())) == len(texts)


def _encoded_rows(ids: Any, rows: list[list[int]], bos: int) -> Encoded:
    count = len(rows)
    return Encoded(
        ids=ids,
        learned=ids != bos,
        offsets=np.cumsum([0, *map(len, rows)]),
        numbers=np.arange(1, count + 1),
        keys=np.arange(count, dtype=np.uint64) + np.uint64(2**64 - 2),
        blank=np.zeros(count, dtype=bool),
        special=np.zeros(count, dtype=bool),
        asked=np.zeros((count, 2), dtype=np.int32),
        remarks=np.zeros(count, dtype=np.uint8),
    )
