"""Four variants answer side by side, against four generations in turn by plain PEFT.

Ours go through the worker; plain PEFT has a process of its own.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from benchmarks.chat_speed import PRECISIONS, load, model_in
from benchmarks.interleave import Pairs, interleaved
from benchmarks.peer import Peer
from benchmarks.random_adapters import add_random_adapter
from benchmarks.report import Report, flags, read_flags

BAR = 1.8
TIMEOUT_S = 600.0
NAMES = ("one", "two", "three")
VARIANTS: list[rq.Variant] = [[], *([(name, 1.0)] for name in NAMES)]
PROMPTS = tuple(f"Tell me a long story about a {who}." for who in ("fox", "baker", "ship", "king"))


@dataclass(frozen=True)
class Answered:
    """Four answers and how long they took together."""

    seconds: float
    texts: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (default 32)")
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2 135M Instruct")
    chosen, words = read_flags(parser, arguments, pairs=1, tokens=8)
    report = Report("side_by_side", "Four variants side by side against four in turn", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(model_in(folder / "models", chosen), folder / "workspace", chosen, report)
    report.facts = {
        "variants": "the base and three random LoRA adapters of rank 8 on all linear layers",
        "runs": f"{chosen.pairs} pairs, {chosen.tokens} tokens an answer, after an uncounted run",
        "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
    }
    return report.finish(save=chosen.save)


def measure(model: Path, workspace: Path, chosen: Namespace, report: Report) -> None:
    """Measure ours side by side, ours in turn, and plain PEFT in turn, in each precision."""
    with Service(Settings(workspace=workspace)) as service, Peer() as peer:
        folders = []
        for precision in PRECISIONS:
            load(service, model, precision)
            folders = folders or [
                service.library.folder(add_random_adapter(service, name, seed=seed, size=0.05).id)
                for seed, name in enumerate(NAMES)
            ]
            plain = plain_peft(peer, model, tuple(folders), precision, chosen.tokens)
            together, in_turn = ours(service, chosen.tokens), ours_in_turn(service, chosen.tokens)
            together(PROMPTS[0]), in_turn(PROMPTS[0]), plain(PROMPTS[0])  # not counted
            others = Pairs[Answered]([], [])
            own = Pairs[Answered]([], [])
            for number in range(chosen.pairs):
                prompt = PROMPTS[number % len(PROMPTS)]
                for side, found in ((plain, others), (in_turn, own)):
                    one = pair(side, together, prompt)
                    found.ours.extend(one.ours)
                    found.peer.extend(one.peer)
            tell(precision, others, own, report, judged=not chosen.quick)


Side = Callable[[str], Answered]


def pair(in_turn: Side, together: Side, prompt: str) -> Pairs[Answered]:
    """Measure four answers in turn and side by side."""
    return interleaved(lambda: in_turn(prompt), lambda: together(prompt), pairs=1)


def tell(
    precision: str,
    others: Pairs[Answered],
    own: Pairs[Answered],
    report: Report,
    *,
    judged: bool,
) -> None:
    """Add the figures of one precision."""
    ratio = others.ratios(lambda side: side.seconds)
    report.add(
        f"{precision}: four in turn / side by side: plain PEFT's generate in turn",
        f"{ratio:.2f}",
        f">= {BAR}" if judged else "",
        ratio.median >= BAR if judged else None,
    )
    report.add(
        f"{precision}: four in turn / side by side: our own answers in turn",
        f"{own.ratios(lambda side: side.seconds):.2f}",
    )
    together = [*others.peer, *own.peer]
    in_turn = [*others.ours, *own.ours]
    same = [
        sum(
            a == b
            for one, two in zip(left, right, strict=True)
            for a, b in zip(one.texts, two.texts, strict=True)
        )
        for left, right in ((own.ours, own.peer), (others.ours, others.peer))
    ]
    count = len(VARIANTS) * len(own.ours)
    last = in_turn[len(others.ours) - 1].seconds, together[len(others.peer) - 1].seconds
    report.notes.append(
        f"{precision}: of {count} answers side by side, {same[0]} are those of ours in turn, and "
        f"{same[1]} those of plain PEFT, word for word. Last pair: {last[0]:.2f} s in turn by "
        f"plain PEFT, {last[1]:.2f} s side by side.\n"
    )


def ours(service: Service, tokens: int) -> Side:
    """Return the four answers in one request."""

    def run(prompt: str) -> Answered:
        request = rq.SideBySide(
            conversations=[[_question(prompt)]] * len(VARIANTS),
            variants=VARIANTS,
            max_new_tokens=tokens,
        )
        forget(service)
        started = time.perf_counter()
        answers = service.start(request).result(TIMEOUT_S).answers
        return Answered(time.perf_counter() - started, [each.text for each in answers])

    return run


def ours_in_turn(service: Service, tokens: int) -> Side:
    """Return the four answers by four requests."""

    def run(prompt: str) -> Answered:
        requests = [
            rq.Chat(messages=[_question(prompt)], variant=variant, max_new_tokens=tokens)
            for variant in VARIANTS
        ]
        forget(service)
        started = time.perf_counter()
        texts = [service.start(request).result(TIMEOUT_S).text for request in requests]
        return Answered(time.perf_counter() - started, texts)

    return run


def forget(service: Service) -> None:
    """Let the worker forget earlier answers, as any change does, and load all adapters again."""
    service.start(rq.SetActive(adapters=[(NAMES[0], 1.0)])).result(TIMEOUT_S)
    service.start(rq.UnloadAdapter(name=NAMES[0])).result(TIMEOUT_S)
    for name in (*NAMES, None):
        adapters: rq.Variant = [(name, 1.0)] if name else []
        service.start(rq.SetActive(adapters=adapters)).result(TIMEOUT_S)


def plain_peft(
    peer: Peer, model: Path, folders: tuple[Path, ...], precision: str, tokens: int
) -> Side:
    """Return the four answers as a short script gives them, in a process of its own."""
    return lambda prompt: peer.run(generate, model, folders, precision, prompt, tokens)


def generate(
    model: Path, folders: tuple[Path, ...], precision: str, prompt: str, tokens: int
) -> Answered:
    """Answer with the base and with each adapter: `set_adapter`, `generate`, four times."""
    tokenizer, peft = read(model, folders, precision)
    turns = [_question(prompt).model_dump()]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")

    def once() -> str:
        with torch.inference_mode():
            output = peft.generate(**ids, max_new_tokens=tokens, do_sample=False)
        new = output[0, ids.input_ids.shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()

    started = time.perf_counter()
    with peft.disable_adapter():
        texts = [once()]
    for name in NAMES:
        peft.set_adapter(name, inference_mode=True)
        texts.append(once())
    return Answered(time.perf_counter() - started, texts)


@cache
def read(folder: Path, folders: tuple[Path, ...], precision: str) -> tuple[Any, Any]:
    """Read a model with its adapters once in a process."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    peft = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=NAMES[0])
    for name, each in zip(NAMES[1:], folders[1:], strict=True):
        peft.load_adapter(str(each), adapter_name=name)
    return AutoTokenizer.from_pretrained(folder), peft.eval()


def _question(prompt: str) -> rq.Message:
    return rq.Message(role="user", content=prompt)


if __name__ == "__main__":
    raise SystemExit(main())
