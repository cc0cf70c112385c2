"""A data set: the training examples of a source and its held-out examples.

Rows are read when they are needed, so a large file is never in memory as a whole. Every row that
cannot be used is reported by its number, with the reason. Knows nothing of tokens.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.engine.data import column_names as names
from backend.engine.data import placeholders
from backend.engine.data.row_formats import Row, Shape, first_rows, shape_of
from backend.engine.data.turns import (
    UNLEARNED,
    BadRow,
    Turns,
    read_tools,
    weighs_nothing,
    with_thought,
)
from backend.engine.data.unfit_rows import is_rated_bad, require_no_media, require_no_pair
from backend.engine.data_files import sources
from backend.engine.data_files.file_readers import Broken
from backend.engine.data_files.sources import Table
from backend.errors import DataError
from backend.files import read_limits
from backend.requests import Columns, LongExamples, PrepareData, PreviewData, Train
from backend.results import RowProblem

MAX_PROBLEMS = 100
FEWEST = 5
"""With fewer different examples none are held out."""
Keys = NDArray[np.uint64]


@dataclass(slots=True)
class Document:
    """One example before tokenising: turns of a conversation, or plain text.

    `row` counts from 1. In plain text all tokens have a loss. `tools` are those that the assistant
    may call.
    """

    row: int
    turns: Turns = field(default_factory=list)
    text: str = ""
    tools: list[dict[str, Any]] | None = None

    @property
    def key(self) -> str:
        """The content by which two examples are equal."""
        if not self.turns:
            return self.text
        return json.dumps([self.turns, self.tools] if self.tools else self.turns)

    @property
    def characters(self) -> int:
        """The length of its text, without the template."""
        return len(self.text) + sum(len(turn["content"]) for turn in self.turns)

    @property
    def fingerprint(self) -> int:
        """A 64-bit hash of the key: a million rows have a collision once in 10 million times."""
        return int.from_bytes(hashlib.blake2b(self.key.encode(), digest_size=8).digest())


@dataclass
class Problems:
    """Rows that cannot be used: their number, and the first few of them."""

    count: int = 0
    first: list[RowProblem] = field(default_factory=list)

    def add(self, problem: RowProblem) -> None:
        self.count += 1
        if len(self.first) < MAX_PROBLEMS:
            self.first.append(problem)

    def extend(self, other: "Problems") -> None:
        self.first = [*self.first, *other.first][:MAX_PROBLEMS]
        self.count += other.count


@dataclass
class Noticed:
    """What was seen while rows were read: columns with a value, and open placeholders, by rows."""

    columns: Counter[str] = field(default_factory=Counter)
    placeholders: Counter[str] = field(default_factory=Counter)

    def row(self, row: Any) -> None:
        """Count the columns in which a row has a value; a file may have any number of them."""
        if not isinstance(row, dict):
            return
        room = len(self.columns) < read_limits.COLUMNS
        for name, value in row.items():
            if room or name in self.columns:
                self.columns[name] += value not in names.NOTHING

    def document(self, document: "Document") -> None:
        """Count the placeholders that are left in a document's texts."""
        found: set[str] = set()
        placeholders.found_in(document.text, into=found)
        for turn in document.turns:
            placeholders.found_in(turn["content"], into=found)
        if found and len(self.placeholders) < placeholders.MOST:
            self.placeholders.update(found)

    def extend(self, other: "Noticed") -> None:
        self.columns.update(other.columns)
        self.placeholders.update(other.placeholders)


@dataclass(frozen=True, slots=True)
class Learning:
    """What is learned of a conversation, and what its texts are made with."""

    last_only: bool = False
    """Only the last answer has a loss."""
    thoughts: bool = True
    """Thoughts before an answer have a loss."""
    date: str | None = None
    """The date that a chat template shows, as 2026-11-30; None is today."""
    placeholders: tuple[tuple[str, str], ...] = ()
    """Names of placeholders, and the texts that replace them."""

    @classmethod
    def of(cls, request: "Train | PreviewData | PrepareData") -> "Learning":
        values = tuple(request.placeholder_values.items())
        return cls(request.answers == "last", request.learn_thoughts, request.date, values)


