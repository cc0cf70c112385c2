"""The description of a Hub data set before its download, and the download with its checks."""

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from datasets import config
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from huggingface_hub.hf_api import DatasetInfo, RepoFile

from backend import hub_names
from backend.engine.core.disk import free, require_free
from backend.engine.core.hub_download import NO_CONNECTION, explain, how_to_get_access
from backend.engine.core.job_control import Control
from backend.engine.core.resumed_download import Repository, kept_bytes
from backend.engine.data_files.hub import hub_data
from backend.engine.data_files.hub.hub_card import Card, license_of
from backend.engine.data_files.hub.hub_data import Choice
from backend.engine.hub_data.first_rows import first_rows
from backend.errors import DataError, DiskFull, NotFound, WorkbenchError
from backend.files import read_limits
from backend.hub_names import HubName
from backend.permissions import on_hub
from backend.requests import DescribeHubData, DownloadHubData
from backend.results import DownloadedData, HubDescription, Problem

PREPARED_RATIO = {".parquet": 4.0, ".gz": 6.0}
"""How much larger than its file a prepared one is, where the metadata do not say; text: as large.
A packed file is also unpacked beside it."""
Sizes = dict[str, tuple[int, str]]
"""The files of a repository: size and digest of each."""


def describe(request: DescribeHubData) -> HubDescription:
    """Return what is known of a data set before its download.

    Raises InvalidRequest, or NotFound where the Hub has no such data set or cannot be reached.
    """
    name = _named(request.data)
    hub_data.require_id(name.id)
    info = hub_data.look_up(name)
    if info is None:
        return _kept(hub_data.choose(name))
    found = _outline(name, info)
    try:
        card = hub_data.card_of(name, str(info.sha))
        known = {"configurations": card.configurations or ("default",)}
        found = found.model_copy(update={**known, "license": card.license or found.license})
        found = _with_parts(found, card, name)
    except (DataError, NotFound) as error:
        return found.model_copy(update={"problem": _problem(error)})
    return found


def download(request: DownloadHubData, control: Control) -> DownloadedData:
    """Download and prepare a data set, where there is enough space on the disk.

    Raises DiskFull, DataError, NotFound or Stopped. What has arrived before that is kept.
    """
    started = time.monotonic()
    choice = hub_data.choose(_named(request.data))
    added = fetch(choice, control)
    _, loaded = hub_data.load(choice.name)
    counts = [len(each.rows) for each in loaded]
    return DownloadedData(
        source=str(choice.name),
        rows=counts[0],
        held_out_rows=sum(counts[1:]),
        downloaded_bytes=added,
        seconds=time.monotonic() - started,
    )


def fetch(choice: Choice, control: Control | None) -> int:
    """Download what of a choice is missing; raises DiskFull before it begins."""
    if all(choice.is_prepared(split) for split in choice.in_use):
        return 0
    card = hub_data.card_of(choice.name, choice.commit)
    found = _sizes_of(choice, card)
    require_free(found["needed_bytes"], _caches(), f"The data set {choice.name.id!r}")
    return hub_data.download(choice, control, total=found["download_bytes"])


def fetch_all(sources: Iterable[str | None], control: Control | None) -> None:
    """Download the data sets of the Hub among some sources, with progress."""
    for source in sources:
        if source and on_hub(source):
            fetch(hub_data.choose(hub_names.read(source)), control)


def _named(source: str) -> HubName:
    if not on_hub(source):
        raise NotFound(f"{source!r} is not a data set of the Hub.", cure=hub_names.SPELLING)
    return hub_names.read(source)


def _outline(name: HubName, info: DatasetInfo) -> HubDescription:
    """Return what the Hub shows of any data set, also of a gated one."""
    card = info.card_data.to_dict() if info.card_data else {}
    return HubDescription(
        source=str(name),
        id=name.id,
        revision=str(info.sha),
        license=license_of(card),
        gated=bool(info.gated),
        configuration=name.configuration,
        split=name.split,
        free_bytes=free(_caches()),
    )


