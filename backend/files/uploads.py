"""Uploaded files: limited in size and type, in folders named by a digest of the content."""

import hashlib
import shutil
from pathlib import Path

from backend.errors import InvalidRequest, VerificationFailed
from backend.files.atomic_files import make_folder, new_file
from backend.settings import Settings
from backend.sizes import size_text

LONGEST_STEM = 60  # at most 240 bytes in UTF-8; file systems take 255
DATA_FORMATS = (
    ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".ndjson", ".jsonlines", ".arrow",
)  # fmt: skip
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
DATA_SUFFIXES = (*DATA_FORMATS, *PACKED_SUFFIXES)
"""What a data file's name may end in; a compressed one's shows its format before that."""
ADAPTER_SUFFIXES = (".zip",)
MODEL_SUFFIXES = (".gguf",)
"""What the name of a base in one file ends in; it is not uploaded, since it takes gigabytes."""


def keep_upload(
    path: Path, name: str, settings: Settings, suffixes: tuple[str, ...] = DATA_SUFFIXES
) -> Path:
    """Copy an uploaded file into the workspace, whole or not at all.

    The folder is named by the content and the file keeps its own name, so that later messages use a
    name that the user knows. Raises InvalidRequest, or DiskFull if the disk is full.
    """
    suffix = _suffix(name)
    if not suffix.endswith(suffixes):
        kind = "a data file" if suffixes == DATA_SUFFIXES else "a zip file with an adapter"
        raise InvalidRequest(
            f"{Path(name).name} is not {kind}.", cure=f"Use one of {', '.join(suffixes)}."
        )
    if path.stat().st_size > settings.max_upload_bytes:
        raise InvalidRequest(
            f"{Path(name).name} is larger than {size_text(settings.max_upload_bytes)}."
        )
    digest = _digest(path)
    target = settings.uploads_dir / digest[:12] / _own_name(name, suffix)
    if not _holds(target, digest):
        _copy(path, target)
        if not _holds(target, digest):
            target.unlink(missing_ok=True)
            raise VerificationFailed(
                f"{target.name} was not copied correctly.", cure="Choose the file again."
            )
    return target


def _suffix(name: str) -> str:
    """Return a name's extension, with that of the format before that of a compression."""
    path = Path(name.lower())
    inner = Path(path.stem).suffix
    packed = path.suffix in PACKED_SUFFIXES and inner in DATA_FORMATS
    return inner + path.suffix if packed else path.suffix


def _copy(path: Path, target: Path) -> None:
    make_folder(target.parent)
    with new_file(target) as partial:
        shutil.copyfile(path, partial)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(target: Path, digest: str) -> bool:
    """Return whether a file exists and is complete; older versions could leave a partial one."""
    return target.is_file() and _digest(target) == digest


def _own_name(name: str, suffix: str) -> str:
    """Return the user's name for a file, without characters that a file system may reject."""
    own = Path(name).name[: -len(suffix)]
    stem = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "-" for c in own)
    return f"{stem.lstrip('.')[:LONGEST_STEM] or 'data'}{suffix}"
