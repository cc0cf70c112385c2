"""Data files as they are stored: plain, compressed, or one of the files in a zip.

Compressed files are unpacked as they are read. What they unpack to is limited, so that a few bytes
cannot fill the memory, the disk or a day. Knows nothing of what the files contain.
"""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pyarrow as pa

from backend.errors import DataError
from backend.files import read_limits
from backend.files.bounded_zip import open_zip
from backend.files.foreign_files import BUFFER_BYTES, open_regular
from backend.sizes import size_text

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
ZIP = ".zip"
SIGNATURES = {
    b"\x1f\x8b\x08": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
DAMAGED = (
    OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
    NotImplementedError, RuntimeError, pa.ArrowException,
)  # fmt: skip
HIDDEN = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What macOS and Windows add to a zip."""


@dataclass(frozen=True)
class DataFile:
    """A file with data. `name` is for people; `member` is its path inside the zip at `path`."""

    path: Path
    name: str
    member: str = ""

    @property
    def suffix(self) -> str:
        """The extension that says how rows are written, without that of the compression."""
        return format_suffix(self.member or self.path.name)

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the file on disk: with both unchanged, so is its content."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def open(self) -> BufferedReader:
        """Open it for reading the unpacked bytes; they raise DataError where a limit is reached."""
        if self.member:
            return _open_member(self)
        packed = open_regular(self.path, self.name, DataError)
        packing = packing_of(packed.peek(8)[:8])
        if not packing:
            return packed
        return BufferedReader(_Unpacked(self, UNPACKERS[packing](packed), packed), BUFFER_BYTES)

    def start(self, size: int) -> bytes:
        """Return its first bytes."""
        with self.open() as file:
            return file.read(size)

    @property
    def is_packed(self) -> bool:
        """Whether its bytes are not simply those of the file on disk."""
        if self.member:
            return True
        with open_regular(self.path, self.name, DataError) as file:
            return bool(packing_of(file.read(8)))


def format_suffix(name: str) -> str:
    """Return the extension of a file name, without that of a compression behind it."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in PACKINGS else path.suffix


def packing_of(start: bytes) -> str:
    """Return the extension of a compression by the first bytes; empty where there is none."""
    return next((each for sign, each in SIGNATURES.items() if start.startswith(sign)), "")


@contextmanager
def on_disk(file: DataFile) -> Iterator[Path]:
    """Yield the path of an unpacked copy, for readers that go back and forth in a file."""
    if not file.is_packed:
        yield file.path
        return
    with TemporaryDirectory(prefix="data-") as folder:
        copy = Path(folder) / f"data{file.suffix}"
        with file.open() as content, copy.open("wb") as unpacked:
            while piece := content.read(BUFFER_BYTES):
                if unpacked.tell() > read_limits.UNPACKED_FILE_BYTES:
                    raise too_much(file.name, read_limits.UNPACKED_FILE_BYTES)
                unpacked.write(piece)
        yield copy


def too_much(name: str, most: int) -> DataError:
    """Return the error for a file that unpacks to more than it should."""
    return DataError(
        f"{name} unpacks to more than {size_text(most)}, far more than text of its size should.",
        cure="Check that this is the right file; repeated rows do not improve training.",
    )


def _too_many_lines(name: str, most: int) -> DataError:
    return DataError(
        f"{name} unpacks to more than {most:,} lines, far more than different rows in a file of "
        "its size.",
        cure="Check that this is the right file; repeated rows do not improve training.",
    )


def zip_members(path: Path, name: str) -> list[str]:
    """Return the names of the files in a zip, without what systems add; raises DataError."""
    try:
        with _open_zip(path, name) as archive:
            found = archive.infolist()
    except DAMAGED as error:
        raise _damaged(name, error) from None
    if len(found) > read_limits.FOLDER_ENTRIES:
        raise DataError(
            f"{name} holds {len(found):,} files, and at most {read_limits.FOLDER_ENTRIES:,} are "
            "read.",
            cure="Make a zip of the data files only.",
        )
    names = [each.filename.replace("\\", "/") for each in found if not each.is_dir()]
    kept = [each for each in names if not any(part in HIDDEN for part in each.split("/"))]
    twice = next((each for each, count in Counter(kept).items() if count > 1), None)
    if twice:
        raise DataError(f"{name} holds {twice[:80]!r} twice.", cure="Make the zip again.")
    return kept


def _open_member(file: DataFile) -> BufferedReader:
    try:
        archive = _open_zip(file.path, file.name)
        member = next(
            each for each in archive.infolist() if each.filename.replace("\\", "/") == file.member
        )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # `zipfile` of Python 3.11 unpacks the others without a limit on the memory.
            raise NotImplementedError("it uses an unusual compression method")
        content = archive.open(member)
    except (*DAMAGED, StopIteration) as error:
        raise _damaged(file.name, error) from None
    return BufferedReader(_Unpacked(file, content, archive), BUFFER_BYTES)


def _open_zip(path: Path, name: str) -> zipfile.ZipFile:
    file = open_regular(path, name, DataError)
    return open_zip(file, name, DataError, "Make a zip of the data files only.")


class _Unpacked(RawIOBase):
    """The unpacked bytes of a file, up to the limits. Closes what it was given with itself."""

    def __init__(self, file: DataFile, content: Any, *below: Any) -> None:
        self._file, self._content, self._below = file, content, below
        size = file.path.stat().st_size
        ratio = read_limits.DATA_UNPACKED_RATIO * size
        self._most = min(
            max(read_limits.DATA_UNPACKED_FREE_BYTES, ratio), read_limits.DATA_UNPACKED_BYTES
        )
        self._most_lines = max(read_limits.DATA_LINES_FREE, read_limits.DATA_LINES_RATIO * size)
        self._read = self._lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._content.read(len(buffer))
        except DataError:
            raise
        except DAMAGED as error:
            raise _damaged(self._file.name, error) from None
        self._read += len(piece)
        if self._read > self._most:
            raise too_much(self._file.name, self._most)
        self._lines += max(piece.count(b"\n"), piece.count(b"\r"))
        if self._lines > self._most_lines:
            raise _too_many_lines(self._file.name, self._most_lines)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            for each in (self._content, *self._below):
                each.close()
        super().close()


class _Xz:
    """Unpacks xz with a limit on the memory, which `LZMAFile` does not offer."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._decoder = packed, self._new()

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._packed.read(BUFFER_BYTES)
                rest = rest.lstrip(b"\0")  # streams may be padded with zeros
                if not rest:
                    return b""
                self._decoder = self._new()
            elif self._decoder.needs_input:
                rest = self._packed.read(BUFFER_BYTES)
                if not rest:
                    raise EOFError("the file ends before its content does")
            else:
                rest = b""
            if piece := self._decoder.decompress(rest, size):
                return piece

    def close(self) -> None:
        pass

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=read_limits.UNPACKER_BYTES)


class _Zstd:
    """Unpacks zstd through Arrow; its decoder refuses windows above 128 MB."""

    def __init__(self, packed: BinaryIO) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")

    def read(self, size: int) -> bytes:
        return bytes(self._stream.read(size))

    def close(self) -> None:
        self._stream.close()


UNPACKERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed, mode="rb"),
    ".bz2": bz2.BZ2File,
    ".xz": _Xz,
    ".zst": _Zstd,
}


def _damaged(name: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(
        f"{name} is damaged or locked and cannot be unpacked ({str(error)[:100]}).",
        cure="Make or download it again, or unpack it yourself and use the file inside.",
    )
