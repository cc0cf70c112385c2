"""Tokenisation: documents become token ids with a loss mask.

The tokens of a table depend only on its content, its columns and the base, so they are computed
once and kept (`token_cache`). Cutting and splitting, which a run's settings change, are then cheap.
Knows nothing of packs or training.
"""

import gc
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding

from backend.engine.core.job_control import Control
from backend.engine.data import dataset
from backend.engine.data.chat_rendering import (
    Rendered,
    Unrenderable,
    holds,
    is_blank,
    render,
    special_tokens,
)
from backend.engine.data.dataset import (
    ALL,
    DataSet,
    Document,
    Keys,
    Learning,
    Part,
    Problems,
    refuse,
    split,
)
from backend.engine.data.loss_mask import are_side_by_side, learned_tokens, tokens_of
from backend.engine.data.statistics import stats_of
from backend.engine.data.token_arrays import Documents, Encoded, Ints, Tokens, join
from backend.engine.data.token_cache import TokenStore
from backend.engine.templates.answers import Remark
from backend.errors import DataError
from backend.files import read_limits
from backend.requests import Train
from backend.results import DataStats, RowProblem

__all__ = ["Corpus", "Documents", "Prepared", "Tokens", "encode", "prepare", "tokenise"]
BATCH = 512
AHEAD = 2
_Shown = Sequence[tuple[Document, Rendered | Unrenderable]]
_Encoded = list[tuple[Document, Tokens | Unrenderable]]


@dataclass
class Corpus:
    """A data set as the model sees it: training and held-out documents, and statistics.

    `lengths` are those of all training examples before they are cut: (examples,) int64, in tokens.
    `keys` name the contents of all usable rows: of the data, and of its separate held-out data.
    """

    train: Documents
    held_out: Documents
    stats: DataStats
    lengths: Ints
    keys: tuple[Keys, Keys]


@dataclass
class Prepared:
    """The tables of a data set, tokenised and not cut: independent of a run's settings."""

    main: Encoded
    apart: Encoded

    @property
    def rows(self) -> int:
        return self.main.rows + self.apart.rows

    @property
    def problems(self) -> Problems:
        both = Problems()
        both.extend(self.main.problems)
        both.extend(self.apart.problems)
        return both


def of_run(
    train: Train,
    tokenizer: Any,
    *,
    context: int,
    store: TokenStore | None,
    control: Control | None = None,
) -> Corpus:
    """Tokenise the data of a run; `context` is the base's context length in tokens, 0 unlimited."""
    longest = min(train.longest, context) if context else train.longest
    return tokenise(
        dataset.of_run(train), tokenizer, max_length=longest, store=store, control=control
    )


def tokenise(
    data: DataSet,
    tokenizer: Any,
    *,
    max_length: int,
    store: TokenStore | None = None,
    control: Control | None = None,
) -> Corpus:
    """Tokenise a data set; raises DataError where rows are bad or no example is left."""
    prepared = prepare(data, tokenizer, store=store, control=control)
    if not data.drop_bad_rows:
        _refuse(prepared)
    return assemble(data, prepared, max_length=max_length)


def prepare(
    data: DataSet,
    tokenizer: Any,
    *,
    store: TokenStore | None = None,
    control: Control | None = None,
) -> Prepared:
    """Tokenise all tables of a data set, or read them from the store."""

    def encoded(parts: Sequence[Part]) -> Encoded:
        return join([_encoded(part, tokenizer, store, control) for part in parts])

    return Prepared(encoded(data.parts), encoded(data.held_out_parts))


def assemble(data: DataSet, prepared: Prepared, *, max_length: int) -> Corpus:
    """Split and cut tokenised tables; raises DataError where no example is left."""
    main, apart = prepared.main, prepared.apart
    learned, held_out = split(main.keys, data, apart.keys)
    stats = stats_of(data, prepared.main, apart, learned=learned, longest=max_length)
    usable = main.learned_within(max_length) > 0
    train = Documents(main, learned[usable[learned]], max_length)
    if data.held_out_parts:
        kept = Documents(apart, np.flatnonzero(apart.learned_within(max_length) > 0), max_length)
    else:
        kept = Documents(main, held_out[usable[held_out]], max_length)
    if not train:
        if prepared.main.refusal and not len(main):
            _refuse(prepared)
        raise _nothing(prepared, max_length)
    whole = main.lengths[learned][~main.blank[learned]]
    stats = stats.model_copy(update=_sizes(train, kept))
    return Corpus(train, kept, stats, whole, (main.keys, apart.keys))


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
        for _, each in _placed(shown, output, are_side_by_side(tokenizer)):
            if isinstance(each, Unrenderable):
                raise each.as_error()
            encoded.append(each.within(max_length))
    return encoded


