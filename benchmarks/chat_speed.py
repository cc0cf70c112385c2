"""One answer through the worker against plain `generate` of Transformers, on a real chat model.

Ours is timed as a caller waits for it, from the question to the last piece; plain `generate` has a
process of its own, in the environment of this command, and is timed with tokenising and decoding.
Each round loads the base in each precision, and lets both sides answer a question of its own.
"""

import shutil
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from benchmarks import models
from benchmarks.interleave import Pairs, interleaved
from benchmarks.peer import Peer
from benchmarks.random_adapters import add_random_adapter
from benchmarks.report import Report, flags, read_flags

SAME_PRECISION = 1.15
EACH_AT_ITS_BEST = 1.3
PRECISIONS = ("fp32", "bf16")
ADAPTER = "random"
TIMEOUT_S = 600.0
WARM_UP = "Hello!"
QUESTIONS = (
    "Write a long story about a fox who looks for a warm place in winter.",
    "Explain in detail how a list of names is sorted in Python.",
    "Write a long letter to a friend who has moved to another town.",
    "Explain in detail why the sky is blue, and why it is red in the evening.",
    "Describe a day in the life of a baker, from morning to night.",
)


@dataclass(frozen=True)
class Answered:
    """One answer, and its tokens a second."""

    speed: float
    text: str


@dataclass(frozen=True)
class Case:
    """A precision, with the base alone or with an adapter on it."""

    precision: str
    adapter: bool = False

    @property
    def name(self) -> str:
        return f"{'an adapter of rank 8' if self.adapter else 'the base'}, {self.precision}"


CASES = (*map(Case, PRECISIONS), Case("fp32", adapter=True))


def main(arguments: list[str] | None = None) -> int:
    """Measure the base in each precision and an adapter, and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2 135M Instruct")
    chosen, words = read_flags(parser, arguments, pairs=1, tokens=8)
    report = Report("chat_speed", "One answer through the worker against plain generate", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(model_in(folder / "models", chosen), folder / "workspace", chosen, report)
    report.facts = {
        "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
        "runs": f"{chosen.pairs} rounds, {chosen.tokens} tokens an answer, after a short answer "
        "that is not counted",
    }
    return report.finish(save=chosen.save)


def model_in(folder: Path, chosen: Namespace) -> Path:
    """Return the folder of the model to measure."""
    if chosen.model:
        return Path(shutil.copytree(chosen.model, folder))
    if chosen.quick:
        return models.make_endless(models.random_llama(folder, models.TINY))
    return models.smollm2(folder)


def measure(model: Path, workspace: Path, chosen: Namespace, report: Report) -> None:
    """Let both sides answer in turns, case by case in each round."""
    found = {case: Pairs[Answered]([], []) for case in CASES}
    with Service(Settings(workspace=workspace)) as service, Peer() as peer:
        load(service, model, "fp32")
        adapter = service.library.folder(add_random_adapter(service, ADAPTER, seed=0).id)
        for number in range(chosen.pairs):
            for case in CASES:
                one = one_pair(service, peer, model, adapter, case, number, chosen.tokens)
                found[case].ours.extend(one.ours)
                found[case].peer.extend(one.peer)
        base = service.snapshot().base
        assert base is not None
        report.notes.append(f"Model: {base.name}, {base.parameters / 1e6:.1f} M parameters.\n")
    for case in CASES:
        tell(case, found[case], report, judged=not chosen.quick)
    tell_best([found[case] for case in CASES if not case.adapter], report, judged=not chosen.quick)
    tell_floor(base.parameters, report)


def one_pair(
    service: Service,
    peer: Peer,
    model: Path,
    adapter: Path,
    case: Case,
    number: int,
    tokens: int,
) -> Pairs[Answered]:
    """Measure both sides once, each after a short answer that is not counted."""
    load(service, model, case.precision)
    variant: rq.Variant = [(ADAPTER, 1.0)] if case.adapter else []
    question = QUESTIONS[number % len(QUESTIONS)]
    given = (model, adapter if case.adapter else None, case.precision)
    ask(service, variant, WARM_UP, 8)
    peer.run(generate, *given, WARM_UP, 8)

    def ours() -> Answered:
        return ask(service, variant, question, tokens)

    def plain() -> Answered:
        return peer.run(generate, *given, question, tokens)

    if number % 2 == 0:
        return interleaved(ours, plain, pairs=1)
    turned = interleaved(plain, ours, pairs=1)
    return Pairs(turned.peer, turned.ours)


def load(service: Service, model: Path, precision: str) -> None:
    """Load the base in a precision, unless it is loaded so."""
    base = service.snapshot().base
    if base is None or base.precision != precision:
        request = rq.LoadModel.model_validate({"source": str(model), "precision": precision})
        service.start(request).result(TIMEOUT_S)


def ask(service: Service, variant: rq.Variant, question: str, tokens: int) -> Answered:
    """Ask the worker, and read the answer piece by piece as the page does."""
    started = time.perf_counter()
    message = rq.Message(role="user", content=question)
    job = service.start(rq.Chat(messages=[message], variant=variant, max_new_tokens=tokens))
    for _ in job.pieces():
        pass
    answer = job.result(TIMEOUT_S)
    return Answered(answer.tokens / (time.perf_counter() - started), answer.text)


def generate(
    folder: Path, adapter: Path | None, precision: str, question: str, tokens: int
) -> Answered:
    """Answer as a short script does."""
    tokenizer, model = read(folder, adapter, precision)
    started = time.perf_counter()
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    new = output[0, ids.input_ids.shape[1] :]
    answer = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
    return Answered(len(new) / (time.perf_counter() - started), answer)


@cache
def read(folder: Path, adapter: Path | None, precision: str) -> tuple[Any, Any]:
    """Read a model once in a process."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return AutoTokenizer.from_pretrained(folder), model.eval()


