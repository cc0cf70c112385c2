"""Data sets of the Hugging Face Hub, loaded by `datasets` from files of their own repository only.

`datasets` 5.2.0 reads the name `text`, `json` and similar as a reader of the working folder, the
name of an existing folder as that folder, and `buckets/x` as a storage bucket. A repository's
README may name any local file or any address as its data, and columns whose cells are opened as
paths. All of that is refused here.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2  # the HTTP client of huggingface_hub 2
import yaml
from datasets import Dataset, DatasetBuilder, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import DatasetCard, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from backend.engine.data_files.hub_files import require_bounded
from backend.errors import DataError, NotFound, WorkbenchError
from backend.files import read_limits
from backend.files.foreign_files import read_text

README, STANDALONE = "README.md", ".huggingface.yaml"
READ = ("json", "csv", "parquet", "text")
"""The readers of `datasets` that are allowed; others open archives, pictures or databases."""
ROWS_AT_ONCE = 1000
NO_CONNECTION = (
    LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, httpx2.TransportError
)  # fmt: skip
NOT_GIVEN = (DatasetNotFoundError, FileNotFoundError, HfHubHTTPError, *NO_CONNECTION)


def require_id(source: str) -> None:
    """Raise NotFound where a name cannot be the id of a data set on the Hub."""
    owner = source.split("/", 1)[0]
    if source in FORMATS or owner in ("buckets", "datasets"):
        what = "a file format" if source in FORMATS else "a part of the Hub"
        raise NotFound(
            f"{source!r} is the name of {what}, not of a data set.",
            cure="Write the full path of your file, or an id such as owner/name.",
        )
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise NotFound(
            f"{source!r} is neither a data set on this machine nor a Hub id.",
            cure="Ids look like owner/name.",
        ) from None


def load_train_split(id: str) -> Dataset:
    """Return the `train` split of a data set; raises NotFound or DataError."""
    require_id(id)
    try:
        builder = _builder(id)
        builder.download_and_prepare()
        split = builder.as_dataset(split="train")
    except WorkbenchError:
        raise
    except NOT_GIVEN as error:
        raise _not_there(id, error) from None
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(f"The data set {id!r} cannot be read: {error}.") from None
    assert isinstance(split, Dataset)
    return split


def rows(split: Dataset) -> Iterator[Any]:
    """Yield the rows as they are stored.

    For columns of pictures or sounds, `datasets` would open the paths in the cells, which may be
    any path.
    """
    for batch in split.data.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _builder(id: str) -> DatasetBuilder:
    """Return the builder of a data set, after checking everything that it will open."""
    commit = _commit(id)
    if not commit:
        return Cache(repo_id=id, dataset_name=id.split("/")[-1], version="auto", hash="auto")
    for name in (README, STANDALONE):
        require_own_files(_metadata(id, name, commit), id)
    # With a scheme no local folder of this name is used, and with a commit no host other than the
    # Hub is contacted.
    builder: DatasetBuilder = load_dataset_builder(f"hf://datasets/{id}", revision=commit)
    _require_read(type(builder).__module__.rsplit(".", 1)[-1], id)
    if not Path(builder.cache_dir).exists():  # otherwise it was prepared before
        for address in _addresses(builder):
            name = f"{PurePosixPath(address).name} of {id}"
            require_bounded(_download(address, id, commit), name)
    return builder


def _commit(id: str) -> str:
    """Return the newest commit; empty where only an earlier prepared copy is available.

    Raises NotFound where the Hub has no such data set, or is offline and there is no earlier copy.
    """
    try:
        return str(HfApi().dataset_info(id).sha)
    except NO_CONNECTION as error:
        # `datasets` caches local folders in the same place, by their last name.
        if try_to_load_from_cache(id, README, repo_type="dataset") is None:
            raise _not_there(id, error) from None
        return ""


def _metadata(id: str, name: str, commit: str) -> dict[str, Any]:
    """Return a repository's metadata about its data; empty where it has none."""
    try:
        if name == README:  # the cache then knows the newest commit, also without a connection
            hf_hub_download(id, name, repo_type="dataset")
        path = Path(hf_hub_download(id, name, repo_type="dataset", revision=commit))
    except EntryNotFoundError:
        return {}
    text = read_text(path, read_limits.CARD_BYTES, f"The {name} of {id}", DataError)
    try:  # the README is parsed as `datasets` does it, so that both see the same
        said = DatasetCard(text).data.to_dict() if name == README else yaml.safe_load(text)
    except yaml.YAMLError:
        raise DataError(f"The metadata in the {name} of {id} is not valid YAML.") from None
    return said if isinstance(said, dict) else {}


def require_own_files(said: dict[str, Any], id: str) -> None:
    """Raise DataError where a data set's metadata names data outside its own repository."""
    configurations = said.get("configs") or []
    for each in configurations if isinstance(configurations, list) else [configurations]:
        if not isinstance(each, dict):
            continue
        for name in (*_texts(each.get("data_files")), *_texts(each.get("data_dir"))):
            if not _is_inside(name):
                raise DataError(
                    f"The data set {id!r} refers to data outside its own files: {name[:200]!r}.",
                    cure="Use another data set, or download the file and enter its path.",
                )


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a YAML value; names of splits are included and harmless."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _is_inside(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in pattern
        or ":" in pattern  # any scheme, chained schemes (`::`) and Windows drives
        or pattern.startswith("~")
    )


def _require_read(reader: str, id: str) -> None:
    if reader not in READ:
        raise DataError(
            f"The data set {id!r} is stored as {reader}, which is not supported.",
            cure="Use a data set of Parquet, JSONL, JSON, CSV or text files.",
        )


def _addresses(builder: DatasetBuilder) -> list[str]:
    files = builder.config.data_files or {}
    return [str(address) for split in files.values() for address in split]


def _download(address: str, id: str, commit: str) -> Path:
    """Download a data file of the repository into the Hub cache, where `datasets` finds it."""
    prefix = f"hf://datasets/{id}@{commit}/"
    if not address.startswith(prefix):
        raise DataError(f"The data set {id!r} refers to data outside its own files: {address!r}.")
    name = address.removeprefix(prefix)
    return Path(hf_hub_download(id, name, repo_type="dataset", revision=commit))


def _not_there(id: str, error: Exception) -> NotFound:
    return NotFound(
        f"The data set {id!r} is not on this machine and could not be downloaded from the Hub.",
        cure="Check the spelling and the internet connection, or upload a file.",
        details=str(error),
    )
