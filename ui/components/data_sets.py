"""The training data on offer: the bundled sets and the uploaded files."""

import json
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

BUNDLED = Path(__file__).resolve().parents[2] / "starter" / "data"
PREFIX = "starter:"


class DataSet(BaseModel):
    """One bundled data set."""

    model_config = ConfigDict(frozen=True)

    id: str
    title: str
    summary: str
    try_prompt: str
    examples: int

    @property
    def source(self) -> str:
        return PREFIX + self.id

    @property
    def label(self) -> str:
        return f"{self.title} (bundled, {self.examples} examples)"


@cache
def bundled(folder: Path = BUNDLED) -> tuple[DataSet, ...]:
    """Read the catalogue of bundled sets; an app without the starter kit has none."""
    try:
        catalogue = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(
        DataSet(
            id=id,
            title=str(entry.get("title", id)),
            summary=str(entry.get("summary", "")),
            try_prompt=str(entry.get("try_prompt", "")),
            examples=sum(_lines(folder / id / f"{part}.jsonl") for part in ("train", "held_out")),
        )
        for id, entry in catalogue.items()
    )


def bundled_set(source: str) -> DataSet | None:
    """Return the bundled set that a data source names, if it is one."""
    return next((each for each in bundled() if each.source == source), None)


def choices(uploads: Path) -> list[tuple[str, str]]:
    """List what the data field offers: bundled sets, then uploads, newest first."""
    files = sorted(uploads.glob("*/*.*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [
        *((each.label, each.source) for each in bundled()),
        *((f"{path.name} (uploaded)", str(path)) for path in files),
    ]


def title(source: str) -> str:
    """Return a short name of a data source."""
    known = bundled_set(source)
    if known is not None:
        return known.title
    path = Path(source)
    return path.name if path.is_absolute() else source


def suggested_name(source: str) -> str:
    """Return an adapter name made from the name of the data."""
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    stem = Path(source).stem
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " _-") else " " for c in stem)
    return " ".join(plain.split())[:40].strip(" _-") or "my adapter"


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0
