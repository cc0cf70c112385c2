"""A JSON object as rows: one row, lists of rows, or a table by columns as pandas writes it."""

from typing import Any, NamedTuple

from backend.engine.data_files import splits
from backend.errors import DataError

TURNS = ("messages", "conversations")
"""Columns whose cells are lists, so that an object with one is a row and not a list of rows."""
SPEAKERS = ("role", "from", "speaker")
Row = dict[str, Any]


class Layout(NamedTuple):
    """The rows of an object, what is held out, and sentences on how they were found."""

    rows: list[Any]
    held_out: list[Any] = []  # noqa: RUF012 - never changed
    notes: tuple[str, ...] = ()


def read_object(content: Any, name: str) -> Layout:
    """Return the rows of the only value of a file; raises DataError where it is not a table."""
    if isinstance(content, dict):
        if _is_row(content):
            return Layout([content])
        table = by_columns(content, name)
        if table:
            return table
        if lists := _lists_of_objects(content):
            return _of_lists(lists, content, name)
    raise DataError(
        f"{name} is not a list of examples.",
        cure='Write it as [{"prompt": "...", "completion": "..."}, ...].',
    )


def by_columns(content: Row, name: str) -> Layout | None:
    """Return the rows of a table that is stored by columns or by row labels, else None."""
    for read, how in (
        (_split_table, "a list of columns and a list of rows (as pandas writes them)"),
        (_columns_of_labels, "columns with a label for each row (as pandas writes them)"),
        (_labelled_rows, "rows with a label each, which is left out"),
        (_columns_of_lists, "columns with a list of cells each"),
    ):
        if rows := read(content):
            return Layout(rows, notes=(f"{name} is read as {how}.",))
    return None


def _is_row(content: Row) -> bool:
    if any(_has_objects(content.get(column)) for column in TURNS):
        return True
    values = list(content.values())
    if any(_has_turns(value) for value in values):  # a prompt and its completion as turns
        return True
    plain = all(value is None or isinstance(value, str | int | float) for value in values)
    return plain and any(isinstance(value, str) for value in values)


def _has_objects(value: Any) -> bool:
    return isinstance(value, list) and (not value or isinstance(value[0], dict))


def _has_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and any(key in value[0] for key in SPEAKERS)
    )


def _split_table(content: Row) -> list[Row] | None:
    columns, data = content.get("columns"), content.get("data")
    if not isinstance(columns, list) or not isinstance(data, list):
        return None
    if not all(isinstance(column, str) for column in columns) or len({*columns}) < len(columns):
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        return None
    return [dict(zip(columns, row, strict=True)) for row in data]


def _columns_of_labels(content: Row) -> list[Row] | None:
    values = list(content.values())
    if not values or not all(isinstance(value, dict) and value for value in values):
        return None
    labels = values[0].keys()
    if not all(label.isdigit() for label in labels):
        return None
    if any(value.keys() != labels for value in values):
        return None
    return [{column: content[column][label] for column in content} for label in labels]


def _labelled_rows(content: Row) -> list[Row] | None:
    if not content or not all(label.isdigit() for label in content):
        return None
    values = list(content.values())
    return values if all(isinstance(value, dict) for value in values) else None


def _columns_of_lists(content: Row) -> list[Row] | None:
    values = list(content.values())
    if not values or not all(isinstance(value, list) and value for value in values):
        return None
    if len({len(value) for value in values}) > 1 or any(_has_objects(value) for value in values):
        return None
    return [dict(zip(content, cells, strict=True)) for cells in zip(*values, strict=True)]


def _lists_of_objects(content: Row) -> dict[str, list[Row]]:
    """Return the lists with objects; none where a list has anything else beside them."""
    lists = {name: value for name, value in content.items() if isinstance(value, list) and value}
    objects = {name: value for name, value in lists.items() if isinstance(value[0], dict)}
    return (
        objects if all(isinstance(row, dict) for each in objects.values() for row in each) else {}
    )


def _of_lists(lists: dict[str, list[Row]], content: Row, name: str) -> Layout:
    """Choose among lists of objects; raises DataError where they have different columns."""
    notes = []
    others = [key for key, value in content.items() if isinstance(value, list) and key not in lists]
    if others:
        notes.append(f"{name} also has lists without rows, which are left out: {_named(others)}.")
    if len(lists) == 1:
        (only,) = lists.values()
        return Layout(only, notes=tuple(notes))
    if any(splits.split_of(key) for key in lists):
        chosen = splits.choose([*lists], name)
        training = [row for key in chosen.training for row in lists[key]]
        held_out = [row for key in chosen.held_out for row in lists[key]]
        return Layout(training, held_out, (*notes, *chosen.notes))
    if len({frozenset(rows[0]) for rows in lists.values()}) > 1:
        shown = "; ".join(f"{key} ({_named([*rows[0]])})" for key, rows in lists.items())
        raise DataError(
            f"{name} has lists with different columns: {shown[:300]}.",
            cure="Keep one of them in the file.",
        )
    notes.append(f"The rows of {len(lists)} lists in {name} are read: {_named([*lists])}.")
    return Layout([row for rows in lists.values() for row in rows], notes=tuple(notes))


def _named(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:5]) + (" ..." if len(names) > 5 else "")