def tell(case: Case, found: Pairs[Answered], report: Report, *, judged: bool) -> None:
    """Add the figures of one case."""
    ratio = found.ratios(lambda answered: answered.speed)
    judged = judged and not case.adapter
    report.add(
        f"{case.name}: ours / plain generate, tokens a second",
        f"{ratio:.2f}",
        f">= {SAME_PRECISION}" if judged else "",
        ratio.median >= SAME_PRECISION if judged else None,
    )
    pairs = list(zip(found.ours, found.peer, strict=True))
    same = sum(ours.text == plain.text for ours, plain in pairs)
    ours, plain = pairs[-1]
    report.notes.append(
        f"{case.name}: {same} of {len(pairs)} answers are the same on both sides, word for word. "
        f"Last pair: {ours.speed:,.1f} and {plain.speed:,.1f} tokens/s.\n"
    )


def tell_best(found: list[Pairs[Answered]], report: Report, *, judged: bool) -> None:
    """Add the ratio of the two sides, each in the precision in which it was faster that round."""
    best = Pairs(
        [
            max(each, key=lambda one: one.speed)
            for each in zip(*(p.ours for p in found), strict=True)
        ],
        [
            max(each, key=lambda one: one.speed)
            for each in zip(*(p.peer for p in found), strict=True)
        ],
    )
    ratio = best.ratios(lambda answered: answered.speed)
    report.add(
        "the base, each side in its faster precision: ours / plain generate",
        f"{ratio:.2f}",
        f">= {EACH_AT_ITS_BEST}" if judged else "",
        ratio.median >= EACH_AT_ITS_BEST if judged else None,
    )


def tell_floor(parameters: int, report: Report) -> None:
    """Add the speed that reading every weight once a token would allow."""
    rate = copy_rate()
    for precision, size in zip(PRECISIONS, (4, 2), strict=True):
        report.add(
            f"{precision}: tokens a second if each weight is read at the rate of a copy",
            f"{rate / (parameters * size):.1f}",
        )
    report.notes.append(
        f"A copy of 256 MiB reads and writes {rate / 1e9:.1f} GB/s in all, with both threads.\n"
    )


def copy_rate() -> float:
    """Return the bytes that a large copy reads and writes in a second, the best of several."""
    source = torch.ones(64 * 2**20)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(8):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


if __name__ == "__main__":
    raise SystemExit(main())
