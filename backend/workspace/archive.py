"""The zip file of an exported workspace: allowed contents, writing, and safe reading.

`manifest.json` lists every file with its size and SHA-256. Only files with known names are written
or read, so no name can point outside the workspace.
"""

import errno
import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from backend.errors import DiskFull, InvalidRequest, Unsupported
from backend.files.destinations import require_destination
from backend.settings import VERSION, Settings
from backend.sizes import size_text
from backend.workspace.versions import FORMAT

MANIFEST, SESSION, QUEUE = "manifest.json", "session.json", "queue.json"
KIND = "adapter-workbench workspace"
BLOCK = 1024 * 1024
MOST_FILES = 200_000
MOST_TEXT_BYTES = 64 * 1024**2
"""Limit for files that are read as a whole; events are read line by line and may be longer."""
MOST_RATIO = 100
SPARE_BYTES = 256 * 1024**2

_FILE = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,100}"
_PART = re.compile(
    rf"{SESSION}|{QUEUE}"
    rf"|adapters/ad_[0-9a-f]{{6,32}}/{_FILE}\.(safetensors|json|jinja|md|txt)"
    rf"|runs/[A-Za-z0-9_-]{{1,100}}/{_FILE}\.(json|jsonl|txt)"
    rf"|runs/[A-Za-z0-9_-]{{1,100}}/(best|checkpoints/checkpoint-\d{{1,9}})/"
    rf"{_FILE}\.(safetensors|json|jinja|md|txt|pt|pth)"
)
_PACKED = (".json", ".jsonl", ".jinja", ".md", ".txt")
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError
)  # fmt: skip

Progress = Callable[[str, float], None]
"""Called with the current activity and its progress from 0 to 1; it may raise Stopped."""


def quietly(doing: str, done: float) -> None:
    """Ignore the progress."""


class Entry(BaseModel):
    """One file: its size and its SHA-256."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The contents of `manifest.json`."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["adapter-workbench workspace"]
    format: int
    app_version: str
    created: float
    files: dict[str, Entry]


def is_part(name: str) -> bool:
    """Return whether a file of this name may be in an export."""
    return _PART.fullmatch(name) is not None


# --- writing ---


def require_new_zip(target: Path, settings: Settings) -> None:
    """Raise InvalidRequest if a path cannot be used for a new zip file; nothing is replaced."""
    if target.suffix.lower() != ".zip":
        raise InvalidRequest(f"{target.name} does not end in .zip.", cure=f"Try {target.name}.zip.")
    if target.exists():
        raise InvalidRequest(f"{target} already exists.", cure="Choose a new file name.")
    require_destination(target, settings, None)


class Writer:
    """Fills an export, file by file, and adds the manifest at the end."""

    def __init__(self, archive: zipfile.ZipFile, created: float) -> None:
        self._archive = archive
        self._created = created
        self.entries: dict[str, Entry] = {}

    def add(self, name: str, source: IO[bytes]) -> None:
        """Stream a file into the zip; weights are not compressed, since that saves very little."""
        with self._archive.open(_info(name), "w", force_zip64=True) as target:
            self.entries[name] = copy(source, target)

    def add_text(self, name: str, text: str) -> None:
        """Add a short text."""
        data = text.encode("utf-8")
        self._archive.writestr(_info(name), data)
        self.entries[name] = Entry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def finish(self) -> None:
        """Write the manifest."""
        manifest = Manifest(
            kind=KIND,
            format=FORMAT,
            app_version=VERSION,
            created=self._created,
            files=self.entries,
        )
        self._archive.writestr(_info(MANIFEST), manifest.model_dump_json(indent=1))


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    packed = name.endswith(_PACKED)
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    return info


def copy(source: IO[bytes], target: IO[bytes] | None = None) -> Entry:
    """Read a stream to its end, copy it to `target` if given, and return its digest."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(BLOCK):
        digest.update(block)
        size += len(block)
        if target is not None:
            target.write(block)
    return Entry(bytes=size, sha256=digest.hexdigest())


def digest_of(file: Path) -> Entry:
    """Return a file's size and digest."""
    with file.open("rb") as stream:
        return copy(stream)


# --- reading ---


class Reader:
    """A checked export that is not unpacked yet."""

    def __init__(self, archive: zipfile.ZipFile, manifest: Manifest, title: str) -> None:
        self._archive = archive
        self.manifest = manifest
        self.title = title

    def unpack(self, folder: Path, progress: Progress) -> None:
        """Write every file into a folder; raises InvalidRequest if one is damaged."""
        for name in self._each("Unpacking", progress):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                self._read(name, file)

    def compare(self, progress: Progress) -> None:
        """Compare every file with its digest; raises InvalidRequest if one is damaged."""
        for name in self._each("Comparing", progress):
            self._read(name)

    def _each(self, doing: str, progress: Progress) -> Iterator[str]:
        """Yield each name and report the progress in bytes."""
        whole = sum(entry.bytes for entry in self.manifest.files.values()) or 1
        done = 0
        for name, entry in self.manifest.files.items():
            progress(doing, done / whole)
            yield name
            done += entry.bytes

    def _read(self, name: str, target: IO[bytes] | None = None) -> None:
        try:
            with self._archive.open(name) as source:
                found = copy(source, target)
        except _BROKEN as error:
            raise _damaged(self.title, name, error) from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # With a bad offset, Python 3.11's zipfile seeks to before the start of the zip file
            raise _damaged(self.title, name, error) from None
        if found != self.manifest.files[name]:
            raise _damaged(self.title, name)


