"""A compiled slot: swaps recompile nothing, and answer exactly. Needs a C++ compiler."""

from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.engine.dispatch import Engine
from tests.engine.hotswap.conftest import FIVE, ask, folder, start
from tests.engine.tiny import (
    plain_scores,
    scores,
)


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

    assert prepared.compiled
    assert prepared.graphs >= 2  # the prompt's and the next token's: `generate` was compiled
    assert prepared.rank == 32
    assert counters["stats"]["unique_graphs"] == graphs
    assert sum(swap.recompilations for swap in told) == 0
    assert max(swap.max_difference for swap in told) <= 1e-5
    assert scores(service, []) == pytest.approx(alone, rel=1e-5)
    assert prepared.times is not None
    assert prepared.times.recompile_seconds > prepared.times.hotswap_seconds


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
