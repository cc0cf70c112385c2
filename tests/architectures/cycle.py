"""Everything that a person does with a base, through the service, each step beside plain PEFT."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import WorkbenchError
from tests.architectures import plain_peft, tiny_models

STEPS = (
    "load", "score", "train", "read back", "chat", "compare", "merge", "blend", "hot-swap",
)  # fmt: skip
AGREES = 1e-5
"""Relative to max(1, |score|); the scores of merged and blended models are given twice of it."""
QUESTIONS = ("Hello!", "What is a cat?")
ROWS = (
    ("Hello!", "Ahoy there, matey."),
    ("What is a cat?", "A small sea beast with fur."),
    ("Who are you?", "I am the captain of this ship."),
    ("Where is the sea?", "Look over the rail."),
    ("Can you sing?", "Aye, a song for every storm."),
    ("Good night.", "Sleep well in your hammock."),
)
SECONDS = 120


@dataclass
class Outcome:
    """What became of a type. A step that went wrong has its reason; others are empty."""

    kind: str
    plain: str = ""
    """Why plain PEFT cannot train it; empty where it can."""
    steps: dict[str, str] = field(default_factory=dict)
    lost: bool = False
    """Training failed, or was refused, after the check before it said ready."""
    layout: str = ""
    seconds: float = 0.0
    """Processor time, which other work does not change much."""

    @property
    def right(self) -> bool:
        return not self.plain and all(self.steps.get(step, "-") == "" for step in STEPS)


def run(kind: str) -> Outcome:
    """Make a tiny model of a type and take it through the whole cycle."""
    outcome, started = Outcome(kind), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            base = tiny_models.write_model(folder / "base", kind)
            outcome.plain = plain_peft.why_not(base, folder / "plain")
        except Exception as error:
            outcome.plain = f"{type(error).__name__}: {plain_peft.first_line(error)}"
        if not outcome.plain:
            Cycle(outcome, folder, base).run()
    outcome.seconds = time.process_time() - started
    return outcome


class Cycle:
    """One base in a service of its own."""

    def __init__(self, outcome: Outcome, folder: Path, base: Path) -> None:
        self._outcome = outcome
        self._folder = folder
        self._base = base
        self._data = folder / "rows.jsonl"
        self._data.write_text(
            "\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in ROWS)
        )
        self._service: Service

    def run(self) -> None:
        """Take all steps; those that need a trained adapter are skipped where there is none."""
        settings = Settings(workspace=self._folder / "workspace", runtime="inline")
        with Service(settings) as self._service:
            todo: dict[str, Callable[[], None]] = {
                "load": self._load,
                "score": self._score,
                "train": self._train,
                "read back": self._read_back,
                "chat": self._chat,
                "compare": self._compare,
                "merge": self._merge,
                "blend": self._blend,
                "hot-swap": self._hotswap,
            }
            for step, take in todo.items():
                if step != "load" and self._outcome.steps.get("load") != "":
                    break
                if step in STEPS[3:] and self._outcome.steps["train"]:
                    break
                self._outcome.steps[step] = _reason(take)

    def _ask(self, request: Any) -> Any:
        return self._service.start(request).result(timeout=SECONDS)

    def _scores(self, variant: rq.Variant) -> list[float]:
        found: rs.Scores = self._ask(rq.Score(texts=list(plain_peft.TEXTS), variants=[variant]))
        return found.scores[0]

    def _load(self) -> None:
        facts: rs.ModelFacts = self._ask(rq.LoadModel(source=str(self._base)))
        if not facts.layers or not facts.hidden_size:
            raise AssertionError(f"{facts.layers} layers of {facts.hidden_size} are shown")

    def _score(self) -> None:
        _agree(self._scores([]), plain_peft.scores(self._base))

    def _train(self) -> None:
        """Train two adapters; the second one is for blends."""
        for name, seed in (("one", 1), ("two", 2)):
            train = rq.Train(
                name=name,
                data=str(self._data),
                adapter=rq.Lora(rank=4),
                epochs=8,
                learning_rate=1e-2,
                tokens_per_step=128,
                eval_share=0.0,
                precision="fp32",
                seed=seed,
            )
            report: rs.PreflightReport = self._ask(rq.Preflight(train=train))
            if not report.ready:
                raise AssertionError("not ready: " + "; ".join(p.what for p in report.problems))
            try:
                result: rs.RunResult = self._ask(train)
            except WorkbenchError:
                self._outcome.lost = True
                raise
            assert result.first_loss is not None
            assert result.final_loss is not None
            if not result.final_loss < result.first_loss:
                raise AssertionError(f"loss {result.first_loss:.3f} -> {result.final_loss:.3f}")
        self._outcome.layout = str(getattr(report, "layout", ""))

    def _library_folder(self, name: str) -> Path:
        return self._service.library.folder(self._service.library.get(name).id)

    def _read_back(self) -> None:
        _agree(
            self._scores([("one", 1.0)]),
            plain_peft.scores(self._base, self._library_folder("one")),
        )

    def _chat(self) -> None:
        """Compare an answer, and its half strength, with plain greedy decoding."""
        answer: rs.Answer = self._ask(
            rq.Chat(
                messages=[rq.Message(role="user", content=QUESTIONS[0])],
                variant=[("one", 1.0)],
                max_new_tokens=8,
            )
        )
        if not answer.tokens:
            raise AssertionError("the answer has no tokens")
        expected = _plain_answer(self._base, self._library_folder("one"), QUESTIONS[0])
        if answer.text != expected:
            raise AssertionError(f"answers {answer.text!r}, plain PEFT {expected!r}")

    def _compare(self) -> None:
        variants: list[rq.Variant] = [[], [("one", 1.0)], [("two", 1.0)]]
        found: rs.Answers = self._ask(
            rq.Compare(prompts=list(QUESTIONS), variants=variants, max_new_tokens=6)
        )
        for variant, answers in zip(variants, found.answers, strict=True):
            for question, text in zip(QUESTIONS, answers, strict=True):
                alone: rs.Answer = self._ask(
                    rq.Chat(
                        messages=[rq.Message(role="user", content=question)],
                        variant=variant,
                        max_new_tokens=6,
                    )
                )
                if alone.text != text:
                    raise AssertionError(f"{variant} says {text!r}, alone {alone.text!r}")

    def _merge(self) -> None:
        place = self._folder / "merged"
        self._ask(rq.Merge(variant=[("one", 1.0)], destination=str(place)))
        _agree(plain_peft.scores(place), self._scores([("one", 1.0)]), twice=True)

    def _blend(self) -> None:
        """Blend two adapters and compare with PEFT's own blend."""
        sources: rq.Variant = [("one", 0.5), ("two", 0.5)]
        self._ask(rq.Combine(name="blend", sources=sources, method="cat"))
        model = plain_peft.fresh(self._base)
        peft = PeftModel.from_pretrained(model, self._library_folder("one"), adapter_name="first")
        peft.load_adapter(self._library_folder("two"), adapter_name="second")
        peft.add_weighted_adapter(["first", "second"], [0.5, 0.5], "both", combination_type="cat")
        peft.set_adapter("both")
        tokenizer = AutoTokenizer.from_pretrained(self._base)
        _agree(self._scores([("blend", 1.0)]), plain_peft.score(peft.eval(), tokenizer), twice=True)

    def _hotswap(self) -> None:
        expected = {name: self._scores([(name, 1.0)] if name else []) for name in ("", "two")}
        self._ask(rq.PrepareHotswap(adapters=["one", "two"], compile=False))
        try:
            for name in ("two", ""):
                self._ask(rq.Hotswap(adapter=name))
                _agree(self._scores([(name, 1.0)] if name else []), expected[name])
        finally:
            self._ask(rq.EndHotswap())


def _reason(take: Callable[[], None]) -> str:
    """Return what a step says where it goes wrong; empty where it is right."""
    try:
        take()
    except Exception as error:
        kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
        return kind + plain_peft.first_line(error)
    return ""


def _agree(found: list[float], expected: list[float], *, twice: bool = False) -> None:
    if not plain_peft.close(found, expected, AGREES * (2 if twice else 1)):
        raise AssertionError(f"scores {found} differ from {expected}")


def _plain_answer(base: Path, adapter: Path, question: str) -> str:
    """Return what plain PEFT answers, without a cache, so that rounding is that of one pass."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    peft = PeftModel.from_pretrained(plain_peft.fresh(base), adapter).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(8):
        with torch.no_grad():
            token = peft(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token.reshape(1, 1)], dim=1)
        if int(token) in (tokenizer.eos_token_id, 2):
            break
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True)).strip()