ALL = Learning()
"""All answers and thoughts, on the day of today."""


@dataclass(frozen=True)
class Part:
    """One table of a data set, how its rows are read, and what is learned of them."""

    table: Table
    shape: Shape
    learning: Learning = ALL

    def documents(
        self, on_problem: Callable[[RowProblem], None], noticed: Noticed | None = None
    ) -> Iterator[Document]:
        """Yield the usable rows in order; call `on_problem` for the others."""
        values = dict(self.learning.placeholders)
        filled = placeholders.filler(values) if values else None
        for number, row in self.table.rows():
            if noticed:
                noticed.row(row)
            try:
                document = _to_document(number, filled(row) if filled else row, self.shape)
                if noticed:
                    noticed.document(document)
                yield document
            except BadRow as error:
                what = str(error)
                on_problem(
                    RowProblem(row=number, what=what, value=error.value, file=self.table.file)
                )


@dataclass
class DataSet:
    """The training data and the held-out data of a source.

    `held_out_parts` holds separate held-out data; without it a share of `parts` is held out, chosen
    by the seed.
    """

    source: str
    parts: list[Part]
    held_out_parts: list[Part]
    eval_share: float
    seed: int
    drop_bad_rows: bool = False
    long_examples: LongExamples = "auto"
    notes: tuple[str, ...] = ()
    """Sentences on how the source is read and what of it is left out, for the data report."""

    @property
    def splits(self) -> bool:
        """Whether long examples are split into pieces rather than cut."""
        is_text = all(part.shape.kind == "text" for part in self.parts)
        return self.long_examples == "split" or (self.long_examples == "auto" and is_text)

    @property
    def shape(self) -> str:
        return self.parts[0].shape.name

    @property
    def shape_reason(self) -> str:
        return self.parts[0].shape.reason

    # The following properties read every row into memory: for small data only.

    @property
    def train(self) -> list[Document]:
        return self._whole[0]

    @property
    def held_out(self) -> list[Document]:
        return self._whole[1]

    @property
    def problems(self) -> list[RowProblem]:
        return self._whole[2].first

    @property
    def rows(self) -> int:
        learned, held_out, problems = self._whole
        return len(learned) + len(held_out) + problems.count

    def require_good(self) -> None:
        """Raise DataError where a row cannot be used."""
        refuse(self._whole[2], self.rows)

    @cached_property
    def _whole(self) -> tuple[list[Document], list[Document], Problems]:
        problems = Problems()
        documents = [d for part in self.parts for d in part.documents(problems.add)]
        apart = [d for part in self.held_out_parts for d in part.documents(problems.add)]
        learned, held_out = split(_keys(documents), self, _keys(apart))
        chosen = [documents[index] for index in held_out]
        return [documents[index] for index in learned], apart or chosen, problems


def read(
    source: str,
    *,
    eval_share: float,
    seed: int,
    columns: Columns | None = None,
    held_out: str | None = None,
    drop_bad_rows: bool = False,
    long_examples: LongExamples = "auto",
    learning: Learning = ALL,
) -> DataSet:
    """Open a bundled set, a file, a folder or a Hub data set, and its held-out data.

    Raises NotFound or DataError where there is none, or its columns are not recognised. Rows are
    read later; a row that cannot be read raises DataError with its line number.
    """
    columns = columns or Columns()
    found = sources.open_source(source)
    parts = _parts(found.name, found.tables, columns)
    apart = _parts(found.name, found.held_out, columns)
    notes = found.all_notes
    if held_out:
        own = sources.open_source(held_out)
        # Chosen columns apply to held-out data only if it has them; else its own names decide.
        tables = [table.named() for table in own.tables]  # rows are named by file, too
        apart = _parts(own.name, tables, columns, parts[0].shape)
        notes += own.all_notes
    parts, apart = ([replace(part, learning=learning) for part in each] for each in (parts, apart))
    return DataSet(source, parts, apart, eval_share, seed, drop_bad_rows, long_examples, notes)


