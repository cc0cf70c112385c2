"""A compiled slot: swaps recompile nothing, and answer exactly. Needs a C++ compiler."""

import functools
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.hotswap import compiling, reference_outputs
from backend.engine.worker import Engine
from tests.engine.hotswap.conftest import FIVE, ask, folder, start
from tests.engine.tiny import fresh, plain_scores, scores


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_thirty_swaps_among_five_adapters_compile_nothing_and_answer_exactly(
    service: Service, base: Path
) -> None:
    from torch._dynamo.utils import counters

    expected = {name: plain_scores(base, folder(service, name)) for name in FIVE}
    alone = plain_scores(base, None)

    prepared = start(service, rq.PrepareHotswap(adapters=list(FIVE)))
    graphs = counters["stats"]["unique_graphs"]
    told = []
    for number in range(30):
        name = list(FIVE)[(number * 2) % 5]
        told.append(start(service, rq.Hotswap(adapter=name)))
        start(service, ask("Where is the cat? " * (1 + number % 7), [(name, 1.0)]))
        assert scores(service, [(name, 1.0)]) == pytest.approx(expected[name], rel=1e-5)

    assert service.settings.compile_times_file.is_file()  # the next one is foretold by it
    assert prepared.compiled
    assert prepared.graphs >= 2  # the prompt's and the next token's: `generate` was compiled
    assert prepared.rank == 32
    assert counters["stats"]["unique_graphs"] == graphs
    assert sum(swap.recompilations for swap in told) == 0
    assert max(swap.max_difference for swap in told) <= 1e-5
    assert scores(service, []) == pytest.approx(alone, rel=1e-5)
    assert prepared.times is not None
    assert prepared.times.recompile_seconds > prepared.times.hotswap_seconds


@pytest.mark.parametrize("expected", [60.0, 0.001])
def test_it_is_told_meanwhile_how_long_compiling_takes(
    monkeypatch: pytest.MonkeyPatch, expected: float
) -> None:
    monkeypatch.setattr(compiling, "TELL_EVERY_S", 0.01)
    said, enough = [], threading.Event()

    def emit(message: dict[str, Any]) -> None:
        said.append(message)
        if len(said) == 3:
            enough.set()

    with compiling.told(Control(1, emit), expected, (0.2, 0.9)):
        assert enough.wait(10)

    assert all(0.2 <= message["fraction"] <= 0.9 for message in said)
    if expected > 1:
        assert 0 < said[2]["seconds_left"] < said[0]["seconds_left"] < expected
    else:
        assert (said[2]["fraction"], said[2]["seconds_left"]) == (0.9, None)
        assert "longer than expected" in said[2]["text"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_pytorch_itself_finds_nothing_to_recompile(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(service, rq.PrepareHotswap(adapters=list(FIVE)))
    seen = []
    handle = Engine.handle

    def strictly(engine: Engine, message: dict[str, Any]) -> None:
        # on the engine's own thread: torch keeps its settings apart by thread
        with torch._dynamo.config.patch(error_on_recompile=True):
            seen.append(torch._dynamo.config.error_on_recompile)
            handle(engine, message)

    monkeypatch.setattr(Engine, "handle", strictly)
    for number, name in enumerate([*FIVE, *FIVE]):
        start(service, rq.Hotswap(adapter=name))
        start(service, ask("Where is the cat? " * (1 + number), [(name, 1.0)]))

    assert seen == [True] * 20
    assert service.snapshot().slot.recompilations == 0


def dictated_plainly(base: Path, adapter: Path | None) -> list[float]:
    """Return what `rehearsal` dictates, token by token, as a fresh model of plain PEFT has it."""
    model = fresh(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    ids = AutoTokenizer.from_pretrained(base)(
        reference_outputs.REFERENCE_TEXT, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        chances = model(ids, use_cache=False).logits[0].log_softmax(-1)
    given, end = (
        reference_outputs.GIVEN_TOKENS,
        reference_outputs.GIVEN_TOKENS + reference_outputs.DICTATED_TOKENS,
    )
    return [chances[place - 1, token].item() for place, token in enumerate(ids[0])][given:end]


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each run of a graph that Inductor has compiled."""
    from torch._inductor.compile_fx import compile_fx

    runs: list[str] = []
    torch_compile = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled: Any = compile_fx(graph, inputs)

        @functools.wraps(compiled)
        def run(*arguments: Any) -> Any:
            runs.append("graph")
            return compiled(*arguments)

        return run

    monkeypatch.setattr(
        torch, "compile", lambda call, **named: torch_compile(call, backend=backend, **named)
    )
    return runs


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_compiled_code_answers_is_what_fresh_plain_loads_answer(
    service: Service, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores go the plain way, so this listens to `generate`, in the engine's check of a swap."""
    runs, heard = count_runs(monkeypatch), []
    reference = reference_outputs.reference

    def listen(*arguments: Any) -> list[float]:
        heard.append(reference(*arguments))
        return heard[-1]

    prepared = start(service, rq.PrepareHotswap(adapters=list(FIVE)))
    assert prepared.compiled
    monkeypatch.setattr(reference_outputs, "reference", listen)
    wanted = []
    for name in (*FIVE, ""):
        before = len(runs)
        start(service, rq.Hotswap(adapter=name))
        assert (
            len(runs) - before >= reference_outputs.DICTATED_TOKENS
        )  # every step ran compiled code
        wanted.append(dictated_plainly(base, folder(service, name) if name else None))
        assert heard[-1][1:] == pytest.approx(wanted[-1], rel=1e-5)

    assert len(heard) == len(wanted) == 6
    assert len(wanted[0]) == reference_outputs.DICTATED_TOKENS
    assert min(abs(a[0] - b[0]) for a, b in itertools.combinations(wanted, 2)) > 1e-3
    assert service.snapshot().slot.recompilations == 0
