"""Data sets of the Hub that were prepared on this machine, found without a connection."""

from pathlib import Path
from typing import NamedTuple

from datasets import config
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import try_to_load_from_cache

from backend.errors import DataError, NotFound
from backend.hub_names import HubName

OURS = "adapter-workbench"


class Prepared(NamedTuple):
    """A configuration that was prepared at one commit, and its prepared splits."""

    configuration: str
    commit: str
    splits: tuple[str, ...]
    builder: Cache | None = None
    """The library's own reader of what it prepared itself, as version 0.1.0 of this app let it."""


def folder(id: str, configuration: str, commit: str, split: str) -> Path:
    """Return the folder of a prepared split."""
    return _home(id) / configuration / commit / split


def find(name: HubName) -> Prepared:
    """Return the newest preparation of what was named; raises NotFound or DataError."""
    commit = _commit(name)
    there = {
        each.name: found
        for each in _folders(_home(name.id))
        if (found := _newest(each, commit)) is not None
    }
    if name.configuration:
        there = {key: value for key, value in there.items() if key == name.configuration}
    if not there:
        return _of_library(name)
    if len(there) > 1 and "default" not in there:
        raise DataError(
            f"Of the data set {name.id!r}, these configurations are on this machine: "
            f"{', '.join(sorted(there))}.",
            cure=f"Choose one: write it after the name, as in "
            f"{name.of(configuration=min(there), split=name.split)}.",
        )
    configuration = next(iter(there)) if len(there) == 1 else "default"
    chosen = there[configuration]
    return Prepared(configuration, chosen.name, tuple(each.name for each in _splits(chosen)))


def _of_library(name: HubName) -> Prepared:
    """Return what `datasets` prepared in its own folder, every split of a configuration."""
    # `datasets` keeps local folders in the same place, by their last name.
    known = try_to_load_from_cache(name.id, "README.md", repo_type="dataset") is not None
    try:
        if not known or name.revision:
            raise ValueError("not prepared")
        builder = Cache(
            repo_id=name.id,
            dataset_name=name.id.split("/")[-1],
            config_name=name.configuration or None,
            version="auto",
            hash="auto",
        )
    except (ValueError, OSError) as error:
        raise NotFound(
            f"The data set {str(name)!r} is not on this machine, and the Hub cannot be reached.",
            cure="Check the spelling and the internet connection, or upload a file.",
            details=str(error),
        ) from None
    return Prepared(
        builder.config.name, str(builder.hash), tuple(map(str, builder.info.splits or ())), builder
    )


def _home(id: str) -> Path:
    return Path(config.HF_DATASETS_CACHE) / OURS / id.replace("/", "___")


def _commit(name: HubName) -> str:
    """Return the commit of a named revision, as far as the Hub's cache knows it."""
    if not name.revision:
        return ""
    readme = try_to_load_from_cache(
        name.id, "README.md", revision=name.revision, repo_type="dataset"
    )
    return Path(readme).parent.name if isinstance(readme, str) else name.revision


def _newest(configuration: Path, commit: str) -> Path | None:
    found = [each for each in _folders(configuration) if _splits(each)]
    if commit:
        found = [each for each in found if each.name == commit]
    return max(found, key=lambda each: each.stat().st_mtime, default=None)


def _splits(commit: Path) -> list[Path]:
    return [each for each in _folders(commit) if (each / config.DATASET_INFO_FILENAME).is_file()]


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
