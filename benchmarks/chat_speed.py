"""One answer through the worker against plain `generate` of Transformers: same model and precision.

Ours is timed as a caller waits for it, from the question to the last piece; plain `generate` has a
process of its own, in the environment of this command, and is timed with tokenising and decoding.
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

TARGET = 1.0
ADAPTER = "random"
TIMEOUT_S = 600.0
QUESTIONS = (
    "What does a fox eat in winter, and where does it sleep?",
    "How do I sort a list of names in Python?",
    "Write a short letter to a friend who has moved to another town.",
    "Why is the sky blue?",
)
"""Several, since an answer takes longer where two tokens are too close to call: see `batch`."""


@dataclass(frozen=True)
class Answered:
    """The answers to all questions, one after the other, and their tokens a second."""

    speed: float
    texts: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Measure the base and an adapter, and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--model", type=Path, help="a folder; default: a random Llama of 32 M")
    chosen, words = read_flags(parser, arguments, pairs=1, tokens=8)
    report = Report("chat_speed", "One answer through the worker against plain generate", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(model_in(folder / "model", chosen), folder / "workspace", chosen, report)
    report.facts = {
        "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
        "runs": f"{chosen.pairs} pairs, {chosen.tokens} tokens an answer, after uncounted answers",
    }
    return report.finish(save=chosen.save)


def model_in(folder: Path, chosen: Namespace) -> Path:
    """Return a model that never ends an answer by itself, so that all are equally long."""
    if chosen.model:
        shutil.copytree(chosen.model, folder)
    else:
        models.random_llama(folder, models.TINY if chosen.quick else models.LLAMA_32M)
    return models.make_endless(folder)


def measure(model: Path, workspace: Path, chosen: Namespace, report: Report) -> None:
    """Let both sides answer in turns, first the base and then an adapter on it."""
    with Service(Settings(workspace=workspace)) as service, Peer() as peer:
        service.start(rq.LoadModel(source=str(model))).result(TIMEOUT_S)
        base = service.snapshot().base
        assert base is not None
        report.notes.append(f"Model: {base.parameters / 1e6:.1f} M parameters, {base.precision}.\n")
        found = in_turns(service, peer, model, None, chosen)
        tell("the base", found, report, judged=not chosen.quick)
        info = add_random_adapter(service, ADAPTER, seed=0)
        found = in_turns(service, peer, model, service.library.folder(info.id), chosen)
        tell("an adapter of rank 8", found, report, judged=False)


def in_turns(
    service: Service, peer: Peer, model: Path, adapter: Path | None, chosen: Namespace
) -> Pairs[Answered]:
    """Measure both sides in turns, after answers of each that are not counted."""
    base = service.snapshot().base
    assert base is not None

    def ours() -> Answered:
        return ask(service, [] if adapter is None else [(ADAPTER, 1.0)], chosen.tokens)

    def plain() -> Answered:
        return peer.run(generate, model, adapter, base.precision, chosen.tokens)

    ours(), plain()
    return interleaved(ours, plain, pairs=chosen.pairs)


def ask(service: Service, variant: rq.Variant, tokens: int) -> Answered:
    """Ask the worker, and read the answers piece by piece as the page does."""
    started, answers = time.perf_counter(), []
    for question in QUESTIONS:
        message = rq.Message(role="user", content=question)
        job = service.start(rq.Chat(messages=[message], variant=variant, max_new_tokens=tokens))
        for _ in job.pieces():
            pass
        answers.append(job.result(TIMEOUT_S))
    seconds = time.perf_counter() - started
    return Answered(sum(each.tokens for each in answers) / seconds, [a.text for a in answers])


def generate(folder: Path, adapter: Path | None, precision: str, tokens: int) -> Answered:
    """Answer as a short script does."""
    tokenizer, model = read(folder, adapter, precision)
    started, count, texts = time.perf_counter(), 0, []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
        new = output[0, ids.input_ids.shape[1] :]
        texts.append(str(tokenizer.decode(new, skip_special_tokens=True)).strip())
        count += len(new)
    return Answered(count / (time.perf_counter() - started), texts)


@cache
def read(folder: Path, adapter: Path | None, precision: str) -> tuple[Any, Any]:
    """Read a model once in a process."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return AutoTokenizer.from_pretrained(folder), model.eval()


def tell(who: str, found: Pairs[Answered], report: Report, *, judged: bool) -> None:
    """Add the figures of one variant."""
    ratio = found.ratios(lambda answered: answered.speed)
    bar = f">= {TARGET:.1f}" if judged else ""
    good = ratio.median >= TARGET if judged else None
    report.add(f"{who}: ours / plain generate, tokens a second", f"{ratio:.2f}", bar, good)
    ours, plain = found.ours[-1], found.peer[-1]
    same = "the same, word for word" if ours.texts == plain.texts else "NOT the same"
    report.notes.append(
        f"Answers of {who} are {same}. Last pair: {ours.speed:,.1f} and {plain.speed:,.1f} "
        "tokens/s.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
