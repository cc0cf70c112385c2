"""Every causal language model type that Transformers lists, tiny and random, through the whole app.

Each type is loaded, scored, trained, read back, asked, compared, merged, blended and hot-swapped,
and each step is compared with plain PEFT. Only types that plain PEFT itself can train count; the
others are listed with its own exception. A type has 20 seconds of processor time, in a process of
its own.

`--kept FILE` writes each outcome down at once, and a later call goes on after them; `--part 2/4`
takes every fourth type.
"""

import argparse
import json
import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.report import Report, flags, read_flags
from tests.architectures.cycle import STEPS, Outcome, run
from tests.architectures.tiny_models import TYPES

BAR_RIGHT, SECONDS, PATIENCE = 0.9, 20, 10
"""Seconds of a processor for a type, and how many times longer other work may make it."""
QUICK = ["llama", "gpt_oss"]


def main(arguments: list[str] | None = None) -> int:
    """Run the types that are asked for, and report."""
    parser = flags(__doc__)
    parser.add_argument("--types", nargs="*", default=list(TYPES), help="only these types")
    parser.add_argument("--part", type=_part, default=(1, 1), help="such as 2/4")
    parser.add_argument("--kept", type=Path, help="file of outcomes, continued where it exists")
    chosen, words = read_flags(parser, arguments, types=QUICK)
    number, parts = chosen.part
    report = Report("architectures", "Causal language model types through the whole app", words)
    tell(report, list(outcomes(chosen.types[number - 1 :: parts], chosen.kept)))
    return report.finish(save=chosen.save)


def outcomes(kinds: Sequence[str], kept: Path | None) -> Iterator[Outcome]:
    """Yield the outcome of each type: a kept one, or a new one, which is kept."""
    known = _read(kept) if kept else {}
    for kind in kinds:
        if kind not in known:
            outcome = _alone(kind)
            verdict = "right" if outcome.right else "not counted" if outcome.plain else "wrong"
            print(f"{kind}: {verdict} ({outcome.seconds:.1f} s)", flush=True)
            if kept:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
            known[kind] = outcome
        yield known[kind]


def tell(report: Report, found: Sequence[Outcome]) -> None:
    """Report how many types are right, and what is wrong with each of the others."""
    counted = [each for each in found if not each.plain]
    right = sum(each.right for each in counted)
    lost = [each.kind for each in counted if each.lost]
    share = right / max(len(counted), 1)
    report.add(
        "types right in the whole cycle, of those that plain PEFT trains",
        f"{right} of {len(counted)} ({share:.1%})",
        f">= {BAR_RIGHT:.0%}",
        share >= BAR_RIGHT,
    )
    report.add("training lost, or refused after Ready", str(len(lost)), "0", not lost)
    for step in STEPS:
        report.add(f"{step}: right", str(sum(each.steps.get(step) == "" for each in counted)))
    if counted:
        longest = max(each.seconds for each in found)
        report.add("longest processor time of a type", f"{longest:.1f} s", f"<= {SECONDS} s", True)
    report.notes.extend(_notes(found))


def _notes(found: Sequence[Outcome]) -> Iterator[str]:
    """List the layouts, the types that are wrong, and those that do not count, with reasons."""
    layouts = sorted({each.layout for each in found if each.layout})
    for layout in layouts:
        yield f"Trained as {layout}: {', '.join(e.kind for e in found if e.layout == layout)}.\n"
    yield f"Right: {', '.join(each.kind for each in found if each.right)}.\n"
    for each in found:
        if not each.plain and not each.right:
            for step, reason in each.steps.items():
                if reason:
                    yield f"- {each.kind}, {step}: {reason}"
    yield "\nNot counted, because plain PEFT cannot train the tiny model that is made of them:\n"
    for each in found:
        if each.plain:
            yield f"- {each.kind}: {each.plain}"


def _alone(kind: str) -> Outcome:
    """Run a type in a process of its own, which may hang or be killed."""
    context = get_context("forkserver")  # the libraries are imported once, without threads
    context.set_forkserver_preload(["tests.architectures.cycle"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(kind, there))
    process.start()
    there.close()
    try:
        if here.poll(SECONDS * PATIENCE):
            return Outcome(**here.recv())
        reason = "no answer"
    except EOFError:
        reason = f"its process died, or took more than {SECONDS} seconds"
    finally:
        process.kill()
        process.join()
    return Outcome(kind, steps={"load": reason}, seconds=SECONDS)


def _send(kind: str, pipe: Any) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pipe.send(asdict(run(kind)))


def _read(kept: Path) -> dict[str, Outcome]:
    if not kept.exists():
        return {}
    lines = kept.read_text(encoding="utf-8").splitlines()
    return {each.kind: each for each in (Outcome(**json.loads(line)) for line in lines)}


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError("a part looks like 2/4")
    return int(number), int(parts)


if __name__ == "__main__":
    raise SystemExit(main())
