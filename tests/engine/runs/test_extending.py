"""A finished run that is extended: its order, its learning rate, its curve, its bits."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.engine.steps import packing
from backend.engine.training import extension
from backend.errors import InvalidRequest
from backend.results import RunResult
from tests.engine.export.test_run_export import export, losses_of_script
from tests.engine.tiny import start_service, write_base

QUICK: dict[str, Any] = {"tokens_per_step": 128, "precision": "fp32"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a tiny base, where a step takes a moment, and a few rows beside it."""
    folder = tmp_path_factory.mktemp("small")
    rows = [
        {"prompt": f"Where is the {n}?", "completion": f"It is {n} steps away."} for n in range(60)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    with start_service(folder / "w", write_base(folder / "base", layers=2)) as service:
        yield service


def documents(lengths: list[int]) -> list[Tokens]:
    return [Tokens(np.arange(n, dtype=np.int32), np.ones(n, dtype=bool)) for n in lengths]


def train(service: Service, name: str, **fields: Any) -> RunResult:
    data = str(service.settings.workspace.parent / "rows.jsonl")
    chosen = {"name": service.free_name(name), "data": data, "max_steps": 6, **fields}
    request = rq.Train(**{**QUICK, **chosen})
    result: RunResult = service.start(request).result(timeout=300)
    return result


def extend(service: Service, run_id: str, epochs: float) -> RunResult:
    request = rq.Resume(run_id=run_id, extra_epochs=epochs)
    result: RunResult = service.start(request).result(timeout=300)
    return result


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(run.adapter_path) / "adapter_model.safetensors")


def test_an_extension_sees_what_a_longer_run_would_have_seen() -> None:
    lengths = [5, 9, 3, 7, 8, 2, 6]
    request = rq.Train(name="x", epochs=2, tokens_per_step=16, seed=3)
    longer = packing.plan(lengths, budget=16, epochs=3, seed=3)

    plan = extension.plan(documents(lengths), request, [1.0])

    assert plan.packs.packs == longer
    assert plan.total_steps == len(longer)
    assert plan.stretches[0].steps == plan.stretches[1].start


def test_no_step_mixes_the_run_with_its_extension() -> None:
    lengths = [5, 9, 3, 7, 8, 2, 6, 7]
    request = rq.Train(name="x", epochs=1, tokens_per_step=16, accumulation=3, seed=3)
    alone = extension.plan(documents(lengths), request, []).packs.packs

    plan = extension.plan(documents(lengths), request, [0.5, 1.0])

    assert len(alone) % 3
    assert plan.packs.packs[: len(alone)] == alone
    for stretch in plan.stretches[1:]:
        assert stretch.start * 3 <= len(plan.packs)
    first, second = plan.packs.packs[plan.stretches[1].start * 3 :][:1], plan.stretches[2]
    drawn = packing.segments(lengths, budget=16, epochs=[1, 0.5, 1.0], seed=3)
    assert first == drawn[1][:1]
    assert plan.packs.packs[second.start * 3 :] == drawn[2]


def test_an_extension_starts_after_the_steps_that_a_limit_left() -> None:
    request = rq.Train(name="x", epochs=4, tokens_per_step=16, max_steps=2, accumulation=2)

    plan = extension.plan(documents([8] * 10), request, [1.0])

    assert plan.stretches == [(0, 2), (2, 3)]
    assert len(plan.packs) == 4 + 5


def test_the_schedule_runs_once_more() -> None:
    request = rq.Train(name="x", scheduler="linear", warmup=0.25, learning_rate=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    rate = extension.schedule(
        request, optimizer, [extension.Stretch(0, 4), extension.Stretch(4, 8)]
    )
    seen = []
    for _ in range(12):
        seen.append(rate.get_last_lr()[0])
        optimizer.step()
        rate.step()

    assert seen[:5] == pytest.approx([0, 0.1, 0.2 / 3, 0.1 / 3, 0])
    assert seen[4:8] == pytest.approx([0, 0.05, 0.1, 0.1 * 5 / 6])


def test_an_extended_run_goes_on_in_the_same_curve_and_adapter(small: Service) -> None:
    run = train(small, "extended")
    before = small.curve(run.run_id)

    longer = extend(small, run.run_id, 1)

    curve = small.curve(run.run_id)
    assert (longer.state, longer.steps) == ("finished", longer.total_steps)
    assert longer.total_steps > 6
    assert curve.step == list(range(1, longer.total_steps + 1))
    assert curve.loss[:6] == before.loss
    assert (6, "resumed") in curve.marks
    assert curve.learning_rate[5] < max(curve.learning_rate[6:])
    assert longer.adapter_path == run.adapter_path
    assert small.library.get(longer.adapter).steps == longer.total_steps
    notices = [e.text for e in small.events(run.run_id) if e.type == "notice"]
    assert notices == [
        f"Extended by 1 epoch: steps 7 to {longer.total_steps}. "
        "The learning rate schedule runs again over these steps."
    ]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_plain_script_repeats_an_extended_run(
    small: Service, tmp_path: Path, accumulation: int
) -> None:
    run = train(
        small, "extended script", accumulation=accumulation, warmup=0.0, epochs=0.6,
        max_steps=None, adapter=rq.Lora(dropout=0.1),
    )  # fmt: skip
    extend(small, run.run_id, 1)
    longer = extend(small, run.run_id, 0.5)
    export(small, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert len(losses) == longer.total_steps
    assert losses == pytest.approx(small.curve(run.run_id).loss, rel=1e-5)


def test_an_extension_that_was_stopped_and_resumed_ends_with_the_same_bits(
    small: Service,
) -> None:
    fields = {"adapter": rq.Lora(rank=4, dropout=0.1), "save_every": 5}
    whole = extend(small, train(small, "whole", **fields).run_id, 12)
    broken = train(small, "broken", **fields)

    job = small.start(rq.Resume(run_id=broken.run_id, extra_epochs=12))
    while len(small.curve(broken.run_id).step) < 8:
        time.sleep(0.02)
    small.stop()
    stopped = job.result(timeout=120)
    resumed = small.start(rq.Resume(run_id=broken.run_id)).result(timeout=300)

    assert stopped.state == "stopped"
    assert 6 < stopped.steps < resumed.steps
    assert resumed.steps == whole.steps
    left, right = weights(whole), weights(resumed)
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_only_a_finished_run_is_extended(small: Service) -> None:
    run = train(small, "half", max_steps=2)
    small.runs.get(run.run_id).update(state="stopped")

    with pytest.raises(InvalidRequest, match=r"is not finished, so it cannot be extended\. Resume"):
        extend(small, run.run_id, 1.0)
