"""Rows become tokens: documents are rendered and tokenised in batches, in the background.

Only a few batches of text are in memory at a time. Knows nothing of files on disk, packs or
training.
"""

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

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
from backend.engine.data.token_arrays import Documents, Encoded, Flags, Tokens, join, no_rows
from backend.engine.data.token_places import Span, TextTokens, tokenised
from backend.engine.models import tokenizer_traits
from backend.engine.templates.answers import Remark
from backend.errors import DataError
from backend.files import read_limits
from backend.results import RowProblem

BATCH = 512
AHEAD = 2
_Texts = list[tuple[Document, Rendered]]


def encode(
    documents: Sequence[Document], tokenizer: Any, max_length: int, learning: Learning = ALL
) -> list[Tokens]:
    """Tokenise documents in order, cut to `max_length` tokens; raises DataError.

    A document may give several texts; see `chat_rendering`.
    """
    found = join([_encoded(batch, tokenizer, learning) for batch in _batches(iter(documents))])
    if found.refusal:
        raise DataError(found.refusal[0], cure=found.refusal[1])
    return list(Documents(found, np.arange(len(found)), max_length))


def encode_part(part: Part, tokenizer: Any, control: Control | None = None) -> Encoded:
    """Tokenise a table batch by batch; only a few batches of text are in memory at a time."""
    problems, noticed = Problems(), Noticed()
    documents = part.documents(problems.add, noticed)
    total = max(part.table.count(), 1) if control else 1
    batches, rows = [], 0
    with _short_collections():
        for batch in _ahead(documents, tokenizer, part):
            batches.append(batch)
            problems.extend(batch.problems)
            rows += int(batch.begins.sum())
            if control:
                control.check_stop()
                done = min(rows + problems.count, total)
                control.progress(f"{done:,} of {total:,} rows read", done / total)
    return replace(join(batches), files=[(0, part.table.file)], problems=problems, noticed=noticed)


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


def _ahead(documents: Iterator[Document], tokenizer: Any, part: Part) -> Iterator[Encoded]:
    """Render and tokenise batch by batch in the background, while the next batches are read.

    The tokenizer releases Python's lock, so this uses the other cores.
    """
    going: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(AHEAD, "tokenizer") as helpers:
        for batch in _batches(documents):
            going.append(helpers.submit(_encoded, batch, tokenizer, part.learning, part.table.file))
            if len(going) > AHEAD:
                yield going.popleft().result()
        yield from (each.result() for each in going)


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


def _encoded(
    documents: Sequence[Document], tokenizer: Any, learning: Learning, file: str = ""
) -> Encoded:
    """Render and tokenise documents; those that the base cannot use become problems."""
    texts: _Texts = []
    refused: dict[int, Unrenderable] = {}
    for document, shown in zip(documents, render(documents, tokenizer, learning), strict=True):
        if isinstance(shown, Unrenderable):
            refused[document.row] = shown
        else:
            texts += [(document, each) for each in shown]
    encoded = _with_losses(texts, tokenizer, refused) if texts else no_rows()
    for row, refusal in sorted(refused.items()):
        encoded.problems.add(RowProblem(row=row, what=refusal.what, file=file))
        encoded.refusal = encoded.refusal or (refusal.sentence, refusal.cure)
    return encoded


def _with_losses(texts: _Texts, tokenizer: Any, refused: dict[int, Unrenderable]) -> Encoded:
    """Tokenise all texts at once, and find the tokens with a loss and those of the questions.

    Rows with a token that has no embedding are added to `refused`.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"The base cannot be trained: {tokenizer_traits.PLACELESS}, so the tokens of an answer "
            "are not known.",
            cure="Choose another base.",
        )
    special = not tokenizer.chat_template or not texts[0][0].turns
    tokens = tokenised([each.text for _, each in texts], tokenizer, special=special)
    if wrong := _without_embedding(tokens, texts, tokenizer):
        refused |= wrong
        texts = [(document, each) for document, each in texts if document.row not in wrong]
        return _with_losses(texts, tokenizer, refused) if texts else no_rows()
    spans: list[Span] = []
    asked: list[Span] = []
    begin = 0
    for _, each in texts:
        spans += [(begin + start, begin + end) for start, end in each.spans]
        start, end = each.question or (0, 0)
        asked.append((begin + start, begin + end - 1) if end else (-1, -1))
        begin += len(each.text)
    learned, reaching = tokens.inside(spans)
    found = tokens.at(np.array(asked))
    in_text = found - (tokens.last - tokens.counts)[:, None] + (0, 1)
    remarks = np.array([int(each.remarks) for _, each in texts], dtype=np.uint8)
    remarks[tokens.text_of(reaching)] |= Remark.NEW_RULE.value
    kept = _without_end(tokens, learned, tokenizer_traits.appended(tokenizer))
    pattern = special_tokens(tokenizer)
    return Encoded(
        ids=tokens.ids[kept],
        learned=learned[kept],
        offsets=np.append(0, np.append(0, np.cumsum(kept))[tokens.last]),
        numbers=np.array([document.row for document, _ in texts], dtype=np.int64),
        keys=np.array([document.fingerprint for document, _ in texts], dtype=np.uint64),
        blank=np.array([is_blank(document) for document, _ in texts], dtype=np.bool_),
        special=np.array([holds(document, pattern) for document, _ in texts], dtype=np.bool_),
        asked=np.where((found < 0).any(1, keepdims=True), 0, in_text).astype(np.int32),
        remarks=remarks,
    )


def _without_embedding(
    tokens: TextTokens, texts: _Texts, tokenizer: Any
) -> dict[int, Unrenderable]:
    """Refuse the rows with a token that has no embedding in the base."""
    rows = tokenizer_traits.embedded(tokenizer)
    found: dict[int, Unrenderable] = {}
    for place in np.flatnonzero(tokens.ids >= rows).tolist() if rows is not None else ():
        row = texts[tokens.text_of(place)][0].row
        token = tokenizer_traits.shown(int(tokens.ids[place]), tokenizer)
        what = f"it contains {token}, a token that the base has no embedding for"
        sentence = f"Row {row} cannot be used: {what}."
        cure = "Leave the token out, skip such rows, or load a base whose embeddings were resized."
        found.setdefault(row, Unrenderable(what, sentence, cure))
    return found


def _without_end(tokens: TextTokens, learned: Flags, end: list[int]) -> Flags:
    """Mark all tokens but those that the tokenizer appends to a text: the text has its own end.

    Where these have a loss, they are the text's own end mark.
    """
    kept = np.ones(len(learned), dtype=np.bool_)
    for last in tokens.last.tolist() if end else ():
        place = slice(last - len(end), last)
        if tokens.ids[place].tolist() == end and not learned[place].any():
            kept[place] = False
    return kept
