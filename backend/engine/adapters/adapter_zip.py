"""The zip of an adapter, or of a training's whole output: only the wanted files leave it.

They are unpacked by name to a new folder; no path in a zip is ever followed. Zips made on Windows
may have backslashes in their names. Knows nothing of what the files contain.
"""

import errno
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from backend.engine.adapters.choice import MLX_WEIGHTS, Choice, choose
from backend.engine.methods.config_validation import CONFIG, shown
from backend.engine.methods.file_validation import require_no_pickle
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.bounded_zip import open_zip
from backend.files.foreign_files import open_regular
from backend.library import SIDECAR
from backend.sizes import size_text

WANTED = (CONFIG, WEIGHTS, MLX_WEIGHTS, SIDECAR)
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError,
    ValueError,
)  # fmt: skip


def unpack(path: Path, folder: Path, inside: str = "") -> Choice:
    """Copy one adapter's files out of a zip, and return which one it is.

    `inside` is a folder of the zip. Raises where it has no adapter, or several that are equal.
    """
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        raise Unsupported(
            f"{path.name} is not a zip file.", cure="Use an adapter's folder, or a zip of it."
        )
    try:
        with _opened(path) as archive:
            choice, members = _members(archive, path.name, inside)
            for file, member in members.items():
                with archive.open(member) as content, (folder / file).open("wb") as target:
                    shutil.copyfileobj(content, target, 1024 * 1024)
    except _BROKEN as error:
        raise ModelError(f"{path.name} is damaged or locked: {shown(error, 200)}.") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Python 3.11's zipfile seeks before the file's beginning if the zip says so
        raise ModelError(
            f"{path.name} is damaged: the position of a file in it is wrong."
        ) from None
    return choice


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with (
        open_regular(path, path.name) as file,
        open_zip(
            file, path.name, Unsupported, "Make a zip of the adapter's folder only."
        ) as archive,
    ):
        yield archive


def _members(
    archive: zipfile.ZipFile, name: str, inside: str
) -> tuple[Choice, dict[str, zipfile.ZipInfo]]:
    """Return which adapter is meant, and its members by the name of their file."""
    infos = archive.infolist()
    escaping = [each.filename for each in infos if _escapes(each.filename)]
    if escaping:
        raise Unsupported(
            f"{name} contains a path outside its folder: {escaping[0][:80]!r}.",
            cure="Make a zip of the adapter's folder only.",
        )
    found = [(_path(each), each) for each in infos if not _is_folder(each)]
    choice = choose((path for path, _ in found), name, asked=inside)
    beside: dict[str, zipfile.ZipInfo] = {}
    for path, member in found:
        if path.parent != choice.home:
            continue
        if path.name in beside and path.name in WANTED:
            raise ModelError(
                f"{name} contains {path.name} twice.", cure="Make a new zip of the folder."
            )
        beside[path.name] = member
    if not {WEIGHTS, MLX_WEIGHTS} & beside.keys():
        require_no_pickle(list(beside), name)
    members = {wanted: beside[wanted] for wanted in WANTED if wanted in beside}
    for file, member in members.items():
        _require_size(member, file, name)
    return choice, members


def _path(member: zipfile.ZipInfo) -> PurePosixPath:
    """Return a member's path; some programs on Windows write backslashes."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith(("/", "\\"))


def _require_size(member: zipfile.ZipInfo, file: str, name: str) -> None:
    """Raise Unsupported where a member would fill the disk or the memory.

    Unpacking never exceeds the stated size.
    """
    size, is_weights = member.file_size, file in (WEIGHTS, MLX_WEIGHTS)
    most = read_limits.ADAPTER_BYTES if is_weights else read_limits.ADAPTER_TEXT_BYTES
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
