"""Data sets of the Hugging Face Hub, loaded by `datasets` from files of their own repository only.

`datasets` 5.2.0 reads the name `text`, `json` and similar as a reader of the working folder, the
name of an existing folder as that folder, and `buckets/x` as a storage bucket. It prepares every
split of a configuration; here each is prepared alone, in a folder named after its commit, so only
those in use are downloaded, and they are found again without a connection.
"""

import difflib
import errno
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetBuilder, concatenate_datasets, config, load_dataset_builder
from datasets.data_files import DataFilesDict
from datasets.exceptions import DatasetsError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import DatasetInfo
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from backend.engine.core import resumed_download
from backend.engine.core.hub_download import NO_CONNECTION, explain, is_away
from backend.engine.core.job_control import Control
from backend.engine.core.resumed_download import Progress, Repository
from backend.engine.data_files.hub import hub_offline
from backend.engine.data_files.hub.hub_card import Card, read_card
from backend.engine.data_files.hub.hub_files import require_bounded
from backend.errors import DataError, NotFound, WorkbenchError
from backend.files import read_limits
from backend.hub_names import HubName

READ = ("json", "csv", "parquet", "text")
"""The readers of `datasets` that are allowed; others open archives, pictures or databases."""
ROWS_AT_ONCE = 1000
TRAIN = "train"
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing", "eval")
SHOWN_NAMES = 20
RECENT_SECONDS = 20.0
_recent: dict[HubName, tuple[float, "Choice"]] = {}
UNREADABLE = (ValueError, TypeError, KeyError, RuntimeError, OSError, DatasetsError)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What `datasets` raises over files that it cannot read."""


class Splits(NamedTuple):
    """The split to train on, the one that is held out (empty: none), and notes on the others."""

    split: str
    held_out: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What of a data set is read. Without a builder it was prepared before, and is offline."""

    name: HubName
    commit: str
    splits: Splits
    builder: DatasetBuilder | None = None

    @property
    def in_use(self) -> tuple[str, ...]:
        """The splits that are read."""
        return tuple(filter(None, (self.splits.split, self.splits.held_out)))

    def folder(self, split: str) -> Path:
        """Return the folder that holds a split once it is prepared."""
        return hub_offline.folder(self.name.id, self.name.configuration, self.commit, split)

    def is_prepared(self, split: str) -> bool:
        """Return whether a split can be read without a download."""
        return (
            isinstance(self.builder, Cache)
            or (self.folder(split) / config.DATASET_INFO_FILENAME).is_file()
        )

    def files(self, split: str) -> list[str]:
        """Return the names of a split's files; raises DataError for one that lies elsewhere."""
        assert self.builder is not None
        prefix = f"hf://datasets/{self.name.id}@{self.commit}/"
        addresses = [str(address) for address in self.builder.config.data_files[split]]
        for address in addresses:
            if not address.startswith(prefix):
                raise DataError(
                    f"The data set {self.name.id!r} refers to data outside its own files: "
                    f"{address!r}."
                )
        return [address.removeprefix(prefix) for address in addresses]


class Loaded(NamedTuple):
    """A split on disk."""

    name: HubName
    rows: Dataset
    digest: str


def require_id(id: str) -> None:
    """Raise NotFound where a name cannot be the id of a data set on the Hub."""
    owner = id.split("/", 1)[0]
    if id in FORMATS or owner in ("buckets", "datasets"):
        what = "a file format" if id in FORMATS else "a part of the Hub"
        raise NotFound(
            f"{id!r} is the name of {what}, not of a data set.",
            cure="Write the full path of your file, or an id such as owner/name.",
        )
    try:
        validate_repo_id(id)
    except HFValidationError:
        raise NotFound(
            f"{id!r} is neither a data set on this machine nor a Hub id.",
            cure="Ids look like owner/name.",
        ) from None


def load(name: HubName, control: Control | None = None) -> tuple[Choice, list[Loaded]]:
    """Return the split to train on and the one that is held out, downloading what is missing.

    Raises NotFound, DataError or Stopped.
    """
    choice = choose(name)
    download(choice, control)
    return choice, [_opened(choice, split) for split in choice.in_use]


