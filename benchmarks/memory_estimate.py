"""The memory estimate against measured peaks of training runs, each in a worker of its own.

The worker is the one that the app starts, and the peak is the one that it reports.
"""

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from backend import requests as rq
from backend.catalogue.packaged_models import SMOLLM2
from backend.engine.core.job_control import Control
from backend.engine.models import packaged_model
from benchmarks import models
from benchmarks.our_training import TIMEOUT_S, OurTraining, train_request
from benchmarks.report import Report, flags, read_flags
from benchmarks.row_training import random_falcon
from benchmarks.skewed_data import write_skewed
from tests.real_documents import write_questions

MEDIAN_BAR, WORST_BAR, SMALL_BAR = 0.15, 0.25, 0.10
SMALL = 150_000_000
ROWS = 300

SIZES = {
    "5M": models.Size(width=256, inner=704, layers=5, heads=4),
    "30M": models.LLAMA_32M,
    "120M": models.Size(width=768, inner=2688, layers=12, heads=12),
}
ALIBI = models.Size(width=512, inner=2048, layers=8, heads=8)
REAL = "SmolLM2"


@dataclass(frozen=True)
class Case:
    """One run: a model, how it is loaded, and what is varied."""

    model: str
    budget: int = 512
    rank: int = 8
    checkpointing: bool = False
    quantization: str = "none"
    dora: bool = False
    precision: str = "fp32"
    """Of the steps."""
    stored: str = "fp32"
    """Of the loaded base."""
    real_text: bool = False
    """Else made-up conversations, some of them long."""
    steps: int = 20

    @property
    def title(self) -> str:
        parts = [self.model, f"{self.budget} tokens", f"rank {self.rank}"]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += [self.quantization] if self.quantization != "none" else []
        parts += ["DoRA"] if self.dora else []
        parts += [f"base in {self.stored}"] if self.stored != "fp32" else []
        parts += [self.precision] if self.stored == "fp32" and self.precision != "fp32" else []
        return ", ".join(parts)


smol = partial(Case, REAL, real_text=True, steps=5)
RANDOM = (
    Case("5M"),
    Case("5M", budget=2048, rank=32),
    Case("5M", budget=4096, quantization="nf4"),
    Case("30M", budget=512),
    Case("30M", budget=1024, rank=64),
    Case("30M", budget=2048, checkpointing=True),
    Case("30M", budget=1024, quantization="nf4"),
    Case("30M", budget=1024, quantization="int8"),
    Case("30M", budget=2048, quantization="int8", checkpointing=True),
    Case("120M", budget=512),
    Case("120M", budget=256, rank=128, quantization="nf4"),
    Case("120M", budget=1024, checkpointing=True, quantization="nf4"),
)
HALF_AND_REAL = (
    smol(),
    smol(precision="bf16"),
    smol(stored="bf16"),
    smol(budget=1024, rank=64, precision="bf16"),
    smol(budget=1024, stored="bf16", real_text=False),
    smol(budget=1024, stored="bf16", checkpointing=True),
    smol(budget=1024, precision="bf16", checkpointing=True),
    smol(stored="bf16", quantization="nf4"),
    smol(stored="bf16", dora=True),
    Case("30M", budget=1024, precision="bf16"),
    Case("30M", budget=1024, stored="bf16"),
    Case("30M", budget=2048, precision="bf16", checkpointing=True),
    Case("ALiBi in rows", budget=1024, steps=20),
    Case("ALiBi in rows", budget=1024, precision="bf16", steps=20),
    Case("ALiBi in rows", budget=1024, stored="bf16", steps=20),
)
PARTS = {"half": HALF_AND_REAL, "random": RANDOM, "all": HALF_AND_REAL + RANDOM}
QUICK = (
    Case("5M", budget=256, steps=2),
    Case("5M", budget=256, stored="bf16", quantization="nf4", steps=2),
)