def encode_part(part: Part, tokenizer: Any, control: Control | None = None) -> Encoded:
    """Tokenise a table batch by batch; only one batch of text is in memory at a time."""
    gathered = _Gathered(part.table.file, special_tokens(tokenizer))
    documents = part.documents(gathered.problems.add)
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
    side_by_side = are_side_by_side(tokenizer)
    going: deque[tuple[_Shown, Future[Any]]] = deque()
    with ThreadPoolExecutor(AHEAD, "tokenizer") as helpers:
        for batch in _batches(documents):
            shown = _rendered(batch, tokenizer, learning)
            going.append((shown, helpers.submit(_output, shown, tokenizer)))
            if len(going) > AHEAD:
                shown, output = going.popleft()
                yield _placed(shown, output.result(), side_by_side)
        while going:
            shown, output = going.popleft()
            yield _placed(shown, output.result(), side_by_side)


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


def _encoded(
    part: Part, tokenizer: Any, store: TokenStore | None, control: Control | None
) -> Encoded:
    if store is None:
        return encode_part(part, tokenizer, control)
    return store.get_or_make(part, tokenizer, lambda: encode_part(part, tokenizer, control))


class _Gathered:
    """Collects the tokens of a table while it is read, in flat arrays."""

    def __init__(self, file: str, special: "re.Pattern[str]") -> None:
        self.problems = Problems()
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
            refusal=self._refusal,
        )


def _flat(arrays: list[Any], kind: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype=kind), *arrays], dtype=kind)


def _output(shown: _Shown, tokenizer: Any) -> Any:
    """Tokenise texts in one call, which uses all cores; None where there are no texts."""
    texts = [each.text for _, each in shown if isinstance(each, Rendered)]
    if not texts:
        return None
    return tokenizer(
        texts,
        add_special_tokens=not tokenizer.chat_template or not shown[0][0].turns,
        return_attention_mask=False,
        return_token_type_ids=False,
    )


def _placed(shown: _Shown, output: Any, side_by_side: bool) -> _Encoded:
    """Return each text's tokens, or the reason why a document has none."""
    found = zip(output["input_ids"], output.encodings, strict=True) if output else iter(())
    return [
        (
            document,
            each
            if isinstance(each, Unrenderable)
            else _to_tokens(*next(found), each, side_by_side),
        )
        for document, each in shown
    ]


def _to_tokens(ids: list[int], encoding: Encoding, shown: Rendered, side_by_side: bool) -> Tokens:
    mask = learned_tokens(encoding, shown.spans, shown.text, side_by_side=side_by_side)
    asked = tokens_of(encoding, shown.question) if shown.question else (0, 0)
    remarks = int(shown.remarks) | (Remark.NEW_RULE.value if mask.beyond else 0)
    return Tokens(np.array(ids, dtype=np.int32), mask.learned, asked=asked, remarks=remarks)


# -- errors and sizes ----------------------------------------------------------------------------


def _refuse(prepared: Prepared) -> None:
    """Raise DataError where rows cannot be used, also where the template can render no row."""
    problems = prepared.problems
    refusals = [each.refusal for each in (prepared.main, prepared.apart) if each.refusal]
    if refusals and not len(prepared.main):
        raise DataError(refusals[0][0], cure=refusals[0][1])
    refuse(problems, prepared.rows)


def _nothing(prepared: Prepared, max_length: int) -> DataError:
    if prepared.main.learned_within(max_length).any():
        return DataError(
            "Every example is held out, so none is left for training.",
            cure="Choose other held-out data.",
        )
    return DataError(
        f"None of the {prepared.rows:,} examples has a token with loss: the answers are empty "
        f"or start after the first {max_length} tokens.",
        cure="Add answers to the examples, or raise the longest example.",
    )


def _sizes(train: Documents, held_out: Documents) -> dict[str, int]:
    everything = np.concatenate([train.lengths, held_out.lengths])
    return {
        "examples": len(train),
        "held_out": len(held_out),
        "tokens": int(train.lengths.sum()),
        "longest": int(everything.max()),
        "median": int(np.median(train.lengths)),
    }
