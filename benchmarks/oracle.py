"""Random sequences of everything that can be done to adapters, each step held against plain PEFT.

The same machine as in the tests, for longer: until the steps are done, or the minutes are over.
"""

import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.report import Report, flags, read_flags
from tests.oracle.adapters_from_outside import write_sources
from tests.oracle.machine import AdapterMachine
from tests.oracle.workbench import CLOSE, Tally

LENGTH, SEQUENCES = 50, 20
"""Steps of a sequence, and sequences with one seed."""


class _Over(BaseException):
    """The steps are done, or the time is; Hypothesis passes on what is not an Exception."""


@dataclass
class Outcome:
    """What was found: steps and differences, and for each failure its seed and last words."""

    tally: Tally = field(default_factory=Tally)
    failures: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Run and report; the exit status tells whether all steps were done and agreed."""
    parser = flags(__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--minutes", type=float, default=120, help="at most so long (default 120)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    chosen, words = read_flags(parser, arguments, steps=3)
    report = Report("oracle", "Random sequences of operations, against plain PEFT", words)
    started = time.monotonic()
    found = run(chosen.steps, started + 60 * chosen.minutes, chosen.seed)
    tell(report, found, chosen.steps, time.monotonic() - started)
    report.finish(save=chosen.save)
    return 1 if found.failures or found.tally.total < chosen.steps else 0


def run(steps: int, until: float, first_seed: int) -> Outcome:
    """Run sequences, one seed after the other, until one of the limits is reached."""
    found = Outcome()

    def over() -> bool:
        return found.tally.total >= steps or time.monotonic() > until

    def check() -> None:
        if over():
            raise _Over

    with tempfile.TemporaryDirectory() as name:
        sources = {
            base: write_sources(Path(name) / base, tied=base == "tied")
            for base in ("untied", "tied")
        }
        members = {"sources": sources, "tally": found.tally, "before_step": staticmethod(check)}
        number = first_seed
        while not over():
            machine = seed(number)(type("Machine", (AdapterMachine,), members))
            try:
                run_state_machine_as_test(machine, settings=_settings())
            except _Over:
                break
            except Exception as error:
                if over() and isinstance(error, Flaky):  # Hypothesis tries again what the limit cut
                    break
                traceback.print_exc()
                found.failures.append(f"seed {number}: {str(error).splitlines()[0][:200]}")
            print(f"seed {number}: {found.tally.total:,} steps in all", flush=True)
            number += 1
    return found


def tell(report: Report, found: Outcome, steps: int, seconds: float) -> None:
    """Put what was found into the report."""
    tally, failed = found.tally, len(found.failures)
    largest = max(tally.largest.values(), default=0.0)
    done = tally.total >= steps
    report.add("steps that agree with plain PEFT", f"{tally.total:,}", f">= {steps:,}", done)
    report.add("failures", str(failed), "0", failed == 0)
    report.add("largest difference", f"{largest:.1e}", f"<= {CLOSE:.0e}", largest <= CLOSE)
    report.notes += [
        "Differences are of log-probabilities in fp32, relative to max(1, |value|).",
        "",
        "| comparison | largest difference | steps |",
        "|---|---|---|",
        *(
            f"| {kind} | {value:.1e} | {tally.steps.get(kind, '')} |"
            for kind, value in sorted(tally.largest.items())
        ),
        "",
        f"{sum(tally.refused.values()):,} operations were refused, as they should be, and left "
        "active set, library and scores bit for bit.",
        *([""] if found.failures else []),
        *(f"- {line}" for line in found.failures),
        "",
    ]
    report.facts = {
        "models": "random Llamas of two layers and width 48, with tied and untied embeddings",
        "asked for": f"{steps:,} steps; it took {seconds / 60:.1f} minutes",
    }


def _settings() -> settings:
    return settings(
        max_examples=SEQUENCES,
        stateful_step_count=LENGTH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


if __name__ == "__main__":
    raise SystemExit(main())
