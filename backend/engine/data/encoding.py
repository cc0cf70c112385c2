"""Rows become tokens: documents are rendered and tokenised in batches, in the background.

Only one batch of text is in memory at a time. Knows nothing of files on disk, packs or training.
"""

import gc
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Encoding

from backend.engine.core.job_control import Control
from backend.engine.data.chat_rendering import (
    Rendered,
    Unrenderable,
    holds,
    is_blank,
    render,
    special_tokens,
)
from backend.engine.data.dataset import ALL, Document, Learning, Noticed, Part, Problems
from backend.engine.data.loss_mask import are_side_by_side, learned_tokens, tokens_of
from backend.engine.data.token_arrays import Encoded, Tokens
from backend.engine.models import tokenizer_traits
from backend.engine.templates.answers import Remark
from backend.errors import DataError
from backend.files import read_limits
from backend.results import RowProblem

BATCH = 512
AHEAD = 2
_Shown = Sequence[tuple[Document, Rendered | Unrenderable]]
_Encoded = list[tuple[Document, Tokens | Unrenderable]]


def encode(
    documents: Sequence[Document],
    tokenizer: Any,
    max_length: int,
    learning: Learning = ALL,
) -> list[Tokens]:
    """Tokenise documents in order, cut to `max_length` tokens; raises DataError.

    A document may give several texts; see `chat_rendering`.
    """
    encoded: list[Tokens] = []
    for start in range(0, len(documents), BATCH):
        shown = _rendered(documents[start : start + BATCH], tokenizer, learning)
        output = _output(shown, tokenizer)
        for _, each in _placed(shown, output, tokenizer):
            if isinstance(each, Unrenderable):
                raise each.as_error()
            encoded.append(each.within(max_length))
    return encoded


def encode_part(part: Part, tokenizer: Any, control: Control | None = None) -> Encoded:
    """Tokenise a table batch by batch; only one batch of text is in memory at a time."""
    gathered = _Gathered(part.table.file, special_tokens(tokenizer))
    documents = part.documents(gathered.problems.add, gathered.noticed)
    total = max(part.table.count(), 1) if control else 1
    with _short_collections():
        for batch in _ahead(documents, tokenizer, part.learning):
            gathered.add(batch)
            if control:
                control.check_stop()
                done = min(gathered.rows, total)
                control.progress(f"{done:,} of {total:,} rows read", done / total)
    return gathered.encoded()


