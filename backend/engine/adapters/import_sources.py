"""Sources of adapters: the library, a folder, a zip or the Hub. Each gives a folder to scan.

From a zip only an adapter's two files are unpacked, by name, to a new folder; no path in it is ever
followed. Knows nothing of what the files contain.
"""

import errno
import lzma
import re
import shutil
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from backend.engine.core import hub_download
from backend.engine.core.job_control import Control
from backend.engine.methods.config_validation import CONFIG, shown
from backend.engine.methods.file_validation import require_no_pickle
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import ModelError, NotFound, Unsupported
from backend.fields import DISPLAY_NAME
from backend.files import read_limits
from backend.files.foreign_files import open_regular
from backend.library import LIBRARY_SOURCE, SIDECAR, Library
from backend.permissions import looks_like_path
from backend.sizes import size_text

WANTED = (CONFIG, WEIGHTS, SIDECAR)
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError,
    ValueError,
)  # fmt: skip


class Incoming(NamedTuple):
    """An adapter's files in their current folder, and its suggested name."""

    folder: Path
    name: str
    origin: str


@contextmanager
def incoming(source: str, library: Library, control: Control) -> Iterator[Incoming]:
    """Yield the folder of a source; unpacked files are removed afterwards."""
    if source.startswith(LIBRARY_SOURCE):
        info = library.get(source.removeprefix(LIBRARY_SOURCE))
        yield Incoming(library.folder(info.id), info.name, "the library")
        return
    if not looks_like_path(source):
        folder = hub_download.fetch_adapter(source, control)
        yield Incoming(folder, display_name(source.rsplit("/", 1)[-1]), f"the Hub: {source}")
        return
    path = Path(source).expanduser()
    if path.is_dir():
        yield Incoming(path, display_name(path.name), f"the folder {path.name}")
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="adapter-") as temporary:
            folder = _unpack(path, Path(temporary))
            yield Incoming(folder, display_name(path.stem), f"the file {path.name}")
    else:
        raise NotFound(
            f"There is no folder or zip called {path.name!r}.", cure="Check the path and try again."
        )


def display_name(raw: str) -> str:
    """Return a readable name from a folder's or file's name."""
    letters = unicodedata.normalize("NFKD", raw)  # accents become separate characters
    plain = "".join(each for each in letters if not unicodedata.combining(each))
    words = re.sub(r"[^A-Za-z0-9 _-]+", " ", plain)
    name = re.sub(r"\s+", " ", words).strip(" _-")[:40].strip()
    return name if DISPLAY_NAME.fullmatch(name) else "adapter"


def _unpack(path: Path, folder: Path) -> Path:
    """Copy the adapter's files out of a zip; raises where it has no adapter, or several."""
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        raise Unsupported(
            f"{path.name} is not a zip file.", cure="Use an adapter's folder, or a zip of it."
        )
    try:
        with _opened(path) as archive:
            for member in _members(archive, path.name):
                target = folder / PurePosixPath(member.filename).name
                with archive.open(member) as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1024 * 1024)
    except _BROKEN as error:
        raise ModelError(f"{path.name} is damaged or locked: {shown(error, 200)}.") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Python 3.11's zipfile seeks before the file's beginning if the zip says so
        raise ModelError(
            f"{path.name} is damaged: the position of a file in it is wrong."
        ) from None
    return folder


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose list of files, which is read as a whole, has a limited length."""
    with open_regular(path, path.name) as file:
        bounded = _BoundedReads(file, path.name)
        with zipfile.ZipFile(bounded) as archive:
            bounded.most = None
            yield archive


class _BoundedReads:
    """A file from which at most `most` bytes are read at once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.most: int | None = read_limits.ZIP_DIRECTORY_BYTES
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.most is not None and size > self.most:
            raise Unsupported(
                f"The list of files in {self._name} has {size_text(size)}, and at most "
                f"{size_text(self.most)} are read.",
                cure="Make a zip of the adapter's folder only.",
            )
        return self._file.read(size)


def _members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the members that belong to the archive's only adapter."""
    found = [each for each in archive.infolist() if not each.is_dir()]
    escaping = [each.filename for each in found if _escapes(each.filename)]
    if escaping:
        raise Unsupported(
            f"{name} contains a path outside its folder: {escaping[0][:80]!r}.",
            cure="Make a zip of the adapter's folder only.",
        )
    configs = [each for each in found if PurePosixPath(each.filename).name == CONFIG]
    if len(configs) != 1:
        count = "no" if not configs else str(len(configs))
        raise ModelError(
            f"{name} contains {count} {CONFIG}, so it is not the zip of one adapter.",
            cure="Make a zip of one adapter's folder.",
        )
    home = PurePosixPath(configs[0].filename).parent
    beside = {
        PurePosixPath(each.filename).name: each
        for each in found
        if PurePosixPath(each.filename).parent == home
    }
    if WEIGHTS not in beside:
        require_no_pickle(list(beside), name)
    members = [beside[wanted] for wanted in WANTED if wanted in beside]
    for member in members:
        _require_size(member, name)
    return members


def _require_size(member: zipfile.ZipInfo, name: str) -> None:
    """Raise Unsupported where a member would fill the disk or the memory.

    Unpacking never exceeds the stated size.
    """
    size, file = member.file_size, PurePosixPath(member.filename).name
    most = read_limits.ADAPTER_BYTES if file == WEIGHTS else read_limits.ADAPTER_TEXT_BYTES
    if size > most:
        raise Unsupported(
            f"The {file} in {name} has {size_text(size)}, and at most {size_text(most)} are read.",
            cure="Make a new zip of the adapter's folder.",
        )
    if size > read_limits.ZIP_FREE_BYTES and size > read_limits.ZIP_RATIO * member.compress_size:
        raise Unsupported(
            f"{name} unpacks to more than {read_limits.ZIP_RATIO} times its size, "
            "which weights never do.",
            cure="Make a new zip of the adapter's folder.",
        )
    if member.compress_type not in PACKED:  # other methods unpack everything at once
        raise Unsupported(
            f"{name} uses an unusual compression method.",
            cure="Make the zip again with the usual method (deflate).",
        )


def _escapes(filename: str) -> bool:
    path = PurePosixPath(filename.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in filename
