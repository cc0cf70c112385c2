"""The model process dies while it compiles: the session comes back with its adapters."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import Unsupported, WorkerDied
from tests.engine.hotswap.conftest import FIVE, start
from tests.engine.tiny import enlist, start_service, write_base
from tests.engines import engines

PATIENCE_S = 240


def wait_until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def text_of(service: Service) -> str:
    job = service.snapshot().job
    return job.text if job is not None else ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_killed_while_compiling_brings_the_session_back(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    with start_service(tmp_path / "workspace", base, runtime="process") as service:
        for name in ("en", "attn"):
            enlist(service, name, FIVE[name])
        mine = [("en", 0.5), ("attn", 1.0)]
        start(service, rq.SetActive(adapters=mine))
        question = rq.Score(texts=["The cat is on the mat."], variants=[[], mine])
        before = start(service, question)

        job = service.start(rq.PrepareHotswap(adapters=["en", "attn"]))
        wait_until(lambda: "Compiling" in text_of(service))
        time.sleep(2)  # well into it
        engines()[0].kill()

        with pytest.raises(WorkerDied, match="model process ended"):
            job.result(timeout=30)
        wait_until(lambda: service.snapshot().phase == "ready")
        snapshot = service.snapshot()
        assert (snapshot.slot, snapshot.active) == (None, mine)
        assert start(service, question) == before

        start(service, rq.PrepareHotswap(adapters=["en", "attn"], compile=False))
        start(service, rq.Hotswap(adapter="attn"))
        with pytest.raises(Unsupported, match="Leave the hot-swap slot first"):
            start(service, rq.Merge(variant=[("en", 1.0)], destination=str(tmp_path / "merged")))
        engines()[0].kill()
        wait_until(lambda: service.snapshot().phase == "loading")
        wait_until(lambda: service.snapshot().phase == "ready")
        snapshot = service.snapshot()
        assert (snapshot.slot, snapshot.active) == (None, mine)
        assert start(service, question) == before
