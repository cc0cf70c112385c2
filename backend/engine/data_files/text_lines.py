"""The lines of a text file, each of limited length, so that a long line cannot fill the memory.

Bytes that do not fit the file's encoding, and NULs, make a line a bad one; they never end a file.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from backend.engine.data_files.file_type import kind_of
from backend.errors import DataError
from backend.files import read_limits
from backend.files.encodings import BAD, MARKING, START, encoding_of
from backend.files.unpacking import DataFile, packing_of

Numbered = tuple[int, Any]
KINDS = "a JSONL, JSON, CSV, TSV, Parquet or text file"
SCANNED = 1 << 20
SHOWN = 100
TOO_LONG = (
    f"it is longer than {read_limits.ROW_CHARACTERS:,} characters: split it into shorter examples"
)


class Broken(NamedTuple):
    """Stands for a row that is invalid in its format; the rows after it can still be read."""

    what: str
    value: Any


class TooLong(NamedTuple):
    """Stands for a line that is too long for a row: its beginning, and its length."""

    start: str
    characters: int


def read_lines(file: DataFile) -> Iterator[str | TooLong]:
    """Yield the lines with their line ends; raises DataError where the file is not text.

    What is wrong with the text of a line, `fault` says.
    """
    with open_data(file) as text:
        yield from lines_of(text)


def lines_of(file: TextIO) -> Iterator[str | TooLong]:
    """Yield the lines of an open file with their line ends."""
    while line := file.readline(read_limits.ROW_CHARACTERS):
        if len(line) < read_limits.ROW_CHARACTERS or line.endswith("\n"):
            yield line
        else:
            yield TooLong(line[:SHOWN], len(line) + _skip_line(file))


def fault(text: str, start: int = 0, end: int | None = None) -> str:
    """Say what no text should contain: bytes of another encoding, or a NUL; empty where nothing."""
    end = len(text) if end is None else end
    if not text.isascii() and text.find(BAD, start, end) >= 0:
        return "it has bytes that do not fit the encoding of the rest of the file"
    if text.find("\0", start, end) >= 0:
        return "it contains a NUL character, which text never has"
    return ""


def shown(text: str) -> str:
    """Return a text with the usual character for one that cannot be read, to be shown."""
    return text.replace(BAD, "\ufffd")


def open_text(path: Path, name: str) -> AbstractContextManager[TextIO]:
    """Open a text file as `open_data` does."""
    return open_data(DataFile(path, name))


@contextmanager
def open_data(file: DataFile) -> Iterator[TextIO]:
    """Open a text file in its own encoding; bytes that do not fit it become the character `BAD`.

    Raises DataError where it is another kind of file.
    """
    require_text(file)
    encoding = encoding_of(file).codec
    with TextIOWrapper(file.open(), encoding=encoding, errors=MARKING) as text:
        yield text


def require_text(file: DataFile) -> None:
    """Raise DataError where a file is not text, with what it is."""
    start = file.start(START)
    kind = kind_of(start)
    if not kind:
        return
    if packing_of(start):
        raise DataError(
            f"{file.name} holds {kind}: it is compressed twice.", cure="Unpack it once yourself."
        )
    office = "Excel" in kind
    cure = "Save an Excel table as CSV." if office else f"Use {KINDS}."
    raise DataError(f"{file.name} is {kind}, although its name says otherwise.", cure=cure)


def _skip_line(file: TextIO) -> int:
    """Read to the end of a line without keeping it; return the number of characters."""
    skipped = 0
    while piece := file.readline(SCANNED):
        skipped += len(piece)
        if piece.endswith("\n"):
            break
    return skipped
