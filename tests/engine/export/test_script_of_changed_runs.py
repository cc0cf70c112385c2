"""The plain script of a run that was changed while it went on repeats the changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from tests.engine.export.test_run_export import export, losses_of_run, losses_of_script, train
from tests.engine.runs.test_pausing import at_step, service

__all__ = ["at_step", "service"]

STEERED: dict[str, tuple[dict[str, Any], dict[int, rq.Adjust]]] = {
    "another rate": ({"scheduler": "linear"}, {4: rq.Adjust(learning_rate=0.01)}),
    "in the warm-up": ({"warmup": 0.5}, {2: rq.Adjust(total_steps=12)}),
    "longer than the data": (
        {"scheduler": "constant", "epochs": 0.3, "max_steps": None},
        {3: rq.Adjust(total_steps=60), 5: rq.Adjust(learning_rate=0.001, total_steps=40)},
    ),
    "shorter": ({"accumulation": 2}, {3: rq.Adjust(total_steps=5)}),
}


@pytest.mark.parametrize(("fields", "changes"), STEERED.values(), ids=STEERED)
def test_a_run_that_was_changed_on_the_way_is_repeated_with_its_changes(
    service: Service,
    at_step: Callable[..., None],
    tmp_path: Path,
    fields: dict[str, Any],
    changes: dict[int, rq.Adjust],
) -> None:
    for step, change in changes.items():
        at_step(step, lambda change=change: service.adjust(change))
    run = train(service, service.free_name("steered"), **fields)
    exported = export(service, run.run_id, tmp_path / "out")

    assert exported.notes == []
    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")
    assert len(losses) == run.steps == run.total_steps
    assert losses == pytest.approx(losses_of_run(service, run.run_id), rel=1e-5)


def test_an_extension_that_was_changed_is_repeated(
    service: Service, at_step: Callable[..., None], tmp_path: Path
) -> None:
    name = service.free_name("extended")
    first = train(service, name, epochs=0.1, max_steps=None, warmup=0.2)
    change = rq.Adjust(learning_rate=0.01, total_steps=4 * first.steps)
    at_step(first.steps + 2, lambda: service.adjust(change))
    run = service.start(rq.Resume(run_id=first.run_id, extra_epochs=0.1)).result(timeout=120)
    export(service, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert len(losses) == run.total_steps == 4 * first.steps
    assert losses == pytest.approx(losses_of_run(service, run.run_id), rel=1e-5)
