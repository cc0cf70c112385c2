"""Public layouts of data in many kinds of files: which rows are read without help, and as what.

Every row is compared with what its author means; a row that says something else is silently wrong.
The time of a first look and of a full report is measured through a service, as the page asks.
"""

import bz2
import gzip
import json
import lzma
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from backend import Service
from backend import requests as rq
from backend.engine.data import dataset
from backend.errors import WorkbenchError
from backend.settings import Settings
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from tests.engine.data.public_shapes import PREFERENCES, SHAPES, Shape
from tests.engine.written_files import Row, write

BAR_READ, BAR_LOOK_S = 0.99, 3.0
SAMPLE = "Größe, naïve café, Œuvre: "
"""Not ASCII, so that an encoding shows."""


def _written(extension: str) -> Callable[[Path, list[Row]], Path]:
    return lambda folder, rows: write(folder / f"rows{extension}", rows)


def _encoded(encoding: str) -> Callable[[Path, list[Row]], Path]:
    def make(folder: Path, rows: list[Row]) -> Path:
        path = write(folder / "rows.csv", rows)
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        return path

    return make


def _packed(extension: str, pack: Callable[[bytes], bytes]) -> Callable[[Path, list[Row]], Path]:
    def make(folder: Path, rows: list[Row]) -> Path:
        path = folder / f"rows.jsonl{extension}"
        path.write_bytes(pack(write(folder / "rows.jsonl", rows).read_bytes()))
        return path

    return make


def _zipped(folder: Path, rows: list[Row]) -> Path:
    inner = write(folder / "rows.jsonl", rows)
    with zipfile.ZipFile(folder / "rows.zip", "w") as archive:
        archive.write(inner, "data/rows.jsonl")
        archive.writestr("__MACOSX/._rows.jsonl", "")
    return folder / "rows.zip"


def _list_in_jsonl(folder: Path, rows: list[Row]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


def _pretty(folder: Path, rows: list[Row]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows), encoding="utf-8")
    return path


def _excel(folder: Path, rows: list[Row]) -> Path:
    text = write(folder / "rows.tsv", rows).read_text(encoding="utf-8")
    path = folder / "excel.csv"
    path.write_text("sep=\t\r\n" + text, encoding="utf-8-sig")
    return path


FILES: dict[str, Callable[[Path, list[Row]], Path]] = {
    **{each: _written(each) for each in (".jsonl", ".json", ".csv", ".tsv", ".parquet")},
    "a list in .jsonl": _list_in_jsonl,
    "pretty objects in .jsonl": _pretty,
    "sep= and a byte-order mark": _excel,
    **{encoding: _encoded(encoding) for encoding in ("cp1252", "utf-16", "utf-8-sig")},
    ".gz": _packed(".gz", gzip.compress),
    ".bz2": _packed(".bz2", bz2.compress),
    ".xz": _packed(".xz", lzma.compress),
    ".zip": _zipped,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Read every shape in every kind of file, and time a large one."""
    parser = flags(__doc__)
    parser.add_argument("--rows", type=int, default=50, help="rows of a file (default 50)")
    parser.add_argument("--large", type=int, default=100_000, help="rows to time (default 100,000)")
    chosen, words = read_flags(parser, arguments, rows=5, large=200)
    report = Report("data_shapes", "Public layouts of data, in many kinds of files", words)
    with tempfile.TemporaryDirectory() as name:
        tell_shapes(report, read_all(Path(name), chosen.rows))
        tell_times(report, Path(name), chosen.large, judged=not chosen.quick)
    report.facts = {
        "shapes": f"{len(SHAPES)} layouts of rows, {len(PREFERENCES)} of preference pairs",
        "files": f"each in {len(FILES)} kinds of files, {chosen.rows} rows, with letters that are "
        "not ASCII",
    }
    return report.finish(save=chosen.save)


def read_all(folder: Path, rows: int) -> Counter[str]:
    """Count the rows that are right, refused and silently wrong, and the same of preferences."""
    found: Counter[str] = Counter()
    for kind, make in FILES.items():
        for name, shape in SHAPES.items():
            outcome = read_one(folder, make, shape, rows)
            found.update(outcome)
            if outcome["right"] < rows:
                print(f"{name}, {kind}: {dict(outcome)}", flush=True)
        for name, (row, _) in PREFERENCES.items():
            path = make(folder, [row(n) for n in range(rows)])
            try:
                dataset.read(str(path), eval_share=0.0, seed=0)
            except WorkbenchError:
                found["pairs named"] += 1
            else:
                found["pairs taken for examples"] += 1
                print(f"{name}, {kind}: taken for examples", flush=True)
    return found


def read_one(
    folder: Path, make: Callable[[Path, list[Row]], Path], shape: Shape, rows: int
) -> Counter[str]:
    """Read one file, and compare each row with what it should say."""
    path = make(folder, [_marked(shape.row(n)) for n in range(rows)])
    meant = [_marked(shape.said(n)) for n in range(rows)]
    try:
        found = dataset.read(str(path), eval_share=0.0, seed=0)
        documents = found.train
    except WorkbenchError as error:
        print(f"{path.name}: {error}")
        return Counter(refused=rows)
    said = [[(turn["role"], turn["content"]) for turn in each.turns] for each in documents]
    right = sum(each in meant for each in said)
    return Counter(right=right, wrong=len(said) - right, refused=rows - len(said))


def _marked(value: object) -> object:
    """Put letters that are not ASCII before each question."""
    if isinstance(value, str):
        return value.replace("Question", f"{SAMPLE}Question")
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_marked(each) for each in value)
    return [_marked(each) for each in value] if isinstance(value, list) else value


def tell_shapes(report: Report, found: Counter[str]) -> None:
    """Put what was read into the report."""
    total = found["right"] + found["wrong"] + found["refused"]
    share = found["right"] / total
    report.add("rows read without help", f"{share:.1%} of {total:,}", f">= {BAR_READ:.0%}",
               share >= BAR_READ)  # fmt: skip
    report.add("rows silently wrong", str(found["wrong"]), "0", not found["wrong"])
    wrong = found["pairs taken for examples"]
    report.add("files of preference pairs taken for examples",
               f"{wrong} of {wrong + found['pairs named']}", "0", not wrong)  # fmt: skip


def tell_times(report: Report, folder: Path, rows: int, *, judged: bool) -> None:
    """Time the first look and the full report of a large file, as the page asks for them."""
    file = str(write_skewed(folder / "large.jsonl", rows))
    with Service(Settings(workspace=folder / "work", runtime="process")) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=300)
        service.start(rq.PreviewData(data="starter:pirate")).result(timeout=300)  # it is warm then
        look = _seconds(service, rq.PreviewData(data=file, every_row=False))
        whole = _seconds(service, rq.PreviewData(data=file))
    target = f"<= {BAR_LOOK_S:g} s" if judged else ""
    report.add(f"{rows:,} rows: first rows and count", f"{look:.2f} s", target,
               look <= BAR_LOOK_S if judged else None)  # fmt: skip
    report.add(f"{rows:,} rows: full report, the first time", f"{whole:.1f} s")


def _seconds(service: Service, request: rq.PreviewData) -> float:
    started = time.monotonic()
    service.start(request).result(timeout=600)
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
