"""Adapters' whole life on each kind of base, from loading it to merging them into it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.results import ModelFacts, RunResult

TEXTS = ["Where is the cat?", "Arr, the cat be on the mat!"]
QUICK: dict[str, Any] = {"tokens_per_step": 256, "precision": "fp32", "max_steps": 4}
TWO: rq.Variant = [("first", 0.7), ("second", -0.4)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        yield service


def do(service: Service, request: rq.Request) -> Any:
    return service.start(request).result(timeout=180)


def load(service: Service, quantization: Any, source: str = "starter") -> ModelFacts:
    facts: ModelFacts = do(service, rq.LoadModel(source=source, quantization=quantization))
    return facts


def scores(service: Service, variant: rq.Variant) -> list[float]:
    values: list[float] = do(service, rq.Score(texts=TEXTS, variants=[variant])).scores[0]
    return values


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_load_train_save_reload_switch_blend_merge(
    service: Service, tmp_path: Path, kind: str
) -> None:
    assert load(service, kind).quantization == kind
    bare = scores(service, [])

    for name, data in (("first", "starter:pirate"), ("second", "starter:polite")):
        run: RunResult = do(service, rq.Train(name=name, data=data, **QUICK))
        assert run.max_difference == 0.0
        assert bool(run.preparation) is (kind != "none")
    learned = scores(service, [("first", 1.0)])
    assert learned != pytest.approx(bare, rel=1e-3)

    copy = tmp_path / "copy"
    do(service, rq.SaveAdapter(name="first", destination=str(copy)))
    do(service, rq.LoadAdapter(source=str(copy), name="again"))
    assert scores(service, [("again", 1.0)]) == learned

    do(service, rq.SetActive(adapters=TWO))
    assert service.snapshot().active == TWO
    both = scores(service, TWO)
    do(service, rq.SetActive(adapters=[]))
    assert both != pytest.approx(learned, rel=1e-3)
    assert scores(service, []) == bare

    for method, fields in (("cat", {}), ("svd", {"rank": 32})):  # both hold the sum exactly
        do(service, rq.Combine(name=f"by {method}", sources=TWO, method=method, **fields))
        assert scores(service, [(f"by {method}", 1.0)]) == pytest.approx(both, rel=1e-4)

    merged = str(tmp_path / "merged")
    done = do(service, rq.Merge(variant=TWO, destination=merged, precision="fp32"))
    assert done.max_difference < 1e-4
    assert any(f"in {kind}; the merge used" in each for each in done.notes) is (kind != "none")
    assert scores(service, []) == bare  # the session's own base is not touched

    load(service, "none")
    expected = scores(service, TWO)  # into the base in full precision, whatever was loaded
    assert load(service, "none", merged).parameters
    assert scores(service, []) == pytest.approx(expected, rel=1e-4)
