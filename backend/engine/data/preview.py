"""The preview of training data as the model would see it, and the preparation of large data.

Changes nothing in the session. Uses the tokenizer of the loaded base, whose weights may be in
another process.
"""

import time
from itertools import islice
from typing import Any

from backend.engine.core.job_control import Control
from backend.engine.data import dataset, tokenization
from backend.engine.data.chat_rendering import is_blank
from backend.engine.data.dataset import DataSet, Document, Learning, Noticed
from backend.engine.data.row_formats import first_row
from backend.engine.data.statistics import columns_of, join_noticed, open_placeholders
from backend.engine.data.token_arrays import Tokens
from backend.engine.data.token_cache import TokenStore
from backend.engine.data.unfit_rows import Unfit
from backend.engine.data_files.sources import count_some, first_rows, open_source
from backend.engine.hub_data import description
from backend.engine.models import model_skeleton
from backend.engine.session import Session
from backend.errors import DataError, NotFound
from backend.files import read_limits
from backend.requests import PrepareData, PreviewData
from backend.results import (
    DataPreview,
    DataStats,
    Example,
    ModelFacts,
    PreparedData,
    Problem,
    RowProblem,
)

SHOWN_LENGTH = 20_000
LOOKED_AT = 50
"""So many rows are looked at for columns that the first one does not have."""
QUICK_BYTES = 2 * 1024**2
"""So many bytes are checked in a few seconds even on slow machines."""


def preview(
    request: PreviewData,
    session: Session,
    control: Control,
    *,
    facts: ModelFacts | None,
    store: TokenStore,
) -> DataPreview:
    """Return the first examples as the model would see them, and the rows that cannot be used.

    Where the columns are not recognised, the preview has no format: the user has to choose columns.
    """
    tokenizer = _tokenizer(session, facts)
    description.fetch_all([request.data], control)
    columns = _columns(request.data)
    try:
        source = dataset.read(
            request.data, eval_share=0.0, seed=0, columns=request.columns,
            drop_bad_rows=request.drop_bad_rows, long_examples=request.long_examples,
            learning=Learning.of(request),
        )  # fmt: skip
    except DataError as error:
        if request.columns.given or not columns:
            raise
        return _unrecognised(request.data, columns, error)
    noticed = Noticed()
    problems, examples = _first_examples(source, tokenizer, request, noticed)
    parts = [*source.parts, *source.held_out_parts]
    quick = _is_quick(source) or all(store.knows(part, tokenizer) for part in parts)
    shown = DataPreview(
        rows=0,
        problems=problems,
        stats=None,
        examples=examples,
        bad=len(problems),
        shape=source.shape,
        shape_reason=source.shape_reason,
        notes=source.notes,
        columns=columns,
        quick=quick,
        **_noticed(source, noticed),
    )
    if not request.every_row:
        rows, is_all = count_some([part.table for part in parts])
        return shown.model_copy(update={"rows": rows, "more_rows": not is_all})
    prepared = tokenization.prepare(source, tokenizer, store=store, control=control)
    return shown.model_copy(
        update={
            "rows": prepared.rows,
            "problems": prepared.problems.first,
            "bad": prepared.problems.count,
            "stats": _stats(source, prepared, request),
            **_noticed(source, join_noticed(prepared.main, prepared.apart)),
        }
    )


def _noticed(source: DataSet, noticed: Noticed) -> dict[str, Any]:
    """Return what the columns are read as, and the placeholders without a text."""
    part = source.parts[0]
    return {
        "uses": columns_of(part.shape, noticed),
        "placeholders": open_placeholders(noticed, part.learning),
    }


