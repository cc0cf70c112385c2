"""The real type of a file, from its first bytes; its extension may be wrong."""

from pathlib import Path

from backend.errors import DataError
from backend.files.encodings import is_binary
from backend.files.foreign_files import open_regular

LONGEST = 512
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a sound, video or WebP picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive or an Excel or Word file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"{\\rtf", "an RTF document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ID3", "a sound"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
)


def real_kind(path: Path) -> str:
    """Return a file's type by its content; empty where its first bytes are not recognised.

    Raises DataError where it is not a regular file.
    """
    with open_regular(path, path.name, DataError) as file:
        return kind_of(file.read(LONGEST))


def kind_of(start: bytes) -> str:
    """Return the type of a file by its first bytes; empty where it may be text."""
    for signature, name in SIGNATURES:
        if start.startswith(signature):
            return name
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return "not text" if is_binary(start) else ""