def of_run(train: Train) -> DataSet:
    """Open the data set of a run."""
    return read(
        train.data,
        eval_share=train.eval_share,
        seed=train.seed,
        columns=train.columns,
        held_out=train.held_out,
        drop_bad_rows=train.drop_bad_rows,
        long_examples=train.long_examples,
        learning=Learning.of(train),
    )


def split(keys: Keys, data: DataSet, apart: Keys) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the numbers of the training examples and of the examples held out of the same source.

    No example is on both sides: equal examples are held out together, and an example in the
    separate held-out data is not used for training.
    """
    if data.held_out_parts:
        return np.flatnonzero(~np.isin(keys, apart)), np.array([], dtype=np.int64)
    unlike = np.unique(keys)
    order = list(range(len(unlike)))
    random.Random(data.seed).shuffle(order)
    chosen = unlike[order[: _held_out_count(len(order), data.eval_share)]]
    held_out = np.isin(keys, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def refuse(problems: Problems, rows: int) -> None:
    """Raise DataError where a row cannot be used."""
    if not problems.count:
        return
    shown = "; ".join(f"{problem.place}: {problem.what}" for problem in problems.first[:3])
    more = f" and {problems.count - 3:,} more" if problems.count > 3 else ""
    error = DataError(
        f"{problems.count:,} of {rows:,} rows cannot be used: {shown}{more}.",
        cure="Fix or remove them, or choose to leave bad rows out.",
    )
    error.droppable = problems.count < rows
    raise error


def _held_out_count(examples: int, share: float) -> int:
    """Return how many distinct examples to hold out; none where there are fewer than `FEWEST`."""
    if share == 0 or examples < FEWEST:
        return 0
    return max(1, round(examples * share))


def _keys(documents: list[Document]) -> Keys:
    return np.array([document.fingerprint for document in documents], dtype=np.uint64)


def _parts(
    name: str, tables: list[Table], columns: Columns, like: Shape | None = None
) -> list[Part]:
    """Find the format of each table; raises DataError unless all tables have the same."""
    parts = []
    for table in tables:
        with sources.said_of(table, len(tables)):
            if (first := _first_of(table)) is not None:
                parts.append(Part(table, _shape_of(first, table, columns, like)))
    if tables and not parts:
        what = "has no rows" if any(table.bytes for table in tables) else "is empty"
        raise DataError(f"{name} {what}.", cure="It needs at least one example.")
    others = [part for part in parts if part.shape.spec != parts[0].shape.spec]
    if others:
        raise DataError(
            f"The files in {name} have different formats: {parts[0].table.name} is "
            f"{parts[0].shape.name}, {others[0].table.name} is {others[0].shape.name}"
            f"{f', and {len(others) - 1:,} more differ' if len(others) > 1 else ''}.",
            cure="Put files of one format into a folder, or choose one of the files itself.",
        )
    return parts


def _shape_of(first: Row, table: Table, columns: Columns, like: Shape | None) -> Shape:
    there = all(column in first for _, column in columns.named())
    shape = shape_of(first, columns if like is None or there else Columns())
    if table.is_plain_text and not columns.given:
        reason = "it is plain text: blank lines separate the examples"
        return shape._replace(reason=reason)
    return shape


def _first_of(table: Table) -> Row | None:
    return first_rows(row for _, row in table.rows())


def _to_document(number: int, row: Any, shape: Shape) -> Document:
    """Turn one row into a document; raises BadRow with what is wrong with it."""
    if isinstance(row, Broken):
        raise BadRow(row.what, row.value)
    if not isinstance(row, dict):
        raise BadRow("it has no named columns", row)
    if not shape.is_chosen:
        require_no_pair(row)
        require_no_media(row)
    content = shape.convert(row)
    there = names.beside(tuple(row))
    beside = {names.normal(name): row[name] for name in (*there.weights, *there.thoughts)}
    unlearned = weighs_nothing(beside) or any(is_rated_bad(row, name) for name in shape.rated)
    if isinstance(content, str):
        return Document(number, text="" if unlearned else content)
    content = with_thought(content, beside)
    if unlearned:
        content = [{**turn, UNLEARNED: True} for turn in content]
    tools = next((row[name] for name in there.tools), None)
    return Document(number, turns=content, tools=read_tools(tools))
