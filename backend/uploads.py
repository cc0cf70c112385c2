"""Files that came through the page: bounded, of known kinds, named by their content."""

import hashlib
import shutil
from pathlib import Path

from backend.errors import InvalidRequest
from backend.settings import Settings

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def keep_upload(path: Path, name: str, settings: Settings) -> Path:
    """Copy an uploaded file into the workspace under its content's hash; raises InvalidRequest."""
    suffix = Path(name).suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise InvalidRequest(
            f"{Path(name).name} is not a data file.",
            cure=f"Use one of {', '.join(DATA_SUFFIXES)}.",
        )
    if path.stat().st_size > settings.max_upload_bytes:
        limit = settings.max_upload_bytes // 1024**2
        raise InvalidRequest(f"{Path(name).name} is larger than {limit} MB.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(name).stem)[:60]
    target = settings.uploads_dir / f"{stem}-{digest}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(path, target)
    return target
