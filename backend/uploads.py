"""Files that came through the page: bounded, of known kinds, in folders named by their content."""

import hashlib
import shutil
from pathlib import Path

from backend.errors import InvalidRequest
from backend.settings import Settings
from backend.sizes import size_text

LONGEST_STEM = 60  # at most 240 bytes in UTF-8; file systems take 255
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
ADAPTER_SUFFIXES = (".zip",)


def keep_upload(
    path: Path, name: str, settings: Settings, suffixes: tuple[str, ...] = DATA_SUFFIXES
) -> Path:
    """Copy an uploaded file into the workspace; raises InvalidRequest.

    The folder is named by the content, the file as its owner named it: whatever speaks of it later
    says a name that its owner knows.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in suffixes:
        kind = "a data file" if suffixes == DATA_SUFFIXES else "a zip of an adapter"
        raise InvalidRequest(
            f"{Path(name).name} is not {kind}.", cure=f"Use one of {', '.join(suffixes)}."
        )
    if path.stat().st_size > settings.max_upload_bytes:
        raise InvalidRequest(
            f"{Path(name).name} is larger than {size_text(settings.max_upload_bytes)}."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    target = settings.uploads_dir / digest / _own_name(name, suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(path, target)
    return target


def _own_name(name: str, suffix: str) -> str:
    """Return the owner's name for a file, without what a file system may not take."""
    stem = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "-" for c in Path(name).stem)
    return f"{stem.lstrip('.')[:LONGEST_STEM] or 'data'}{suffix}"
