"""The data files of a folder or a zip: which they are, and which of them are held out.

Reads names only. A link that leaves the folder is refused, and a folder that `datasets` wrote has
the files that its own list names.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backend.engine.data_files import splits
from backend.engine.data_files.file_readers import READERS, is_data
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import read_json, require_regular
from backend.files.unpacking import DataFile, zip_members

ABOUT = ("readme", "license", "licence", "changelog")
SAVED_FOLDER, SAVED_SPLITS, SAVED_FACTS = "state.json", "dataset_dict.json", "dataset_info.json"
NOT_DATA = (SAVED_FOLDER, SAVED_SPLITS, SAVED_FACTS, "dataset_infos.json")
OF_TOOLS = re.compile(
    r"(requirements.*\.txt|constraints.*\.txt|(adapter_|generation_|tokenizer_|preprocessor_)?config.*"
    r"\.json|special_tokens_map\.json|tokenizer\.json|vocab\.(json|txt)|merges\.txt"
    r"|package(-lock)?\.json|tsconfig\.json|.*\.lock|robots\.txt|cmakelists\.txt|metadata\.json"
    r"|metrics\.json|(all|eval|train|test|predict)_results\.json|trainer_state\.json"
    r"|training_args\.json|.*\.index\.json|(citation|contributing|code_of_conduct|authors|security)"
    r"\.(md|txt))",
    re.IGNORECASE,
)
"""Names of files that other programs write or read beside data, and that are no data."""
MOST_FILES = 1000


class Files(NamedTuple):
    """Data files by the names that they have in their folder, and what is held out of them."""

    training: dict[str, DataFile]
    held_out: dict[str, DataFile]
    notes: tuple[str, ...] = ()


def files_of(path: Path) -> Files:
    """Return the data files of a folder; raises DataError where there are none, or too many."""
    if (path / SAVED_SPLITS).is_file() or (path / SAVED_FOLDER).is_file():
        return _chosen(_saved(path), path.name)
    top = _data_files(path, path)
    below = [each for each in _folders(path) if _has_data(each)]
    if not top or (below and all(OF_TOOLS.fullmatch(each.name) for each in top)):
        return _chosen(_walk(path, path, read_limits.FOLDER_DEPTH), path.name)
    found = _chosen(_listed(top, path), path.name)
    if not below:
        return found
    names = ", ".join(each.name for each in below[:3]) + (" ..." if len(below) > 3 else "")
    note = f"Folders inside {path.name} are not read, as it has data files itself: {names}."
    return found._replace(notes=(*found.notes, note))


def files_of_zip(path: Path) -> Files:
    """Return the data files in a zip; raises DataError where there are none, or too many."""
    members = [each for each in zip_members(path, path.name) if _is_data_name(each)]
    if not members:
        raise DataError(f"The zip {path.name} has no data file.", cure=_formats())
    if len(members) == 1:
        (member,) = members
        file = DataFile(path, f"{member.rsplit('/', 1)[-1]} in {path.name}", member)
        return Files({"": file}, {})
    start = _common_folder(members)
    found = {each[len(start) :]: DataFile(path, f"{each} in {path.name}", each) for each in members}
    return _chosen(found, path.name)


def _chosen(every: dict[str, DataFile], name: str) -> Files:
    tools = [each for each in every if OF_TOOLS.fullmatch(each.rsplit("/", 1)[-1])]
    left_out = {*tools}
    found = {each: file for each, file in every.items() if each not in left_out}
    if not found:
        beside = f", only files of other programs: {splits.listed(tools)}" if tools else ""
        raise DataError(f"The folder {name} has no data file{beside}.", cure=_formats())
    if len(found) > MOST_FILES:
        raise DataError(
            f"The folder {name} has {len(found):,} data files, and at most {MOST_FILES:,} "
            "are read.",
            cure="Put the rows into fewer files.",
        )
    chosen = splits.choose([*found], name)
    training, held_out = (
        {each: found[each] for each in names} for names in (chosen.training, chosen.held_out)
    )
    said = f"Left out of {name}, as files of other programs: {splits.listed(tools)}."
    return Files(training, held_out, (*chosen.notes, *([said] if tools else [])))


def _walk(folder: Path, top: Path, depth: int) -> dict[str, DataFile]:
    """Return the data files in a folder and in those inside it, down to a depth."""
    if (folder / SAVED_FOLDER).is_file():
        return {f"{_label(folder, top)}/{name}": each for name, each in _saved(folder).items()}
    found = _listed(_data_files(folder, top), top)
    for each in _folders(folder) if depth > 1 else ():
        found.update(_walk(each, top, depth - 1))
        if len(found) > MOST_FILES:
            break
    return found


def _data_files(folder: Path, top: Path) -> list[Path]:
    """Return the data files in a folder, sorted by name; raises DataError for a link to elsewhere.

    Hidden files and files about the data (a README, a licence) are left out.
    """
    found = sorted(
        each for each in _entries(folder) if _is_data_name(each.name) and not each.is_dir()
    )
    for each in found:
        if not each.exists():
            raise DataError(
                f"{each.name} in the folder {folder.name} is a link to a file that does not exist.",
                cure="Remove the link, or put the file itself into the folder.",
            )
        require_regular(each, each.name, DataError)
        if not each.resolve().is_relative_to(top.resolve()):
            raise DataError(
                f"{each.name} in the folder {folder.name} is a link to a file outside the folder.",
                cure="Put the file itself into the folder.",
            )
    return found


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder; links to folders are left out."""
    return sorted(
        each
        for each in _entries(folder)
        if each.is_dir() and not each.is_symlink() and not each.name.startswith((".", "__"))
    )


