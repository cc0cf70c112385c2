"""Where the speed of a training step comes from: one change after the other, in a table.

SmolLM2 on real text. The first row is the step of the hand-written loop in the environment that a
person's script has; the second is the same in the environment of the worker (allocator, threads).
From there on each row adds one part of ours. Both processes compute in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from backend.engine.steps import chunked_loss, packed_attention, packing, step_loss
from backend.engine.steps.lean_layers import LeanLayers
from backend.service import allocator
from backend.service.worker_process import process_environment
from benchmarks import models
from benchmarks.our_training import documents, plan, train_request
from benchmarks.packed_loop import adapted_model, lay_out, pack_loss
from benchmarks.plain_script import read_in_full
from benchmarks.report import Report, flags, read_flags
from tests.real_documents import write_questions

PARTS = ("worker's environment", "documents attend apart", "lean layers", "loss in parts")
PRECISIONS = ("fp32", "bf16")
PLAIN = "hand-written loop"
BUDGET = 512


def main(arguments: list[str] | None = None) -> int:
    """Measure all rows in turns and report."""
    parser = flags(__doc__, repeats="rounds")
    parser.add_argument("--packs", type=int, default=3, help="packs a round (default 3)")
    chosen, words = read_flags(parser, arguments, rounds=1, packs=1)
    report = Report("step_gains", "Where the speed of a training step comes from", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quick = chosen.quick
        model = models.random_llama(folder / "m", models.TINY) if quick else models.smollm2(folder)
        write_questions(folder / "questions.jsonl", 24, in_full=True)
        case = [model, folder / "questions.jsonl", chosen.rounds, chosen.packs]
        plain = in_process(case, [PLAIN], {})
        ours = in_process(case, list(PARTS), process_environment(allocator.environment()))
    for precision in PRECISIONS:
        tell(precision, {**plain[precision], **ours[precision]}, report)
    report.facts = {
        "model": "tiny Llama" if chosen.quick else "SmolLM2-135M-Instruct, loaded in fp32",
        "threads": torch.get_num_threads(),
        "runs": f"{chosen.rounds} rounds of {chosen.packs} packs of {BUDGET} tokens; the rows of "
        "the worker's environment in turns, forward and backward pass alone; medians",
    }
    return report.finish(save=chosen.save)


def tell(precision: str, speeds: dict[str, list[float]], report: Report) -> None:
    """Add the rows of a precision: tokens a second, and what the part adds."""
    before = 0.0
    for name in (PLAIN, *PARTS):
        found = statistics.median(speeds[name])
        gain = f", {found / before:.2f}x" if before else ""
        report.add(f"{precision}: {'' if name == PLAIN else '+ '}{name}", f"{found:,.0f}{gain}")
        before = found


def in_process(
    case: list[Any], rows: list[str], environment: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Measure rows in a process with an environment of its own; tokens a second by precision."""
    command = [sys.executable, "-m", "benchmarks.step_gains", "--one", *map(str, case), *rows]
    whole = {**os.environ, **environment}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(model: Path, data: Path, rounds: int, packs: int, rows: list[str]) -> dict[str, Any]:
    """Measure rows in this process, one after the other in each round."""
    train = train_request(data, budget=BUDGET, epochs=4.0)
    examples = documents(train, model)
    planned = plan(train, examples)[:packs]
    peft = adapted_model(read_in_full(model), train)
    by_hand = [lay_out([examples[number] for number in pack]) for pack in planned]
    ours = packing.Packs(examples, planned)
    found: dict[str, dict[str, list[float]]] = {p: {row: [] for row in rows} for p in PRECISIONS}
    for number in range(rounds + 1):  # the first is a warm-up
        for precision in PRECISIONS:
            for row in rows:
                with parts(peft, row) as is_ours:
                    chosen: Any = ours if is_ours else by_hand
                    step = _our_loss if is_ours else pack_loss
                    step(peft, chosen[0], precision).backward()  # casts, once for a run
                    started = time.perf_counter()
                    for pack in range(packs):
                        step(peft, chosen[pack], precision).backward()
                    seconds = time.perf_counter() - started
                peft.zero_grad(set_to_none=True)
                if number:
                    tokens = sum(map(ours.tokens, range(packs)))
                    found[precision][row].append(tokens / seconds)
    return found


@contextmanager
def parts(peft: Any, last: str) -> Iterator[bool]:
    """Turn on all parts up to one; yields whether the step is then ours."""
    base = peft.get_base_model()
    on = PARTS[: PARTS.index(last) + 1] if last in PARTS else ()
    with ExitStack() as opened:
        if "documents attend apart" in on:
            opened.enter_context(packed_attention.documents_apart(base))
        if "lean layers" in on:
            opened.callback(LeanLayers(base, keeps=True).leave)
        if "loss in parts" in on:
            chunked_loss.note(base, torch.arange(5, 17)[None])
            opened.callback(chunked_loss.forget, base)
        yield len(on) > 1


def _our_loss(model: Any, batch: step_loss.Batch, precision: str) -> torch.Tensor:
    opened = step_loss.autocast(torch.device("cpu"), precision)
    return step_loss.loss_sum(model, batch, opened) / len(batch["labels"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        model, data, rounds, packs, *rows = sys.argv[2:]
        print(json.dumps(one(Path(model), Path(data), int(rounds), int(packs), rows)))
        raise SystemExit
    raise SystemExit(main())