def prepare(
    request: PrepareData,
    session: Session,
    control: Control,
    *,
    facts: ModelFacts | None,
    store: TokenStore,
) -> PreparedData:
    """Tokenise a data set and keep the tokens on disk for later use."""
    started = time.monotonic()
    tokenizer = _tokenizer(session, facts)
    description.fetch_all([request.data, request.held_out], control)
    source = dataset.read(
        request.data, eval_share=0.0, seed=0, columns=request.columns, held_out=request.held_out,
        learning=Learning.of(request),
    )  # fmt: skip
    prepared = tokenization.prepare(source, tokenizer, store=store, control=control)
    return PreparedData(
        rows=prepared.rows,
        bad=prepared.problems.count,
        tokens=len(prepared.main.ids) + len(prepared.apart.ids),
        seconds=time.monotonic() - started,
    )


def _tokenizer(session: Session, facts: ModelFacts | None) -> Any:
    if session.facts is not None:
        return session.base.tokenizer
    if facts is None:
        raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
    return model_skeleton.tokenizer(facts)


def _columns(source: str) -> tuple[str, ...]:
    """Return the names of the columns in the first rows; none where rows have none."""
    try:
        rows = first_rows(open_source(source).tables)
        found = dict.fromkeys(map(str, first_row(rows)))
        for row in islice(rows, LOOKED_AT):
            if isinstance(row, dict) and len(found) < read_limits.COLUMNS:
                found |= dict.fromkeys(map(str, row))
        return tuple(found)
    except DataError:
        return ()


def _unrecognised(source: str, columns: tuple[str, ...], error: DataError) -> DataPreview:
    """Return a preview without a format: unknown columns, or rows that are not for this."""
    opened = open_source(source)
    rows, is_all = count_some(opened.tables)
    shown = DataPreview(
        rows=rows, more_rows=not is_all, problems=[], stats=None, examples=[], columns=columns,
        notes=opened.all_notes,
    )  # fmt: skip
    if not isinstance(error, Unfit):
        return shown
    instead = error.instead.model_dump(exclude_none=True) if error.instead else {}
    unfit = Problem(what=error.what, cure=error.cure)
    return shown.model_copy(update={"unfit": unfit, "instead": instead})


def _is_quick(source: DataSet) -> bool:
    parts = [*source.parts, *source.held_out_parts]
    return sum(part.table.bytes for part in parts) <= QUICK_BYTES


def _first_examples(
    source: DataSet, tokenizer: Any, request: PreviewData, noticed: Noticed
) -> tuple[list[RowProblem], list[Example]]:
    """Return the first rows; a row that the base's template cannot render is a problem."""
    problems: list[RowProblem] = []
    examples: list[Example] = []
    documents = (d for part in source.parts for d in part.documents(problems.append, noticed))
    for document in islice(documents, request.rows):
        try:
            texts = tokenization.encode(
                [document], tokenizer, request.max_length, Learning.of(request)
            )
            examples += [_example(document, shown, tokenizer) for shown in texts]
        except DataError as error:
            problems.append(RowProblem(row=document.row, what=error.what))
    return problems, examples


def _stats(
    source: DataSet, prepared: tokenization.Prepared, request: PreviewData
) -> DataStats | None:
    """Return statistics of the usable rows; None where no token has a loss."""
    try:
        return tokenization.assemble(source, prepared, max_length=request.max_length).stats
    except DataError:
        return None


def _example(document: Document, shown: Tokens, tokenizer: Any) -> Example:
    """Join neighbouring tokens with loss, or without, into pieces of text."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    flags = shown.learned.tolist()
    for index in range(1, len(flags) + 1):
        if index == len(flags) or flags[index] != flags[start]:
            text = tokenizer.decode(shown.ids[start:index].tolist())
            pieces.append((text[:SHOWN_LENGTH], flags[start]))
            start = index
    return Example(
        pieces=pieces,
        tokens=len(shown),
        cut=shown.cut,
        row=document.row,
        left_out=_why_left_out(document, flags),
    )


def _why_left_out(document: Document, learned: list[bool]) -> str:
    """Say why no token has a loss; nothing predicts a document's first token."""
    if any(learned[1:]):
        return ""
    if is_blank(document):
        return "it has no answer or text to learn from"
    return "its answer starts after the longest example length"
