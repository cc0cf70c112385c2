"""The memory estimate against measured peaks of our own training path, on many shapes."""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from backend.service import allocator
from backend.service.worker_process import process_environment
from benchmarks import models
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed

MEDIAN_BAR, WORST_BAR, SMALL_BAR = 0.15, 0.25, 0.10
SMALL = 150_000_000
STEPS = 20

SIZES = {
    "5M": models.Size(width=256, inner=704, layers=5, heads=4),
    "30M": models.LLAMA_32M,
    "120M": models.Size(width=768, inner=2688, layers=12, heads=12),
}


@dataclass(frozen=True)
class Case:
    """One run: a size and what is varied."""

    size: str
    budget: int = 512
    rank: int = 8
    checkpointing: bool = False
    quantization: str = "none"
    dora: bool = False
    precision: str = "fp32"

    @property
    def title(self) -> str:
        parts = [self.size, f"{self.budget} tokens", f"rank {self.rank}"]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += [self.quantization] if self.quantization != "none" else []
        parts += ["DoRA"] if self.dora else []
        parts += [self.precision] if self.precision != "fp32" else []
        return ", ".join(parts)


CASES = (
    Case("5M"),
    Case("5M", budget=2048, rank=32),
    Case("5M", budget=4096, quantization="nf4"),
    Case("30M", budget=512),
    Case("30M", budget=1024, rank=64),
    Case("30M", budget=2048, checkpointing=True),
    Case("30M", budget=1024, precision="bf16"),
    Case("30M", budget=2048, checkpointing=True, precision="bf16"),
    Case("30M", budget=1024, quantization="nf4"),
    Case("30M", budget=1024, quantization="int8"),
    Case("30M", budget=2048, quantization="int8", checkpointing=True),
    Case("120M", budget=512),
    Case("120M", budget=512, precision="bf16"),
    Case("120M", budget=256, rank=128, quantization="nf4"),
    Case("120M", budget=1024, checkpointing=True, quantization="nf4"),
)
QUICK = (Case("5M", budget=256), Case("5M", budget=256, quantization="nf4"))


def main(arguments: list[str] | None = None) -> int:
    """Run every case in a process of its own and compare."""
    parser = flags(__doc__)
    parser.add_argument("--only", type=int, help="the number of one case")
    chosen, words = read_flags(parser, arguments)
    report = Report("memory_estimate", "Predicted against measured memory of a run", words)
    cases = QUICK if chosen.quick else CASES
    if chosen.only is not None:
        cases = (CASES[chosen.only],)
    large, small = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            found = measure(case, Path(folder))
            off, judged = compare(found)
            (large if judged else small).append(abs(off))
            tell(case, found, off, judged=judged, report=report)
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
    """Run a case in a fresh worker process and return what it says."""
    model = folder / case.size
    if not model.exists():
        models.random_llama(model, SIZES[case.size])
    data = folder / "skewed.jsonl"
    if not data.exists():
        write_skewed(data, 300)
    said = {**case.__dict__, "model": str(model), "data": str(data), "steps": STEPS}
    words = json.dumps(said)
    command = [sys.executable, "-m", "benchmarks.one_run", words]
    own = process_environment(allocator.environment())  # as the app starts a worker
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout
    found: dict[str, int] = json.loads(output.splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
