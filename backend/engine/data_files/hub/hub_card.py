"""What the metadata of a Hub data set say of its configurations, after they were checked.

They are foreign: a README may name any local file or any address as its data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from backend.engine.core.hub_download import NO_CONNECTION
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import read_text
from backend.hub_names import is_configuration

README, STANDALONE = "README.md", ".huggingface.yaml"
LONGEST_LICENSE = 100


@dataclass(frozen=True)
class Sizes:
    """What the metadata state of one split; None where they do not."""

    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Card:
    """The configurations that the metadata name, and the one that is read if none is chosen.

    Without any, all files of the repository are one configuration without a name.
    """

    configurations: tuple[str, ...] = ()
    default: str = ""
    license: str = ""
    sizes: dict[tuple[str, str], Sizes] = field(default_factory=dict)
    """By configuration and split."""

    def size_of(self, configuration: str, split: str) -> Sizes:
        """Return what is stated of a split; metadata of one configuration may not name it."""
        names = (configuration, "") if len(self.configurations) <= 1 else (configuration,)
        return next((self.sizes[each, split] for each in names if (each, split) in self.sizes),
                    Sizes())  # fmt: skip


def read_card(id: str, revision: str | None, commit: str) -> Card:
    """Download and check the metadata of a data set; raises DataError, or an error of the Hub."""
    said: dict[str, Any] = {}
    for name in (README, STANDALONE):
        part = _metadata(id, name, revision, commit)
        require_own_files(part, id)
        said |= part
    return card_of(said, id)


def card_of(said: dict[str, Any], id: str) -> Card:
    """Return what metadata say; raises DataError where they cannot be used."""
    configurations = [each for each in _listed(said.get("configs")) if isinstance(each, dict)]
    if len(configurations) > read_limits.HUB_CONFIGURATIONS:
        raise DataError(
            f"The data set {id!r} has {len(configurations):,} configurations, and at most "
            f"{read_limits.HUB_CONFIGURATIONS:,} are read.",
            cure="Use another data set, or download the file and enter its path.",
        )
    names = [each.get("config_name") for each in configurations]
    for name in names:
        if not isinstance(name, str) or not is_configuration(name):
            raise DataError(
                f"The data set {id!r} has a configuration called {str(name)[:200]!r}, which "
                "cannot be the name of one.",
                cure="Use another data set, or download the file and enter its path.",
            )
    marked = [
        name
        for name, each in zip(names, configurations, strict=True)
        if len(names) == 1 or name == "default" or each.get("default")
    ]
    return Card(
        tuple(map(str, names)), str(marked[0]) if marked else "", license_of(said), _sizes(said)
    )


def require_own_files(said: dict[str, Any], id: str) -> None:
    """Raise DataError where a data set's metadata name data outside its own repository."""
    _require_few_values(said, id)
    for each in _listed(said.get("configs")):
        if not isinstance(each, dict):
            continue
        for name in _texts([each.get("data_files"), each.get("data_dir")]):
            if not _is_inside(name):
                raise DataError(
                    f"The data set {id!r} refers to data outside its own files: {name[:200]!r}.",
                    cure="Use another data set, or download the file and enter its path.",
                )


def _metadata(id: str, name: str, revision: str | None, commit: str) -> dict[str, Any]:
    """Return a repository's metadata about its data; empty where it has none."""
    try:
        if name == README:  # the cache then knows the newest commit, also without a connection
            hf_hub_download(id, name, repo_type="dataset", revision=revision)
        path = Path(hf_hub_download(id, name, repo_type="dataset", revision=commit))
    except NO_CONNECTION:
        raise
    except EntryNotFoundError:
        return {}
    text = read_text(path, read_limits.CARD_BYTES, f"The {name} of {id}", DataError)
    try:  # the README is parsed as `datasets` does it, so that both see the same
        said = DatasetCard(text).data.to_dict() if name == README else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise DataError(f"The metadata in the {name} of {id} is not valid YAML.") from None
    return said if isinstance(said, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _require_few_values(said: dict[str, Any], id: str) -> None:
    """Raise DataError where metadata are deep, or one value stands in any number of places.

    `datasets` walks through all of them.
    """
    waiting: list[tuple[Any, int]] = [(said, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, list | dict):
            inside = value.values() if isinstance(value, dict) else value
            count += len(value)
            if depth > read_limits.CARD_DEPTH or count > read_limits.CARD_VALUES:
                raise DataError(
                    f"The metadata of the data set {id!r} are nested too deeply or have too many "
                    "values.",
                    cure="Use another data set, or download the file and enter its path.",
                )
            waiting += [(each, depth + 1) for each in inside]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a YAML value; names of splits are included and harmless."""
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif value is not None:
        yield str(value)


def _is_inside(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in pattern
        or ":" in pattern  # any scheme, chained schemes (`::`) and Windows drives
        or pattern.startswith("~")
    )


def license_of(said: dict[str, Any]) -> str:
    """Return the licence that metadata state; empty where they do not."""
    named = [str(each) for each in _listed(said.get("license")) if isinstance(each, str)]
    return str(said.get("license_name") or ", ".join(named))[:LONGEST_LICENSE]


def _sizes(said: dict[str, Any]) -> dict[tuple[str, str], Sizes]:
    found = {}
    for info in _listed(said.get("dataset_info"))[: read_limits.HUB_CONFIGURATIONS]:
        if not isinstance(info, dict):
            continue
        for split in _listed(info.get("splits"))[: read_limits.HUB_CONFIGURATIONS]:
            if isinstance(split, dict):
                key = (str(info.get("config_name") or ""), str(split.get("name")))
                found[key] = Sizes(
                    _count(split.get("num_examples")), _count(split.get("num_bytes"))
                )
    return found


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**53 else None