@contextmanager
def opened(path: Path, *, room: Path | None = None) -> Iterator[Reader]:
    """Open an export and check everything possible before it is unpacked into `room`.

    Raises InvalidRequest, Unsupported or DiskFull.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InvalidRequest(
            f"{path.name} is not an exported workspace.",
            cure="Choose the zip file that Export workspace wrote.",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            manifest = _manifest(archive, members, path.name)
            if room is not None:
                _require_room(manifest, room)
            yield Reader(archive, manifest, path.name)
    except zipfile.BadZipFile as error:
        raise _damaged(path.name, "its directory", error) from None


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name; raises if one of them cannot be from an export."""
    found = [info for info in archive.infolist() if not info.is_dir()]
    if len(found) > MOST_FILES:
        raise Unsupported(f"{path.name} contains {len(found):,} files, more than {MOST_FILES:,}.")
    members = {info.filename: info for info in found}
    if len({name.casefold() for name in members}) < len(found):
        raise Unsupported(f"{path.name} contains two files with the same name.")
    for info in found:
        _require_plain(info, path.name)
    size, stored = path.stat().st_size, sum(info.compress_size for info in found)
    unpacked = sum(info.file_size for info in found)
    if stored > size or unpacked > max(MOST_RATIO * size, MOST_RATIO * BLOCK):
        raise Unsupported(
            f"{path.name} unpacks to {size_text(unpacked)}, which no export of "
            f"{size_text(size)} does.",
            cure="Export the workspace again.",
        )
    return members


def _require_plain(info: zipfile.ZipInfo, title: str) -> None:
    """Raise Unsupported if a member is a link, encrypted, or has an unknown name."""
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG):
        raise Unsupported(f"{title} contains {_shown(info.filename)}, which is a link or a device.")
    if info.flag_bits & 0x1:
        raise Unsupported(f"{title} is encrypted.", cure="Export the workspace again.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unsupported(f"{title} uses a compression that an export never uses.")
    if info.filename != MANIFEST and not is_part(info.filename):
        raise Unsupported(
            f"{title} contains {_shown(info.filename)}, which is not part of an export.",
            cure="Choose the zip file that Export workspace wrote.",
        )


def _manifest(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], title: str
) -> Manifest:
    info = members.pop(MANIFEST, None)
    if info is None:
        raise InvalidRequest(
            f"{title} is not an exported workspace: it has no {MANIFEST}.",
            cure="Choose the zip file that Export workspace wrote.",
        )
    try:
        if info.file_size > MOST_TEXT_BYTES:
            raise ValueError("it is too large")
        manifest = Manifest.model_validate_json(archive.read(info))
    except (*_BROKEN, ValidationError) as error:
        raise _damaged(title, MANIFEST, error) from None
    if manifest.format > FORMAT:
        raise Unsupported(
            f"{title} was exported by version {_shown(manifest.app_version)} of the app, in format "
            f"{manifest.format}. This version ({VERSION}) knows formats up to {FORMAT}.",
            cure="Update the app first.",
        )
    listed = {name: entry.bytes for name, entry in manifest.files.items()}
    if listed != {name: info.file_size for name, info in members.items()}:
        raise InvalidRequest(
            f"{title} is not complete: its files differ from the list in its {MANIFEST}.",
            cure="Copy it again, or export the workspace again.",
        )
    return manifest


def _require_room(manifest: Manifest, room: Path) -> None:
    needed = sum(entry.bytes for entry in manifest.files.values()) + SPARE_BYTES
    free = shutil.disk_usage(room).free
    if needed > free:
        raise DiskFull(
            f"The import needs {size_text(needed)} of disk space, but {size_text(free)} are free.",
            cure="Free some disk space, then try again.",
        )


def _damaged(title: str, name: str, error: Exception | None = None) -> InvalidRequest:
    return InvalidRequest(
        f"{title} is damaged: {_shown(name)} differs from what was exported.",
        cure="Copy it again, or export the workspace again. Nothing was changed.",
        details="" if error is None else str(error),
    )


def _shown(text: str) -> str:
    """Return a foreign text in a form that is safe to show: short and on one line."""
    return repr("".join(c if c.isprintable() else "?" for c in text[:80]))