def choose(name: HubName) -> Choice:
    """Find out what of a data set is read, without its data; raises NotFound or DataError.

    An operation asks several times, so the answer is used again for a short time.
    """
    now = time.monotonic()
    for each in [each for each, (when, _) in _recent.items() if now - when > RECENT_SECONDS]:
        del _recent[each]
    if name not in _recent:
        _recent[name] = (now, _chosen(name))
    return _recent[name][1]


def _chosen(name: HubName) -> Choice:
    require_id(name.id)
    info = look_up(name)
    if info is None:
        return _offline(name)
    commit = str(info.sha)
    card = card_of(name, commit)
    configuration = configuration_of(card, name)
    builder = builder_of(name.id, commit, configuration if card.configurations else None)
    found = splits_of(tuple(map(str, builder.config.data_files or {})), name)
    named = name.of(configuration=configuration, split=found.split)
    return Choice(named, commit, found, builder)


def look_up(name: HubName) -> DatasetInfo | None:
    """Return what the Hub knows of a data set; None if it cannot be reached. Raises NotFound."""
    try:
        return HfApi().dataset_info(name.id, revision=name.revision or None)
    except Exception as error:
        if is_away(error):
            return None
        raise explain(error, name.id, name.revision, "dataset") from None


def card_of(name: HubName, commit: str) -> Card:
    """Return the checked metadata of a data set; raises NotFound or DataError."""
    try:
        return read_card(name.id, name.revision or None, commit)
    except (HfHubHTTPError, *NO_CONNECTION) as error:
        raise explain(error, name.id, name.revision, "dataset") from None


def configuration_of(card: Card, name: HubName) -> str:
    """Return the configuration to read; raises DataError where one has to be chosen."""
    there = card.configurations or ("default",)
    if name.configuration in there:
        return name.configuration
    if name.configuration:
        raise DataError(
            f"The data set {name.id!r} has no configuration {name.configuration!r}. It has "
            f"{listed(there, like=name.configuration)}.",
            cure=f"Write one after the name, as in {name.of(configuration=there[0])}.",
        )
    if card.default or len(there) == 1:
        return card.default or there[0]
    raise DataError(
        f"The data set {name.id!r} has {len(there):,} configurations: {listed(there)}.",
        cure=f"Choose one: write it after the name, as in "
        f"{name.of(configuration=there[0], split=name.split)}.",
    )


def splits_of(there: tuple[str, ...], name: HubName) -> Splits:
    """Return the splits to use; raises DataError where the one for training is not there.

    As in a folder, the validation split is held out; without one, the test split is.
    """
    split = name.split or TRAIN
    if split not in there:
        example = name.of(configuration=name.configuration, split=there[0] if there else "")
        raise DataError(
            f"The data set {name.id!r} has no split {split!r}. It has "
            f"{listed(there, like=split) if there else 'none'}.",
            cure=f"Choose one: write it after the name, as in {example}.",
        )
    wanted = (*VALIDATION, *TEST) if split == TRAIN else ()
    held_out = next((each for each in wanted if each in there), "")
    unused = [each for each in there if each not in (split, held_out)]
    notes = [f"The split {held_out!r} of the data set is held out."] if held_out else []
    if unused:
        notes.append(f"Other splits of the data set are not used: {listed(unused)}.")
    return Splits(split, held_out, tuple(notes))


def builder_of(id: str, commit: str, configuration: str | None) -> DatasetBuilder:
    """Return the builder of a configuration whose metadata were checked; raises DataError."""
    try:
        # With a scheme no local folder of this name is used, and with a commit no host other than
        # the Hub is contacted.
        builder: DatasetBuilder = load_dataset_builder(
            f"hf://datasets/{id}", configuration, revision=commit
        )
    except (HfHubHTTPError, *NO_CONNECTION) as error:
        raise explain(error, id, commit, "dataset") from None
    except UNREADABLE as error:
        raise _unreadable(id, error) from None
    _require_read(type(builder).__module__.rsplit(".", 1)[-1], id)
    count = sum(len(files) for files in (builder.config.data_files or {}).values())
    if count > read_limits.HUB_FILES:
        raise DataError(
            f"The data set {id!r} has {count:,} files in this configuration, and at most "
            f"{read_limits.HUB_FILES:,} are read.",
            cure="Choose a smaller configuration, or another data set.",
        )
    return builder