def main(arguments: list[str] | None = None) -> int:
    """Run every case in a worker of its own and compare."""
    parser = flags(__doc__)
    parser.add_argument("--cases", choices=PARTS, default="all", help="half: bf16, SmolLM2, rows")
    parser.add_argument("--only", type=int, help="the number of one of these cases")
    parser.add_argument("--keep", type=Path, help="a JSONL file that gets each case's figures")
    chosen, words = read_flags(parser, arguments)
    report = Report("memory_estimate", "Predicted against measured memory of a run", words)
    cases = QUICK if chosen.quick else PARTS[chosen.cases]
    if chosen.only is not None:
        cases = (cases[chosen.only],)
    large, small = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            found = measure(case, Path(folder))
            off, judged = compare(found)
            (large if judged else small).append(abs(off))
            tell(case, found, off, judged=judged, report=report)
            if chosen.keep:
                with chosen.keep.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps({**asdict(case), **found}) + "\n")
    if large and not chosen.quick:
        median, worst = statistics.median(large), max(large)
        report.add(
            "median error, peak of 150 MB or more", f"{median:.0%}", "<= 15 %", median <= MEDIAN_BAR
        )
        report.add(
            "worst error, peak of 150 MB or more", f"{worst:.0%}", "<= 25 %", worst <= WORST_BAR
        )
    if small:
        good = None if chosen.quick else max(small) <= SMALL_BAR
        report.add(
            "worst error of total resident, smaller peaks", f"{max(small):.0%}", "<= 10 %", good
        )
    return report.finish(save=chosen.save)


def compare(found: dict[str, int]) -> tuple[float, bool]:
    """Return the error, and whether it is judged by the peak alone (else by all resident)."""
    if found["measured"] >= SMALL:
        return found["predicted"] / found["measured"] - 1, True
    total = found["idle"] + found["measured"]
    return (found["predicted"] - found["measured"]) / total, False


def tell(case: Case, found: dict[str, int], off: float, *, judged: bool, report: Report) -> None:
    """Add a case's figures."""
    figure = (
        f"{found['predicted'] / 1e6:.0f} MB predicted, {found['measured'] / 1e6:.0f} MB measured"
    )
    of = "" if judged else " of total resident"
    report.add(case.title, f"{figure}: {off:+.0%}{of}")


def measure(case: Case, folder: Path) -> dict[str, int]:
    """Run a case in a fresh worker; return what it predicted and measured, in bytes."""
    load = rq.LoadModel(
        source=str(_model(case.model, folder)),
        quantization=case.quantization,
        precision=case.stored,
    )
    train = train_request(
        _data(case, folder),
        budget=case.budget,
        max_steps=case.steps,
        watch=(),
        adapter=rq.Lora(rank=case.rank, use_dora=case.dora),
        gradient_checkpointing=case.checkpointing,
        precision=case.precision,
    )
    with OurTraining() as ours:
        ours.service.start(load).result(TIMEOUT_S)
        idle = ours.service.snapshot().memory_bytes
        result = ours.service.start(train).result(TIMEOUT_S)
    return {
        "predicted": result.predicted_memory_bytes,
        "measured": result.peak_memory_bytes,
        "idle": idle,
    }


def _model(name: str, folder: Path) -> Path:
    """Return the folder of a model, written when it is needed first."""
    if name == REAL:
        return packaged_model.converted(SMOLLM2, folder, Control(0, lambda message: None))
    model = folder / name.replace(" ", "-")
    if model.exists():
        return model
    if name in SIZES:
        return models.random_llama(model, SIZES[name])
    return random_falcon(model, ALIBI)


def _data(case: Case, folder: Path) -> Path:
    write = write_questions if case.real_text else write_skewed
    file = folder / f"{write.__name__}.jsonl"
    return file if file.exists() else write(file, ROWS)


if __name__ == "__main__":
    raise SystemExit(main())
