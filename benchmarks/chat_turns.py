"""How soon an answer begins: a first question, and the second turn of a long conversation.

All through the worker, from the question to the first token, the only one of these answers.
Without a kept cache means that the worker has forgotten the first turn, because an adapter was
unloaded in between.
"""

import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from backend import Service, Settings
from backend import requests as rq
from benchmarks.chat_speed import ADAPTER, load, model_in
from benchmarks.interleave import Spread
from benchmarks.random_adapters import add_random_adapter
from benchmarks.report import Report, flags, read_flags

MOST_SHARE = 0.3
TIMEOUT_S = 600.0
CONVERSATION = 500
"""Tokens of the conversation before the second question, about."""

TEXT = "The fox lived in the old forest behind the hill, where the winter was long and cold. "
SECOND = "Now tell me in one sentence what it is about."


@dataclass(frozen=True)
class Turns:
    """Seconds to the first token of the second turn, with a kept cache and without."""

    kept: float
    fresh: float


def main(arguments: list[str] | None = None) -> int:
    """Measure both precisions and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2 135M Instruct")
    chosen, words = read_flags(parser, arguments, pairs=1)
    report = Report("chat_turns", "Time to the first token of an answer", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(model_in(folder / "models", chosen), folder / "workspace", chosen, report)
    report.facts = {"runs": f"{chosen.pairs}, the two second turns in turns"}
    return report.finish(save=chosen.save)


def measure(model: Path, workspace: Path, chosen: Namespace, report: Report) -> None:
    """Measure each precision."""
    with Service(Settings(workspace=workspace)) as service:
        for precision in ("fp32", "bf16"):
            load(service, model, precision)
            if not service.library.all():
                add_random_adapter(service, ADAPTER, seed=0)
            at_once, _ = timed(service, [rq.Message(role="user", content="Hello!")], 1)
            found = [turns(service, number) for number in range(chosen.pairs)]
            tell(precision, at_once, found, report, judged=not chosen.quick)


def turns(service: Service, number: int) -> Turns:
    """Measure one conversation, about a text of its own."""
    text = f"Text {number}: " + TEXT * (CONVERSATION // 25)
    messages = [rq.Message(role="user", content=f"Tell me what this is about. {text}")]
    seconds: dict[bool, float] = {}
    for kept in (True, False) if number % 2 == 0 else (False, True):
        forget(service)
        _, answer = timed(service, messages, 64)
        if not kept:
            forget(service)
        turn = [
            rq.Message(role="assistant", content=answer),
            rq.Message(role="user", content=SECOND),
        ]
        seconds[kept], _ = timed(service, messages + turn, 1)
    return Turns(seconds[True], seconds[False])


def forget(service: Service) -> None:
    """Let the worker forget what it keeps of earlier answers, as any change of the model does."""
    service.start(rq.SetActive(adapters=[(ADAPTER, 1.0)])).result(TIMEOUT_S)
    service.start(rq.UnloadAdapter(name=ADAPTER)).result(TIMEOUT_S)


def timed(service: Service, messages: list[rq.Message], tokens: int) -> tuple[float, str]:
    """Return the seconds to the first piece of an answer, and the answer."""
    started = time.perf_counter()
    job = service.start(rq.Chat(messages=messages, max_new_tokens=tokens))
    seconds = 0.0
    for _ in job.pieces():
        seconds = seconds or time.perf_counter() - started
    return seconds, job.result(TIMEOUT_S).text


def tell(
    precision: str, at_once: float, found: list[Turns], report: Report, *, judged: bool
) -> None:
    """Add the figures of one precision."""
    shares = Spread([each.kept / each.fresh for each in found])
    report.add(
        f"{precision}: second turn, with a kept cache / without",
        f"{shares:.2f}",
        f"<= {MOST_SHARE}" if judged else "",
        shares.median <= MOST_SHARE if judged else None,
    )
    kept, fresh = (Spread([getattr(each, name) for each in found]) for name in ("kept", "fresh"))
    report.add(f"{precision}: second turn with a kept cache, s", f"{kept:.3f}")
    report.add(f"{precision}: second turn without one, s", f"{fresh:.3f}")
    report.add(f"{precision}: first short question after loading, s", f"{at_once:.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
