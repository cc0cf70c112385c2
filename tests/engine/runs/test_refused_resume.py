"""A run that cannot be resumed or extended stays as it was: state, steps, extensions and files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend.engine.runs.segment import Segment
from backend.engine.training import divergence
from backend.errors import Diverged, WorkbenchError
from backend.results import RunResult
from backend.runs.run_folder import Run
from backend.runs.run_records import RunStatus
from tests.engine.runs.test_changed_data import finished, resume, rows, status_of, stopped
from tests.engine.tiny import start_service, write_base

PAIRS = "".join(
    json.dumps({"prompt": f"Where is {n}?", "chosen": "Here.", "rejected": "There."}) + "\n"
    for n in range(20)
)
FAULTS: dict[str, Callable[[Path], Any]] = {
    "deleted": lambda file: file.unlink(),
    "preference pairs": lambda file: file.write_text(PAIRS, encoding="utf-8"),
    "not readable": lambda file: file.write_bytes(b"\x00\xff{" * 40),
    "no answers": lambda file: file.write_text('{"prompt": "a", "completion": ""}\n' * 9),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("small")
    with start_service(folder / "w", write_base(folder / "base")) as service:
        yield service


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "people.jsonl"
    file.write_text(rows(range(40)), encoding="utf-8")
    return file


def kept(service: Service, run: RunResult) -> tuple[RunStatus, dict[str, bytes]]:
    """Return all that must stay: the status without its process, and the files."""
    folder = service.runs.get(run.run_id).folder
    moving = {"heartbeat": 0.0, "claimed": 0.0, "process_started": 0.0, "pid": 0}
    status = status_of(service, run).model_copy(update=moving)
    names = ("events.jsonl", "request.json", "checkpoints", "result.json")
    found = [each for name in names for each in [folder / name, *(folder / name).rglob("*")]]
    found += Path(run.adapter_path).rglob("*")
    return status, {str(each): each.read_bytes() for each in found if each.is_file()}


@pytest.mark.parametrize(
    ("fault", "changed_data"),
    [("deleted", False), ("preference pairs", True), ("not readable", True), ("no answers", False)],
)
def test_a_refused_extension_leaves_the_finished_run_as_it_was(
    small: Service, file: Path, fault: str, changed_data: bool
) -> None:
    run, before = finished(small, file), file.read_bytes()
    known = kept(small, run)
    FAULTS[fault](file)

    with pytest.raises(WorkbenchError):
        resume(small, run, extra_epochs=1, changed_data=changed_data)

    assert kept(small, run) == known
    file.write_bytes(before)
    longer = resume(small, run, extra_epochs=1)
    assert longer.steps > run.steps
    assert status_of(small, run).extra_epochs == [1.0]


@pytest.mark.parametrize("changed_data", [False, True])
def test_a_refused_resume_leaves_the_stopped_run_as_it_was(
    small: Service, file: Path, changed_data: bool
) -> None:
    run, before = stopped(small, file), file.read_bytes()
    known = kept(small, run)
    file.unlink()

    with pytest.raises(WorkbenchError):
        resume(small, run, changed_data=changed_data)

    assert kept(small, run) == known
    assert next(each for each in small.snapshot().runs if each.id == run.run_id).resumable
    file.write_bytes(before)
    assert resume(small, run).state == "finished"


@pytest.mark.parametrize("when", ["_choose_checkpointing", "_trainer"])
def test_any_failure_before_the_first_step_leaves_the_run_as_it_was(
    small: Service, file: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run = finished(small, file)
    known = kept(small, run)

    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("It broke.")

    monkeypatch.setattr(Segment, when, breaks)
    with pytest.raises(WorkbenchError):
        resume(small, run, extra_epochs=1)

    assert kept(small, run) == known


def test_a_base_that_fails_its_test_on_changed_data_leaves_the_run_as_it_was(
    small: Service, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(small, file, eval_share=0.3)
    known = kept(small, run)
    file.write_text(rows(range(200, 260)), encoding="utf-8")

    def fails(*_: Any) -> None:
        raise Diverged("The test is not finite.")

    monkeypatch.setattr(divergence, "require_finite_test", fails)
    with pytest.raises(Diverged):
        resume(small, run, extra_epochs=1, changed_data=True)

    assert kept(small, run) == known


def test_a_process_that_dies_before_the_first_step_leaves_a_finished_run_finished(
    small: Service, file: Path
) -> None:
    result = finished(small, file)
    run = Run(small.runs.get(result.run_id).folder)
    run.claim()
    run.release()

    run.interrupt("The model process ended.")

    after = run.status()
    assert (after.state, after.step, after.extra_epochs) == ("finished", result.steps, [])
    assert resume(small, result, extra_epochs=1).steps > result.steps


def test_a_failure_after_a_step_is_recorded_and_the_extension_goes_on(
    small: Service, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(small, file)
    monkeypatch.setattr(Segment, "_take_best", lambda *_: 1 / 0)
    with pytest.raises(WorkbenchError):
        resume(small, run, extra_epochs=1)
    monkeypatch.undo()

    assert status_of(small, run).state == "failed"
    assert status_of(small, run).extra_epochs == [1.0]
    assert resume(small, run).state == "finished"