def _entries(folder: Path) -> Iterator[Path]:
    for count, each in enumerate(folder.iterdir(), 1):
        if count > read_limits.FOLDER_ENTRIES:
            raise DataError(
                f"The folder {folder.name} has more than {read_limits.FOLDER_ENTRIES:,} files.",
                cure="Put the rows into fewer files.",
            )
        yield each


def _has_data(folder: Path) -> bool:
    return any(_is_data_name(each.name) and each.is_file() for each in _entries(folder))


def _listed(paths: list[Path], top: Path) -> dict[str, DataFile]:
    return {_label(each, top): DataFile(each, each.name) for each in paths}


def _label(path: Path, top: Path) -> str:
    return path.relative_to(top).as_posix()


def _saved(folder: Path) -> dict[str, DataFile]:
    """Return the files of a folder that `datasets` wrote, one data set or one for each split."""
    if not (folder / SAVED_SPLITS).is_file():
        return {name: DataFile(folder / name, name) for name in _saved_names(folder)}
    names = _read(folder / SAVED_SPLITS, folder.name).get("splits")
    found = {}
    for split in _plain_names(names, SAVED_SPLITS, folder):
        for name in _saved_names(folder / split):
            found[f"{split}/{name}"] = DataFile(folder / split / name, f"{split}/{name}")
    return found


def _saved_names(folder: Path) -> list[str]:
    said = _read(folder / SAVED_FOLDER, folder.name)
    if said.get("_indices_data_files") or said.get("_indices_files"):
        raise DataError(
            f"The data set in {folder.name} is a selection of its own rows, which is not read.",
            cure="Save it again with flatten_indices(), or as JSONL.",
        )
    files = said.get("_data_files")
    files = files if isinstance(files, list) else []
    listed = [each.get("filename") if isinstance(each, dict) else each for each in files]
    names = _plain_names(listed, SAVED_FOLDER, folder)
    for name in names:
        path = folder / name
        if not path.is_file() or path.is_symlink() or not name.endswith(".arrow"):
            raise DataError(
                f"{name} of the data set in {folder.name} is missing, or no Arrow file.",
                cure="Copy the whole folder again.",
            )
    return names


def _plain_names(names: object, file: str, folder: Path) -> list[str]:
    """Return names that stay inside the folder; raises DataError for all else."""
    plain = isinstance(names, list) and all(
        isinstance(each, str) and each and each == Path(each).name and "\\" not in each
        and not each.startswith(".") for each in names
    )  # fmt: skip
    if not plain or (folder.is_symlink() and file == SAVED_FOLDER):
        raise DataError(
            f"The {file} in {folder.name} is not one that `datasets` writes.",
            cure="Save the data set again, or choose its files themselves.",
        )
    assert isinstance(names, list)
    return names


def _read(path: Path, folder: str) -> dict[str, Any]:
    try:
        said = read_json(path, read_limits.CARD_BYTES, path.name, DataError)
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise DataError(
            f"The {path.name} in {folder} cannot be read.", cure="Copy the whole folder again."
        )
    return said


def _is_data_name(name: str) -> bool:
    """Tell whether a file is data, by its name: not hidden, and not about the data."""
    own = name.rsplit("/", 1)[-1]
    is_about = Path(own).stem.lower() in ABOUT or own in NOT_DATA
    return not own.startswith(".") and not is_about and is_data(own)


def _common_folder(members: list[str]) -> str:
    first = members[0].split("/")[0] + "/"
    return first if all(each.startswith(first) for each in members) else ""


def _formats() -> str:
    return f"Use {', '.join(READERS)}."
