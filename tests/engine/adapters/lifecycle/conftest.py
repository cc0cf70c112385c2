"""A service with one adapter that stays, and a good adapter outside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backend import Service
from backend import requests as rq
from tests.engine import tiny

WEIGHTS = "adapter_model.safetensors"


class Bench(NamedTuple):
    service: Service
    base: Path
    good: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("lifecycle")
    base = tiny.write_base(root / "base", layers=2)
    config = tiny.lora(r=4, lora_alpha=6, rank_pattern={"v_proj": 2})
    good = tiny.write_adapter(root / "good one", base, config, seed=5)
    with tiny.start_service(root / "workspace", base) as service:
        tiny.enlist(service, "resident", tiny.lora(r=2), seed=3)
        yield Bench(service, base, good)


@pytest.fixture(autouse=True)
def only_the_resident(bench: Bench) -> Iterator[None]:
    service = bench.service
    service.start(rq.SetActive(adapters=[("resident", 0.5)])).result(timeout=60)
    yield
    for info in service.library.all():
        if info.name != "resident":
            service.start(rq.DeleteAdapter(name=info.name)).result(timeout=60)


def do(bench: Bench, request: rq.Request) -> Any:
    return bench.service.start(request).result(timeout=60)


def session_of(bench: Bench) -> Any:
    return bench.service.engine._runtime._engine.session  # type: ignore[union-attr]


def state(bench: Bench) -> Any:
    snapshot = bench.service.snapshot()
    folders = sorted(path.name for path in bench.service.library.root.iterdir())
    scored = tiny.scores(bench.service, [("resident", 1.0)])
    return snapshot.active, snapshot.status, snapshot.irregular, folders, scored
