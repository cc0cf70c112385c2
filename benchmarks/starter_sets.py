"""What each bundled data set teaches the starter model within a minute, with the app's defaults."""

import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from backend import Job, Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.settings import STARTER
from benchmarks.conditions import processor
from benchmarks.report import Report, flags, read_flags

LONGEST_S = 60.0
MOST_BEFORE, LEAST_AFTER, LEAST_SETS = 0.20, 0.90, 3
LONGEST_ANSWER = 32
CARD = STARTER / "model" / "README.md"
MARKED = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)


@dataclass(frozen=True)
class Learned:
    """One data set: right answers on its held-out part, before and after."""

    name: str
    before: float
    after: float
    run: rs.RunResult

    @property
    def good(self) -> bool:
        return self.before < MOST_BEFORE and self.after > LEAST_AFTER


def main(arguments: list[str] | None = None) -> int:
    """Train every bundled set, report, and fill in the model card."""
    chosen, words = read_flags(flags(__doc__), arguments)
    report = Report("starter_sets", "What the bundled data sets teach the starter model", words)
    sets = list(json.loads((STARTER / "data" / "catalogue.json").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        # A quick run shares the process of its caller, which may have PyTorch loaded already.
        runtime = "inline" if chosen.quick else "process"
        with Service(Settings(workspace=Path(folder), runtime=runtime)) as service:
            service.start(rq.LoadModel(source="starter")).result(timeout=120)
            learned = [
                learn(service, name, quick=chosen.quick)
                for name in sets[: 1 if chosen.quick else None]
            ]
    tell(learned, report)
    if chosen.save:
        fill_card(card_table(learned))
    return report.finish(save=chosen.save)


def learn(service: Service, name: str, *, quick: bool) -> Learned:
    """Train one set, at most a minute, and let base and adapter answer the held-out questions."""
    steps = 2 if quick else None
    job = service.start(rq.Train(name=name, data=f"starter:{name}", max_steps=steps))
    run: rs.RunResult = wait(service, job)
    questions = held_out(name)[: 3 if quick else None]
    before, after = right_answers(service, name, questions)
    return Learned(name, before, after, run)


def wait(service: Service, job: Job) -> rs.RunResult:
    """Wait for a training, and stop it a minute after its first step."""
    assert job.run_id is not None
    while not job.done():
        steps = [event.time for event in service.events(job.run_id) if event.type == "step"]
        if steps and time.time() - steps[0] > LONGEST_S:
            service.stop()
            break
        time.sleep(0.25)
    result: rs.RunResult = job.result(timeout=300)
    return result


def right_answers(
    service: Service, name: str, questions: list[tuple[str, str]]
) -> tuple[float, float]:
    """Return the shares that base and adapter answer word for word, decoding greedily."""
    request = rq.Compare(
        prompts=[question for question, _ in questions],
        variants=[[], [(name, 1.0)]],
        max_new_tokens=LONGEST_ANSWER,
    )
    answers: rs.Answers = service.start(request).result(timeout=600)
    expected = [answer for _, answer in questions]
    before, after = (
        sum(said.strip() == right for said, right in zip(each, expected, strict=True))
        / len(expected)
        for each in answers.answers
    )
    return before, after


def held_out(name: str) -> list[tuple[str, str]]:
    """Return a set's held-out questions with their answers."""
    lines = (STARTER / "data" / name / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [(row[0]["content"], row[1]["content"]) for row in rows]


def tell(learned: list[Learned], report: Report) -> None:
    """Add each set and the count of those that reach the bar."""
    for each in learned:
        report.add(f"{each.name}: right before and after", f"{each.before:.0%} to {each.after:.0%}")
        report.notes.append(f"{each.name}: {words_about(each.run)}\n")
    good = sum(each.good for each in learned)
    report.add(
        f"sets from under {MOST_BEFORE:.0%} to over {LEAST_AFTER:.0%}",
        f"{good} of {len(learned)}",
        f">= {LEAST_SETS}",
        good >= LEAST_SETS,
    )
    report.facts = {
        "settings": "the app's defaults, stopped a minute after the first step at the latest"
    }


def words_about(run: rs.RunResult) -> str:
    """Say what a run was like, and what its own evaluation says."""
    tests = [
        f"{test.exact_match or 0:.0%}" for test in (run.evaluation_before, run.evaluation) if test
    ]
    return (
        f"{run.steps} of {run.total_steps} steps in {run.seconds:.0f} s ({run.precision}, "
        f"{run.tokens_per_second:,.0f} tokens/s); the run's own evaluation: {' to '.join(tests)}."
    )


def card_table(learned: list[Learned]) -> str:
    """Return the table for the model card."""
    rows = [
        f"| {each.name} | {each.before:.0%} | {each.after:.0%} | {each.run.seconds:.0f} s |"
        for each in learned
    ]
    head = ["| data set | before | after | training |", "|---|---|---|---|"]
    machine = f"{os.cpu_count()} cores of {processor()}, {time.strftime('%Y-%m-%d')}"
    about = f"On {machine}, with the app's default settings: `python -m benchmarks.starter_sets`."
    return "\n".join([*head, *rows, "", about])


def fill_card(table: str) -> None:
    """Put the table between the card's marks."""
    card = CARD.read_text(encoding="utf-8")
    filled, times = MARKED.subn(lambda match: f"{match[1]}{table}\n{match[2]}", card)
    if times != 1:
        raise RuntimeError(f"{CARD} has {times} marked places for the table, not one.")
    CARD.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
