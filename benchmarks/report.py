"""A benchmark's command line and its report: figure, target, conditions, printed and kept."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.conditions import Conditions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure. An empty target means that it is only reported; `good` is None then."""

    what: str
    figure: str
    target: str = ""
    good: bool | None = None

    @property
    def verdict(self) -> str:
        return {None: "reported", True: "met", False: "missed"}[self.good]


@dataclass
class Report:
    """What one command found out."""

    name: str
    title: str
    arguments: Sequence[str]
    conditions: Conditions = field(default_factory=Conditions)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def add(self, what: str, figure: str, target: str = "", good: bool | None = None) -> None:
        """Add a figure."""
        self.rows.append(Row(what, figure, target, good))

    def text(self) -> str:
        """Return the whole report as Markdown."""
        rows = [f"| {r.what} | {r.figure} | {r.target} | {r.verdict} |" for r in self.rows]
        return "\n".join(
            [
                f"# {self.title}",
                "",
                "| what | measured | target | |",
                "|---|---|---|---|",
                *rows,
                "",
                *(f"- {line}" for line in self.conditions.lines(**self.facts)),
                f"- command: `{self.command}`",
                *(["", *self.notes] if self.notes else []),
                "",
            ]
        )

    @property
    def command(self) -> str:
        return " ".join(["python -m", f"benchmarks.{self.name}", *self.arguments])

    def finish(self, *, save: bool) -> int:
        """Print the report, and keep it where that was asked for."""
        text = self.text()
        print(text)
        if save:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.md").write_text(text, encoding="utf-8")
        return 0


def flags(about: str | None, *, repeats: str = "") -> argparse.ArgumentParser:
    """Return a parser with the flags that every command has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="show that it works, measure nothing")
    parser.add_argument("--save", action="store_true", help="keep the report in benchmarks/results")
    if repeats:
        parser.add_argument(f"--{repeats}", type=int, default=5, help="how many (default 5)")
    return parser


def read_flags(
    parser: argparse.ArgumentParser, arguments: list[str] | None, **quick: object
) -> tuple[argparse.Namespace, list[str]]:
    """Parse; `quick` holds what --quick changes. Returns the flags and the words as given."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(words)
    if chosen.quick and chosen.save:
        parser.error("a quick run measures nothing that is worth keeping")
    if chosen.quick:
        vars(chosen).update(quick)
    return chosen, words
