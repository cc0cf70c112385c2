"""A run whose data has changed asks, stays as it was, and can go on with the new data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import DataChanged, Unsupported
from backend.results import RunResult
from backend.runs.run_records import RunStatus
from tests.engine.export.test_run_export import export
from tests.engine.starter_runs import assert_same_bits, stop_after
from tests.engine.tiny import start_service, write_base

QUICK: dict[str, Any] = {"tokens_per_step": 128, "precision": "fp32", "epochs": 2}


def rows(numbers: range, word: str = "step") -> str:
    found = [
        {"prompt": f"Where is the {n}?", "completion": f"It is {n} {word}s away."} for n in numbers
    ]
    return "".join(json.dumps(row) + "\n" for row in found)


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


def stopped(service: Service, file: Path, *, step: int = 3, **fields: Any) -> RunResult:
    train = rq.Train(**{**QUICK, "name": service.free_name("a"), "data": str(file), **fields})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(service, patch, step=step)
        run: RunResult = service.start(train).result(timeout=300)
    assert (run.state, run.steps) == ("stopped", step)
    return run


def finished(service: Service, file: Path, **fields: Any) -> RunResult:
    train = rq.Train(**{**QUICK, "name": service.free_name("a"), "data": str(file), **fields})
    run: RunResult = service.start(train).result(timeout=300)
    assert run.state == "finished"
    return run


def resume(service: Service, run: RunResult, **fields: Any) -> RunResult:
    request = rq.Resume(run_id=run.run_id, **fields)
    result: RunResult = service.start(request).result(timeout=300)
    return result


def status_of(service: Service, run: RunResult) -> RunStatus:
    return service.runs.get(run.run_id).status()


# -- asking ---------------------------------------------------------------------------------------


def test_other_rows_are_named_with_their_number_and_the_run_stays_as_it_was(
    small: Service, file: Path
) -> None:
    run = stopped(small, file)
    before = status_of(small, run)
    file.write_text(rows(range(55)), encoding="utf-8")

    with pytest.raises(DataChanged) as caught:
        resume(small, run)

    what = "people.jsonl has changed since this run: 40 rows then, 55 now."
    assert caught.value.what == what
    after, (summary, *_) = status_of(small, run), small.snapshot().runs
    assert (after.state, after.message, after.cure, after.error) == (
        before.state, before.message, before.cure, ""
    )  # fmt: skip
    assert summary.data_change is not None
    assert (summary.data_change.what, summary.resumable) == (what, True)
    assert small.curve(run.run_id).step == [1, 2, 3]


def test_the_same_number_of_other_rows_is_noticed(small: Service, file: Path) -> None:
    run = stopped(small, file)
    file.write_text(rows(range(40), "mile"), encoding="utf-8")

    with pytest.raises(DataChanged, match="it still has 40 rows, but not the same ones"):
        resume(small, run)


def test_other_held_out_data_alone_is_noticed(small: Service, file: Path, tmp_path: Path) -> None:
    tests = tmp_path / "tests.jsonl"
    tests.write_text(rows(range(100, 110)), encoding="utf-8")
    run = stopped(small, file, held_out=str(tests))
    tests.write_text(rows(range(100, 115)), encoding="utf-8")

    with pytest.raises(DataChanged) as caught:
        resume(small, run)

    assert caught.value.what == "tests.jsonl has changed since this run: 10 rows then, 15 now."


def test_a_finished_run_that_is_not_extended_stays_finished(small: Service, file: Path) -> None:
    run = finished(small, file)
    file.write_text(rows(range(30)), encoding="utf-8")

    with pytest.raises(DataChanged, match="40 rows then, 30 now"):
        resume(small, run, extra_epochs=2)

    after, (summary, *_) = status_of(small, run), small.snapshot().runs
    assert (after.state, after.extra_epochs) == ("finished", [])
    assert summary.data_change is not None
    assert summary.data_change.extra_epochs == 2


def test_the_data_brought_back_ends_the_question(small: Service, file: Path) -> None:
    run, before = stopped(small, file), file.read_text(encoding="utf-8")
    file.write_text(rows(range(9)), encoding="utf-8")
    with pytest.raises(DataChanged):
        resume(small, run)
    file.write_text(before, encoding="utf-8")

    done = resume(small, run)

    assert done.state == "finished"
    assert status_of(small, run).data_change is None
    assert status_of(small, run).data.changes == ()  # type: ignore[union-attr]


def test_rows_that_are_read_as_plain_text_now_are_named_so(small: Service, file: Path) -> None:
    run = stopped(small, file)
    texts = [json.dumps({"text": f"It is {n} steps away."}) + "\n" for n in range(30)]
    file.write_text("".join(texts), encoding="utf-8")

    with pytest.raises(DataChanged) as caught:
        resume(small, run)

    assert caught.value.what == (
        "people.jsonl has changed since this run: 40 rows then, 30 now. It is read as plain text "
        "now, and was read as prompt + completion then."
    )


def test_plain_text_has_no_exact_match(small: Service, file: Path) -> None:
    texts = [json.dumps({"text": f"It is {n} steps away."}) + "\n" for n in range(30)]
    file.write_text("".join(texts), encoding="utf-8")

    run = finished(small, file, eval_share=0.2)

    assert run.evaluation is not None
    assert (run.evaluation.exact_match, status_of(small, run).exact_match) == (None, None)


# -- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [range(80), range(1)])
def test_a_run_goes_on_with_other_data_to_a_whole_end(
    small: Service, file: Path, now: range
) -> None:
    run = stopped(small, file)
    file.write_text(rows(now), encoding="utf-8")

    done = resume(small, run, changed_data=True)

    curve = small.curve(run.run_id)
    assert done.state == "finished"
    assert done.steps == done.total_steps == curve.step[-1]
    assert curve.step == list(range(1, done.steps + 1))
    assert done.steps > 3
    (told,) = [e for e in small.events(run.run_id) if e.type == "data-changed"]
    assert told.step == 3
    assert told.text is not None
    assert "The run goes on with the data as it is now from step 4" in told.text
    assert "The curve breaks here, and the run cannot be repeated" in told.text
    summary = next(each for each in small.snapshot().runs if each.id == run.run_id)
    assert summary.data_changes == (told.text,)
    assert summary.data_change is None


def test_a_changed_run_that_is_stopped_again_ends_with_the_same_bits(
    small: Service, file: Path
) -> None:
    ends = []
    for stops in (False, True):
        file.write_text(rows(range(40)), encoding="utf-8")
        run = stopped(small, file, adapter=rq.Lora(dropout=0.1), accumulation=2)
        file.write_text(rows(range(20, 90)), encoding="utf-8")
        if stops:
            with pytest.MonkeyPatch.context() as patch:
                stop_after(small, patch, step=6)
                assert resume(small, run, changed_data=True).steps == 6
            ends.append(resume(small, run))
        else:
            ends.append(resume(small, run, changed_data=True))
    assert_same_bits(*ends)
    rates = [small.curve(each.run_id).learning_rate for each in ends]
    assert rates[0] == rates[1]


def test_a_finished_run_is_extended_over_other_data(small: Service, file: Path) -> None:
    run = finished(small, file)
    file.write_text(rows(range(10)), encoding="utf-8")

    longer = resume(small, run, extra_epochs=3, changed_data=True)

    assert longer.state == "finished"
    assert longer.steps > run.steps
    told = [e.text or "" for e in small.events(run.run_id) if e.type == "data-changed"]
    assert "the 3 epochs that remained begin at the start of the new data" in told[0]
    again = resume(small, run, extra_epochs=1)
    assert again.steps > longer.steps


def test_other_tests_measure_the_base_again_and_no_best_of_before_is_kept(
    small: Service, file: Path
) -> None:
    run = stopped(small, file, keep_best=True, epochs=4, eval_share=0.3)
    before = status_of(small, run).evaluation_before
    file.write_text(rows(range(200, 300), "mile"), encoding="utf-8")

    done = resume(small, run, changed_data=True)

    assert before is not None
    assert done.evaluation_before is not None
    assert done.evaluation_before.loss != before.loss
    assert done.evaluation_before.examples == 30
    assert done.adapter_step > 3


def test_the_same_tests_are_not_measured_on_the_base_again(
    small: Service, file: Path, tmp_path: Path
) -> None:
    tests = tmp_path / "tests.jsonl"
    tests.write_text(rows(range(100, 110)), encoding="utf-8")
    run = stopped(small, file, held_out=str(tests))
    file.write_text(rows(range(60)), encoding="utf-8")

    done = resume(small, run, changed_data=True)

    assert done.evaluation_before == run.evaluation_before


def test_a_damaged_status_loses_nothing_of_a_change(small: Service, file: Path) -> None:
    run = stopped(small, file)
    file.write_text(rows(range(70)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(small, patch, step=5)
        resume(small, run, changed_data=True)
    known = status_of(small, run)
    (small.runs.get(run.run_id).folder / "status.json").write_text("{", encoding="utf-8")

    done = resume(small, run)

    assert done.total_steps == known.total_steps
    assert status_of(small, run).data == known.data


def test_a_run_of_before_goes_on_with_other_data(small: Service, file: Path) -> None:
    run = stopped(small, file)
    place = small.runs.get(run.run_id).folder / "status.json"
    status = json.loads(place.read_text(encoding="utf-8"))
    assert status.pop("data")
    place.write_text(json.dumps(status), encoding="utf-8")
    file.write_text(rows(range(20)), encoding="utf-8")

    with pytest.raises(DataChanged, match="not those that this run began with"):
        resume(small, run)
    assert resume(small, run, changed_data=True).state == "finished"


def test_a_changed_run_is_not_repeated_by_a_script(
    small: Service, file: Path, tmp_path: Path
) -> None:
    run = stopped(small, file)
    file.write_text(rows(range(20)), encoding="utf-8")
    resume(small, run, changed_data=True)

    with pytest.raises(Unsupported, match="went on with other data"):
        small.run_script(run.run_id)
    assert "The data of this run changed before its end" in small.run_commands(run.run_id).note
    written = export(small, run.run_id, tmp_path / "out")
    assert any("went on with other data" in note for note in written.notes)


def test_an_export_has_no_script_for_data_that_changed_later(
    small: Service, file: Path, tmp_path: Path
) -> None:
    run = finished(small, file)
    file.write_text(rows(range(20)), encoding="utf-8")

    written = export(small, run.run_id, tmp_path / "out")

    assert any("has changed since the run" in note for note in written.notes)
    assert "train_again.py" not in written.files


def test_a_run_whose_first_steps_on_other_data_diverge_repeats_none_on_nothing(
    small: Service, file: Path
) -> None:
    run = stopped(small, file, step=6, save_every=4)
    file.write_text(rows(range(50)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(small, patch, step=8)
        resume(small, run, changed_data=True)
    checkpoints = small.runs.get(run.run_id).checkpoints
    for each in ("checkpoint-6", "checkpoint-8"):
        assert (checkpoints / each).is_dir()
    (checkpoints / "checkpoint-8").rename(checkpoints / "gone")
    (checkpoints / "checkpoint-6").rename(checkpoints / "checkpoint-4")
    _say_step(checkpoints / "checkpoint-4", 4)

    done = resume(small, run)

    assert done.state == "finished"
    assert small.curve(run.run_id).step == list(range(1, done.steps + 1))


def _say_step(checkpoint: Path, step: int) -> None:
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, "global_step": step}), encoding="utf-8")