def _with_parts(found: HubDescription, card: Card, name: HubName) -> HubDescription:
    """Add configuration, splits, sizes and first rows, as far as they can be found."""
    configuration = hub_data.configuration_of(card, name)
    named = name.of(configuration=configuration, split=name.split)
    builder = hub_data.builder_of(
        name.id, found.revision, configuration if card.configurations else None
    )
    there = tuple(map(str, builder.config.data_files or {}))
    found = found.model_copy(update={"configuration": configuration, "splits": there})
    try:
        splits = hub_data.splits_of(there, named)
    except DataError as error:
        return found.model_copy(update={"problem": _problem(error)})
    named = name.of(configuration=configuration, split=splits.split)
    choice = Choice(named, found.revision, splits, builder)
    facts = _sizes_of(choice, card)
    ready = all(choice.is_prepared(split) for split in choice.in_use)
    shown = {} if ready else _first_rows(choice)
    return found.model_copy(
        update={
            "source": str(named),
            "split": splits.split,
            "held_out": splits.held_out,
            "notes": splits.notes,
            "ready": ready,
            "problem": None if ready else _no_space(facts["needed_bytes"], found.free_bytes),
            **facts,
            **shown,
        }
    )


def _kept(choice: Choice) -> HubDescription:
    """Describe a data set that was prepared before, without a connection."""
    splits, name = choice.splits, choice.name
    return HubDescription(
        source=str(name),
        id=name.id,
        revision=choice.commit,
        configurations=(name.configuration,),
        configuration=name.configuration,
        splits=choice.in_use,
        split=splits.split,
        held_out=splits.held_out,
        ready=True,
        notes=("The Hub cannot be reached. What was downloaded before is used.", *splits.notes),
    )


def _sizes_of(choice: Choice, card: Card) -> dict[str, Any]:
    """Return rows, files and sizes of the splits in use."""
    sizes = _files_of(choice)
    repository = Repository(choice.name.id, choice.commit, "dataset")
    files = {each for split in choice.in_use for each in choice.files(split)}
    stated = {split: card.size_of(choice.name.configuration, split) for split in choice.in_use}
    missing = [split for split in choice.in_use if not choice.is_prepared(split)]
    whole = sum(sizes[each][0] for each in files)
    kept = sum(kept_bytes(repository, each, sizes[each][1]) for each in files)
    prepared = {
        split: stated[split].bytes or _estimate(sizes, choice.files(split))
        for split in choice.in_use
    }
    to_fetch = sum(
        max(0, sizes[each][0] - kept_bytes(repository, each, sizes[each][1]))
        for each in {each for split in missing for each in choice.files(split)}
    )
    return {
        "rows": stated[choice.splits.split].rows,
        "held_out_rows": stated[choice.splits.held_out].rows if choice.splits.held_out else None,
        "files": len(files),
        "download_bytes": whole,
        "kept_bytes": kept,
        "prepared_bytes": sum(prepared.values()),
        "prepared_is_estimate": any(each.bytes is None for each in stated.values()),
        "needed_bytes": to_fetch + sum(prepared[split] for split in missing),
    }


def _files_of(choice: Choice) -> Sizes:
    """Return size and digest of every file in use; raises DataError where one is not listed."""
    id = choice.name.id
    try:
        tree = HfApi().list_repo_tree(
            id, repo_type="dataset", revision=choice.commit, recursive=True
        )
        listed = {
            each.path: (each.size, each.lfs.sha256 if each.lfs else each.blob_id)
            for each in islice(tree, read_limits.HUB_TREE_ENTRIES)
            if isinstance(each, RepoFile)
        }
    except (HfHubHTTPError, *NO_CONNECTION) as error:
        raise explain(error, id, choice.commit, "dataset") from None
    unknown = (0, "")
    return {
        each: listed.get(each, unknown) for split in choice.in_use for each in choice.files(split)
    }


def _estimate(sizes: Sizes, files: list[str]) -> int:
    return sum(
        round(sizes[each][0] * PREPARED_RATIO.get(PurePosixPath(each).suffix.lower(), 1.0))
        for each in files
    )


def _first_rows(choice: Choice) -> dict[str, Any]:
    """Return the first rows, or a sentence on why there are none."""
    repository = Repository(choice.name.id, choice.commit, "dataset")
    name = choice.files(choice.splits.split)[0]
    try:
        found = first_rows(repository, name, _files_of(choice)[name][0])
    except GatedRepoError:
        raise NotFound(
            f"{choice.name.id!r} is a gated repository.",
            cure=how_to_get_access(choice.name.id, "dataset"),
        ) from None
    except DataError as error:
        return {"first_rows_note": error.what}
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError):
        return {"first_rows_note": "The first rows could not be read before the download."}
    return {"first_rows": tuple(found)}


def _caches() -> tuple[Path, ...]:
    return Path(constants.HF_HUB_CACHE), Path(config.HF_DATASETS_CACHE)


def _no_space(needed: int, there: int) -> Problem | None:
    try:
        require_free(needed, _caches(), "The data set")
    except DiskFull as error:
        return _problem(error)
    return None


def _problem(error: WorkbenchError) -> Problem:
    return Problem(what=error.what, cure=error.cure)