@contextmanager
def _short_collections() -> Iterator[None]:
    """Limit Python's garbage collector to new objects for a while.

    Thousands of rows trigger it all the time, and each full collection would walk through all
    objects of PyTorch and Transformers.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ahead(documents: Iterator[Document], tokenizer: Any, learning: Learning) -> Iterator[_Encoded]:
    """Tokenise batch by batch in the background, while the next batches are read and rendered.

    The tokenizer releases Python's lock, so this uses the other cores.
    """
    going: deque[tuple[_Shown, Future[Any]]] = deque()
    with ThreadPoolExecutor(AHEAD, "tokenizer") as helpers:
        for batch in _batches(documents):
            shown = _rendered(batch, tokenizer, learning)
            going.append((shown, helpers.submit(_output, shown, tokenizer)))
            if len(going) > AHEAD:
                shown, output = going.popleft()
                yield _placed(shown, output.result(), tokenizer)
        while going:
            shown, output = going.popleft()
            yield _placed(shown, output.result(), tokenizer)


def _rendered(documents: Sequence[Document], tokenizer: Any, learning: Learning) -> _Shown:
    """Return each document with its text; one that gives several texts comes several times."""
    pairs: list[tuple[Document, Rendered | Unrenderable]] = []
    for document, shown in zip(documents, render(documents, tokenizer, learning), strict=True):
        texts = [shown] if isinstance(shown, Unrenderable) else shown
        pairs += [(document, each) for each in texts]
    return pairs


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents, limited by number and text: a batch takes 25 times its text in memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += document.characters
        if len(batch) == BATCH or characters > read_limits.BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Gathered:
    """Collects the tokens of a table while it is read, in flat arrays."""

    def __init__(self, file: str, special: "re.Pattern[str]") -> None:
        self.problems = Problems()
        self.noticed = Noticed()
        self._file = file
        self._special_tokens = special
        self._ids: list[Any] = []
        self._learned: list[Any] = []
        self._rows = 0
        self._lengths: list[int] = []
        self._asked: list[tuple[int, int]] = []
        self._remarks: list[int] = []
        self._numbers: list[int] = []
        self._keys: list[int] = []
        self._blank: list[bool] = []
        self._special: list[bool] = []
        self._refusal: tuple[str, str] | None = None

    @property
    def rows(self) -> int:
        return self._rows + self.problems.count

    def add(self, batch: _Encoded) -> None:
        """Add a batch of documents with their tokens."""
        kept = [each for _, each in batch if isinstance(each, Tokens)]
        self._ids.append(_flat([each.ids for each in kept], np.int32))
        self._learned.append(_flat([each.learned for each in kept], np.bool_))
        for document, each in batch:
            if isinstance(each, Tokens):
                self._describe(document, each)
            else:
                self._refuse(document, each)

    def _describe(self, document: Document, tokens: Tokens) -> None:
        self._rows += self._numbers[-1:] != [document.row]
        self._lengths.append(len(tokens))
        self._asked.append(tokens.asked)
        self._remarks.append(tokens.remarks)
        self._numbers.append(document.row)
        self._keys.append(document.fingerprint)
        self._blank.append(is_blank(document))
        self._special.append(holds(document, self._special_tokens))

    def _refuse(self, document: Document, refusal: Unrenderable) -> None:
        self.problems.add(RowProblem(row=document.row, what=refusal.what, file=self._file))
        self._refusal = self._refusal or (refusal.sentence, refusal.cure)

    def encoded(self) -> Encoded:
        return Encoded(
            ids=_flat(self._ids, np.int32),
            learned=_flat(self._learned, np.bool_),
            offsets=np.cumsum([0, *self._lengths], dtype=np.int64),
            asked=np.array(self._asked, dtype=np.int32).reshape(-1, 2),
            remarks=np.array(self._remarks, dtype=np.uint8),
            numbers=np.array(self._numbers, dtype=np.int64),
            keys=np.array(self._keys, dtype=np.uint64),
            blank=np.array(self._blank, dtype=np.bool_),
            special=np.array(self._special, dtype=np.bool_),
            files=[(0, self._file)],
            problems=self.problems,
            noticed=self.noticed,
            refusal=self._refusal,
        )


def _flat(arrays: list[Any], kind: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype=kind), *arrays], dtype=kind)


def _output(shown: _Shown, tokenizer: Any) -> Any:
    """Tokenise texts in one call, which uses all cores; None where there are no texts."""
    texts = [each.text for _, each in shown if isinstance(each, Rendered)]
    if not texts:
        return None
    if not tokenizer.is_fast:
        raise DataError(
            f"The base cannot be trained: {tokenizer_traits.PLACELESS}, so the tokens of an answer "
            "are not known.",
            cure="Choose another base.",
        )
    return tokenizer(
        texts,
        add_special_tokens=not tokenizer.chat_template or not shown[0][0].turns,
        return_attention_mask=False,
        return_token_type_ids=False,
    )


def _placed(shown: _Shown, output: Any, tokenizer: Any) -> _Encoded:
    """Return each text's tokens, or the reason why a document has none."""
    found = zip(output["input_ids"], output.encodings, strict=True) if output else iter(())
    side_by_side = are_side_by_side(tokenizer)
    end = tokenizer_traits.appended(tokenizer)
    return [
        (
            document,
            each
            if isinstance(each, Unrenderable)
            else _checked(document, _to_tokens(*next(found), each, side_by_side, end), tokenizer),
        )
        for document, each in shown
    ]


def _to_tokens(
    ids: list[int], encoding: Encoding, shown: Rendered, side_by_side: bool, end: list[int]
) -> Tokens:
    """Return a text's tokens without those that the tokenizer appends: the text has its own end."""
    mask = learned_tokens(encoding, shown.spans, shown.text, side_by_side=side_by_side)
    asked = tokens_of(encoding, shown.question) if shown.question else (0, 0)
    remarks = int(shown.remarks) | (Remark.NEW_RULE.value if mask.beyond else 0)
    kept = len(ids) - len(end) if end and ids[-len(end) :] == end else len(ids)
    if mask.learned[kept:].any():
        kept = len(ids)  # the end mark is the text's own
    return Tokens(
        np.array(ids[:kept], dtype=np.int32), mask.learned[:kept], asked=asked, remarks=remarks
    )


def _checked(document: Document, tokens: Tokens, tokenizer: Any) -> Tokens | Unrenderable:
    """Return the tokens, or a refusal where one of them has no embedding in the base."""
    token = tokenizer_traits.first_beyond(tokens.ids, tokenizer)
    if token is None:
        return tokens
    what = (
        f"it contains {tokenizer_traits.shown(token, tokenizer)}, a token that the base has no "
        "embedding for"
    )
    return Unrenderable(
        what,
        f"Row {document.row} cannot be used: {what}.",
        "Leave the token out, skip such rows, or load a base whose embeddings were resized.",
    )
