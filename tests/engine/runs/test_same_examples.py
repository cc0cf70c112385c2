"""A resumed run goes on with the examples it began with, or says that they are others."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import DataError
from backend.results import RunResult
from tests.engine.starter_runs import QUICK, stop_after
from tests.engine.templates.traits import TEMPLATES, tokenizer_with
from tests.engine.tiny import start_service, write_base

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def stopped_on(service: Service, monkeypatch: pytest.MonkeyPatch, file: Path) -> RunResult:
    stop_after(service, monkeypatch, step=2)
    train = rq.Train(**{**QUICK, "name": file.stem, "data": str(file), "max_steps": 6})
    run: RunResult = service.start(train).result(timeout=300)
    monkeypatch.undo()
    assert run.state == "stopped"
    return run


@pytest.mark.parametrize("change", ["another answer", "a row more", "a row less"])
def test_a_run_is_not_resumed_on_other_examples(
    base_only: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    file = write(tmp_path / f"{change}.jsonl", ROWS)
    run = stopped_on(base_only, monkeypatch, file)
    changed = {
        "another answer": [{**ROWS[0], "completion": "No."}, *ROWS[1:]],
        "a row more": [*ROWS, {"prompt": "More?", "completion": "More."}],
        "a row less": ROWS[:-1],
    }
    write(file, changed[change])

    with pytest.raises(DataError, match=rf"{change}\.jsonl has changed since this run"):
        base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

    write(file, ROWS)
    done = base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)
    assert (done.state, done.steps) == ("finished", 6)


def test_a_run_of_before_is_resumed_where_its_examples_are_read_as_before(
    base_only: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = stopped_on(base_only, monkeypatch, write(tmp_path / "of before.jsonl", ROWS))
    forget_examples(base_only, run)

    done = base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

    assert done.state == "finished"


def test_a_run_of_before_is_refused_where_the_rule_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", tokenizer=tokenizer_with(TEMPLATES["no end mark"]))
    with start_service(tmp_path / "w", base) as service:
        run = stopped_on(service, monkeypatch, write(tmp_path / "rows.jsonl", ROWS))
        forget_examples(service, run)

        with pytest.raises(DataError, match="begun by an earlier version"):
            service.start(rq.Resume(run_id=run.run_id)).result(timeout=300)


def forget_examples(service: Service, run: RunResult) -> None:
    """Leave out of a run's status what version 0.1.0 did not write."""
    file = service.settings.runs_dir / run.run_id / "status.json"
    status = json.loads(file.read_text(encoding="utf-8"))
    assert status.pop("examples")
    file.write_text(json.dumps(status), encoding="utf-8")


def test_a_run_keeps_the_day_that_its_template_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", tokenizer=tokenizer_with(TEMPLATES["a date"]))
    with start_service(tmp_path / "w", base) as service:
        run = stopped_on(service, monkeypatch, write(tmp_path / "rows.jsonl", ROWS))
        told = [event.text for event in service.events(run.run_id) if event.type == "notice"]
        file = service.settings.runs_dir / run.run_id / "request.json"
        request = json.loads(file.read_text(encoding="utf-8"))
        other = {**request, "created": request["created"] - 40 * 86_400}
        file.write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(DataError):
            service.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

        today = date.fromtimestamp(request["created"]).isoformat()
        dated = {**other, "train": {**other["train"], "date": today}}
        file.write_text(json.dumps(dated), encoding="utf-8")
        done = service.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

    assert f"The chat template shows a date: this run keeps {today}." in told
    assert done.state == "finished"
