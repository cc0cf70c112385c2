"""Four variants answer side by side, against four generations in turn by plain PEFT."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from backend import Service, Settings
from backend import requests as rq
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.random_adapters import add_random_adapter
from benchmarks.report import Report, flags, read_flags

BAR = 1.6
TIMEOUT_S = 600.0
NAMES = ("one", "two", "three")
VARIANTS: list[rq.Variant] = [[], *([(name, 1.0)] for name in NAMES)]
PROMPT = "Tell me a short story about a fox."


@dataclass(frozen=True)
class Answered:
    """Four answers and how long they took together."""

    seconds: float
    texts: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer (default 96)")
    chosen, words = read_flags(parser, arguments, pairs=1, tokens=8)
    report = Report("side_by_side", "Four variants side by side against four in turn", words)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = endless_starter(folder / "starter")
        measure(base, folder, chosen.tokens, chosen.pairs, report)
        described = models.describe(base)
    report.facts = {
        "model": f"starter: {described}, fp32; base and three LoRA adapters of rank 8 on all "
        "linear layers",
        "runs": f"{chosen.pairs} pairs, {chosen.tokens} tokens an answer, after an uncounted run",
        "threads": f"{torch.get_num_threads()} on both sides, which take turns in one process",
    }
    return report.finish(save=chosen.save)


def measure(base: Path, folder: Path, tokens: int, pairs: int, report: Report) -> None:
    """Measure ours side by side, ours in turn, and plain PEFT in turn."""
    settings = Settings(workspace=folder / "workspace", runtime="inline", allowed_roots=(folder,))
    with Service(settings) as service:
        service.start(rq.LoadModel(source=str(base))).result(TIMEOUT_S)
        infos = [
            add_random_adapter(service, name, seed=number, size=0.1)
            for number, name in enumerate(NAMES)
        ]
        plain = plain_peft(base, [service.library.folder(info.id) for info in infos], tokens)
        together, in_turn = ours(service, tokens), ours_in_turn(service, tokens)
        together(), in_turn(), plain()  # the first of each is not counted
        found = interleaved(plain, together, pairs=pairs)
        own = interleaved(in_turn, together, pairs=pairs)
    ratio = found.ratios(lambda side: side.seconds)
    report.add(
        "four in turn / side by side: plain PEFT's generate in turn",
        f"{ratio:.2f}",
        f">= {BAR}",
        ratio.median >= BAR,
    )
    report.add(
        "four in turn / side by side: our own answers in turn",
        f"{own.ratios(lambda side: side.seconds):.2f}",
    )
    same = found.ours[-1].texts == found.peer[-1].texts == own.ours[-1].texts
    last = found.ours[-1].seconds, found.peer[-1].seconds
    report.notes.append(
        f"The answers of all sides are {'the same' if same else 'NOT the same'}, word for word. "
        f"Last pair: {last[0]:.2f} s in turn, {last[1]:.2f} s side by side.\n"
    )


def ours(service: Service, tokens: int) -> Callable[[], Answered]:
    """Return the four answers in one request."""
    request = rq.SideBySide(
        conversations=[[_question()]] * len(VARIANTS), variants=VARIANTS, max_new_tokens=tokens
    )

    def run() -> Answered:
        started = time.perf_counter()
        answers = service.start(request).result(TIMEOUT_S).answers
        return Answered(time.perf_counter() - started, [each.text for each in answers])

    return run


def ours_in_turn(service: Service, tokens: int) -> Callable[[], Answered]:
    """Return the four answers by four requests."""
    requests = [
        rq.Chat(messages=[_question()], variant=variant, max_new_tokens=tokens)
        for variant in VARIANTS
    ]

    def run() -> Answered:
        started = time.perf_counter()
        texts = [service.start(request).result(TIMEOUT_S).text for request in requests]
        return Answered(time.perf_counter() - started, texts)

    return run


def plain_peft(base: Path, folders: list[Path], tokens: int) -> Callable[[], Answered]:
    """Return the four answers as a short script gives them: `set_adapter`, `generate`, four times.

    The session's copy of the base is not touched: this is a model of its own.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [_question().model_dump()]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=NAMES[0])
    for name, folder in zip(NAMES[1:], folders[1:], strict=True):
        peft.load_adapter(str(folder), adapter_name=name)
    peft.eval()

    def generate() -> str:
        with torch.inference_mode():
            output = peft.generate(**ids, max_new_tokens=tokens, do_sample=False)
        new = output[0, ids.input_ids.shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()

    def run() -> Answered:
        started = time.perf_counter()
        with peft.disable_adapter():
            texts = [generate()]
        for name in NAMES:
            peft.set_adapter(name, inference_mode=True)
            texts.append(generate())
        return Answered(time.perf_counter() - started, texts)

    return run


def endless_starter(folder: Path) -> Path:
    """Copy the starter so that all answers are equally long."""
    return models.make_endless(Path(shutil.copytree(models.STARTER_MODEL, folder)))


def _question() -> rq.Message:
    return rq.Message(role="user", content=PROMPT)


if __name__ == "__main__":
    raise SystemExit(main())