def download(choice: Choice, control: Control | None = None, *, total: int = 0) -> int:
    """Download and prepare the splits in use; return the bytes that came over the line.

    `total` is the size of their files, for the progress. Raises NotFound, DataError or Stopped.
    """
    missing = [split for split in choice.in_use if not choice.is_prepared(split)]
    progress = Progress(choice.name.id, total, control)
    repository = Repository(choice.name.id, choice.commit, "dataset")
    try:
        for split in missing:
            for name in choice.files(split):
                path = resumed_download.fetch(repository, name, progress)
                require_bounded(path, f"{name} of {choice.name.id}")
        for split in missing:
            progress.check_stop()
            if control is not None:
                control.progress(f"Preparing {choice.name.id}, {split}", None, force=True)
            _prepare(choice, split)
    except WorkbenchError:
        raise
    except (HfHubHTTPError, *NO_CONNECTION) as error:
        raise explain(error, choice.name.id, choice.commit, "dataset") from None
    except UNREADABLE as error:
        raise _unreadable(choice.name.id, error) from None
    return progress.added


def rows(split: Dataset) -> Iterator[Any]:
    """Yield the rows as they are stored.

    For columns of pictures or sounds, `datasets` would open the paths in the cells, which may be
    any path.
    """
    for batch in split.data.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def listed(names: Sequence[str], like: str = "") -> str:
    """Return the first of some names in one line, those that are like another one before them."""
    near = difflib.get_close_matches(like, names, 3) if like else []
    shown = [*near, *(name for name in names if name not in near)][:SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _offline(name: HubName) -> Choice:
    """Return what of a data set was prepared before; raises NotFound or DataError."""
    found = hub_offline.find(name)
    splits = splits_of(found.splits, name.of(configuration=found.configuration, split=name.split))
    named = name.of(configuration=found.configuration, split=splits.split)
    return Choice(named, found.commit, splits, found.builder)


def _prepare(choice: Choice, split: str) -> None:
    """Convert a split's files for reading; the folder appears whole or not at all."""
    builder = choice.builder
    assert builder is not None
    every = builder.config.data_files
    # The sizes are those of all splits, and `datasets` would demand the space for them.
    builder.info.splits = builder.info.download_size = builder.info.dataset_size = None
    builder.config.data_files = DataFilesDict({split: every[split]})
    try:
        builder.download_and_prepare(
            output_dir=str(choice.folder(split)), verification_mode="no_checks"
        )
    finally:
        builder.config.data_files = every


def _opened(choice: Choice, split: str) -> Loaded:
    if isinstance(choice.builder, Cache):
        choice.builder.download_and_prepare()
        whole = choice.builder.as_dataset(split=split)
        assert isinstance(whole, Dataset)
        return Loaded(choice.name.of(configuration=choice.name.configuration, split=split), whole,
                      str(whole._fingerprint))  # fmt: skip
    files = sorted(choice.folder(split).glob("*.arrow"))
    name = choice.name.of(configuration=choice.name.configuration, split=split)
    if not files:
        raise DataError(f"The split {split!r} of {choice.name.id!r} is empty.")
    whole = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    stated = f"{name.id}@{choice.commit}:{name.configuration}:{split}"
    return Loaded(name, whole, hashlib.sha256(stated.encode()).hexdigest())


def _require_read(reader: str, id: str) -> None:
    if reader not in READ:
        raise DataError(
            f"The data set {id!r} is stored as {reader}, which is not supported.",
            cure="Use a data set of Parquet, JSONL, JSON, CSV or text files.",
        )


def _unreadable(id: str, error: Exception) -> DataError:
    """Return the error to show; raises that of a full disk again."""
    reason = error.__cause__ or error  # `datasets` says only that generating failed
    if isinstance(reason, OSError) and reason.errno in NO_SPACE:
        raise reason
    what = (str(reason).splitlines() or [type(reason).__name__])[0][:300].rstrip(".")
    return DataError(
        f"The data set {id!r} cannot be read: {what}.",
        cure="Use another data set, or download its files and enter their path.",
        details=str(error),
    )
