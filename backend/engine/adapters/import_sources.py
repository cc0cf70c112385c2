"""Sources of adapters: the library, a folder, a zip or the Hub. Each gives a folder to scan.

Several adapters may be found in one place (`choice.py`). Knows nothing of what the files contain.
"""

import os
import re
import tempfile
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from backend.engine.adapters import adapter_zip
from backend.engine.adapters.choice import MLX_WEIGHTS, SHOWN_CHOICES, Choice, choose
from backend.engine.core import hub_download
from backend.engine.core.job_control import Control
from backend.engine.methods.config_validation import CONFIG
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import ModelError, NotFound
from backend.fields import DISPLAY_NAME
from backend.files import read_limits
from backend.hub_address import HubAddress, parse
from backend.library import LIBRARY_SOURCE, SIDECAR, Library
from backend.permissions import adapter_on_hub

DEEPEST = 4
"""How far below a folder adapters are looked for: output/run/checkpoint-20 is three deep."""
HUB_FILES = (CONFIG, WEIGHTS, MLX_WEIGHTS, SIDECAR)


class Incoming(NamedTuple):
    """An adapter's files in their current folder, and its suggested name.

    `notes` say what was chosen or left out; `choices` are the sources of other adapters there.
    """

    folder: Path
    name: str
    origin: str
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@contextmanager
def incoming(source: str, library: Library, control: Control) -> Iterator[Incoming]:
    """Yield the folder of a source; unpacked files are removed afterwards."""
    if source.startswith(LIBRARY_SOURCE):
        info = library.get(source.removeprefix(LIBRARY_SOURCE))
        yield Incoming(library.folder(info.id), info.name, "the library")
        return
    if adapter_on_hub(source):
        yield _from_hub(parse(source), control)
        return
    path = Path(source).expanduser()
    packed, inside = _zip_and_inside(path)
    if not os.path.exists(packed):  # Path.exists raises for a name that is too long
        raise NotFound(
            f"There is no folder or zip called {path.name!r}.", cure="Check the path and try again."
        )
    if path.is_dir():
        yield _from_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="adapter-") as temporary:
        yield _from_zip(packed, inside, Path(temporary))


def source_below(source: str, home: PurePosixPath) -> str:
    """Return the source of an adapter in a folder of another source."""
    if not adapter_on_hub(source):
        return f"{source.rstrip('/')}/{home}"
    address = parse(source)
    return str(address.below(str(PurePosixPath(address.folder) / home)))


def display_name(raw: str) -> str:
    """Return a readable name from a folder's or file's name."""
    letters = unicodedata.normalize("NFKD", raw)  # accents become separate characters
    plain = "".join(each for each in letters if not unicodedata.combining(each))
    words = re.sub(r"[^A-Za-z0-9 _-]+", " ", plain)
    name = re.sub(r"\s+", " ", words).strip(" _-")[:40].strip()
    return name if DISPLAY_NAME.fullmatch(name) else "adapter"


def _from_folder(path: Path) -> Incoming:
    """Return a folder's adapter; where it holds none, the folder as it is, which a scan refuses."""
    name, origin = display_name(path.name), f"the folder {path.name}"
    files = _files_below(path)
    if not any(file.name == CONFIG for file in files):
        return Incoming(path, name, origin)
    choice = choose(files, path.name)
    choices = _choices(str(path), choice)
    return Incoming(path / choice.home, name, origin + _at(choice), _notes(choice), choices)


def _files_below(folder: Path) -> list[PurePosixPath]:
    """List the files of a folder and of those in it, up to a limit; links are not followed.

    Of a folder with more files only the adapter at its top can be taken; raises ModelError where it
    has none.
    """
    found: list[PurePosixPath] = []
    waiting, left = deque([PurePosixPath(".")]), read_limits.FOLDER_ENTRIES
    while waiting:
        place = waiting.popleft()
        entries = _entries(folder, place, left + 1)
        left -= len(entries)
        if left < 0:
            return _at_the_top(folder)
        for entry in entries:
            if entry.name == CONFIG or not entry.is_dir(follow_symlinks=False):
                found.append(place / entry.name)
            elif len(place.parts) < DEEPEST and not entry.name.startswith("."):
                waiting.append(place / entry.name)
    return found


def _entries(folder: Path, place: PurePosixPath, most: int) -> list[os.DirEntry[str]]:
    """Return a folder's entries, up to a limit; none of one below that cannot be read."""
    try:
        with os.scandir(folder / place) as entries:
            return list(islice(entries, most))
    except OSError as error:
        if place.parts:
            return []
        raise ModelError(f"{folder.name} cannot be read: {error.strerror}.") from None


def _at_the_top(folder: Path) -> list[PurePosixPath]:
    if os.path.lexists(folder / CONFIG):
        return [PurePosixPath(CONFIG)]
    raise ModelError(
        f"{folder.name} holds more than {read_limits.FOLDER_ENTRIES:,} files, and no {CONFIG} at "
        "its top.",
        cure="Give the adapter's own folder.",
    )


def _zip_and_inside(path: Path) -> tuple[Path, str]:
    """Split `some.zip/checkpoint-20` into the file and the folder inside it."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and os.path.isfile(parent):
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _from_zip(path: Path, inside: str, temporary: Path) -> Incoming:
    choice = adapter_zip.unpack(path, temporary, inside)
    last = f" {PurePosixPath(inside).name}" if inside else ""
    name = display_name(f"{path.stem}{last}")
    choices = _choices(str(path), choice)
    origin = f"the file {path.name}{_at(choice)}"
    return Incoming(temporary, name, origin, _notes(choice), choices)


def _from_hub(address: HubAddress, control: Control) -> Incoming:
    """Download an adapter; where its folder holds several, the one that is meant."""
    files = hub_download.adapter_files(address)
    choice = choose(files, str(address)) if files else Choice(PurePosixPath("."))
    home = PurePosixPath(address.folder) / choice.home
    chosen = address.below("" if home == PurePosixPath(".") else str(home))
    folder = hub_download.fetch_adapter(chosen, HUB_FILES, control)
    last = f" {PurePosixPath(address.folder).name}" if address.folder else ""
    name = display_name(f"{address.repo_id.rsplit('/', 1)[-1]}{last}")
    choices = _choices(str(address), choice)
    return Incoming(folder, name, f"the Hub: {chosen}", _notes(choice), choices)


def _choices(source: str, choice: Choice) -> tuple[str, ...]:
    return tuple(source_below(source, other) for other in choice.others[:SHOWN_CHOICES])


def _at(choice: Choice) -> str:
    return "" if choice.home == PurePosixPath(".") or not choice.others else f", {choice.home}"


def _notes(choice: Choice) -> tuple[str, ...]:
    return (choice.note,) if choice.note else ()
