"""Files of the Hub in its cache, downloaded so that a second attempt continues the first.

huggingface_hub 2.4.0 removes what an interrupted download of a file left, and starts it again. Here
the beginning is kept under its own name beside the blob. Whatever was put together is compared with
the digest that the Hub states, and only then takes its place in the cache.
"""

import hashlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx2  # the HTTP client of huggingface_hub 2
from filelock import FileLock, Timeout
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)
from tqdm.auto import tqdm

from backend.engine.core.job_control import Control
from backend.errors import Stopped, VerificationFailed
from backend.sizes import size_text

WHOLE_BYTES = 1024**2
"""Smaller files are downloaded at once: they are done before a stop would be noticed."""
BLOCK_BYTES = 1 << 18
PARTIAL = 206
ATTEMPTS = 5
"""Connections in a row that bring nothing before the download fails."""
PAUSE_SECONDS = 1.0
LOCK_SECONDS = 1.0
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_SILENT = io.StringIO()


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one commit, or at a branch where the cache has to know it."""

    id: str
    revision: str | None
    kind: Literal["model", "dataset"] = "model"

    @property
    def blobs(self) -> Path:
        """The folder of the cache that holds the content of its files."""
        name = repo_folder_name(repo_id=self.id, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE) / name / "blobs"

    def cached(self, name: str) -> Path | None:
        """Return a file that is in the cache; None where it is not."""
        found = try_to_load_from_cache(self.id, name, revision=self.revision, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None


class Progress:
    """The progress of a download of several files, and the place where it is stopped.

    `added` is the number of bytes that came over the line.
    """

    def __init__(self, name: str, total: int, control: Control | None) -> None:
        self.added = 0
        self._name, self._total, self._control = name, total, control
        self._complete = 0
        self._started = time.monotonic()

    def check_stop(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self._control is not None and self._control.stop_requested:
            raise Stopped(
                f"The download of {self._name} was stopped, as requested.",
                cure="What has arrived is kept: the next attempt continues there.",
            )

    def add(self, count: int, of_file: int) -> None:
        """Note that so many bytes arrived, and so many of the current file are there."""
        self.check_stop()
        self.added += count
        done = self._complete + of_file
        if self._control is None or not self._total:
            return
        text = f"Downloading {self._name}: {size_text(done)} of {size_text(self._total)}"
        rate = self.added / max(time.monotonic() - self._started, 1e-3)
        left = max(self._total - done, 0) / rate if rate else None
        self._control.progress(text, min(done / self._total, 1.0), left)

    def finish(self, size: int) -> None:
        """Note that a file is complete."""
        self._complete += size


def fetch(repository: Repository, name: str, progress: Progress) -> Path:
    """Return a file in the Hub's cache, downloading what of it is missing.

    Raises Stopped, VerificationFailed, and the errors of huggingface_hub.
    """
    progress.check_stop()
    found = repository.cached(name)
    if found is None:
        url = hf_hub_url(
            repository.id, name, repo_type=repository.kind, revision=repository.revision
        )
        about = get_hf_file_metadata(url)
        if _is_resumable(about):
            _complete(repository, url, about, progress)
        # With the blob in place, this only gives it its name in the cache.
        found = Path(
            hf_hub_download(
                repository.id,
                name,
                repo_type=repository.kind,
                revision=repository.revision,
                tqdm_class=_silent_bar(progress),
            )
        )
    progress.finish(found.stat().st_size)
    return found


def kept_bytes(repository: Repository, name: str, digest: str) -> int:
    """Return how many bytes of a file are on this machine, whole or as a beginning."""
    if (whole := repository.cached(name)) is not None:
        return whole.stat().st_size
    begun = _begun(repository, digest)
    return begun.stat().st_size if digest and begun.is_file() else 0


def _is_resumable(about: HfFileMetadata) -> bool:
    if about.size is None or not DIGEST.fullmatch(about.etag or ""):
        return False
    return WHOLE_BYTES < about.size <= constants.MAX_HTTP_DOWNLOAD_SIZE


def _complete(repository: Repository, url: str, about: HfFileMetadata, progress: Progress) -> None:
    """Put a file's content into the cache, continuing what an earlier attempt left."""
    assert about.etag is not None
    assert about.size is not None
    blob, begun = repository.blobs / about.etag, _begun(repository, about.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _Alone(begun, progress.check_stop):
        if blob.exists():
            return
        if begun.exists() and begun.stat().st_size > about.size:
            begun.unlink()
        _receive(url, begun, about.size, progress)
        _require_same(begun, about.etag, url.rsplit("/", 1)[-1], progress)
        begun.replace(blob)


def _receive(url: str, begun: Path, size: int, progress: Progress) -> None:
    """Append what is missing of a file; a connection that breaks is made again."""
    attempts, had = 0, -1
    with begun.open("ab") as file:
        while (there := file.tell()) < size:
            attempts = 0 if there > had else attempts + 1
            had = there
            try:
                _append(url, file, size, progress)
            except httpx2.TransportError:
                if attempts >= ATTEMPTS:
                    raise
                progress.check_stop()
                time.sleep(PAUSE_SECONDS)


def _append(url: str, file: BinaryIO, size: int, progress: Progress) -> None:
    """Append the rest of a file, never more than its size."""
    there = file.tell()
    # Of a compressed response, the ranges would count other bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={there}-"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if response.status_code != PARTIAL:  # the whole file
            file.truncate(0)
            file.seek(0)
            there = 0
        for block in response.iter_bytes(BLOCK_BYTES):
            file.write(block[: size - there])
            there += len(block)
            progress.add(len(block), min(there, size))
            if there >= size:
                return
    if there < size:
        raise httpx2.ReadError("the connection ended too early")


def _silent_bar(progress: Progress) -> type[tqdm]:
    """Return a progress bar class that draws nothing and passes the bytes on."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": _SILENT})

        def display(self, *args: Any, **kwargs: Any) -> None:
            """Draw nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            progress.add(int(n or 0), int(self.n))
            return shown

    return Bar


def _begun(repository: Repository, etag: str) -> Path:
    return repository.blobs / f"{etag}.workbench.incomplete"


def _require_same(file: Path, etag: str, name: str, progress: Progress) -> None:
    """Raise VerificationFailed, and delete the file, where it is not what the Hub has."""
    digest = _digest(etag, file.stat().st_size)
    with file.open("rb") as content:
        while block := content.read(BLOCK_BYTES):
            progress.check_stop()
            digest.update(block)
    if digest.hexdigest() != etag:
        file.unlink()
        raise VerificationFailed(
            f"{name} arrived damaged: its content is not what the Hub states. It was removed.",
            cure="Download it again.",
        )


def _digest(etag: str, size: int) -> Any:
    """Return the hash that an ETag is of: git's for files in git, SHA-256 for large ones."""
    if len(etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


class _Alone:
    """Holds the lock of a file; a stop ends the wait for another process that downloads it."""

    def __init__(self, file: Path, check_stop: Callable[[], None]) -> None:
        self._lock = FileLock(file.with_name(f"{file.name}.lock"))
        self._check_stop = check_stop

    def __enter__(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=LOCK_SECONDS)
                return
            except Timeout:
                self._check_stop()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
