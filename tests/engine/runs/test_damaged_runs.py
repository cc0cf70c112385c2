"""A damaged run keeps no other from being checked or started."""

from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.library import new_adapter_id


@pytest.mark.parametrize("name", ["status.json", "request.json"])
def test_a_check_passes_over_a_damaged_run(tmp_path: Path, name: str) -> None:
    with Service(Settings(workspace=tmp_path, runtime="inline")) as service:
        facts = service.start(rq.LoadModel(source="starter")).result(timeout=120)
        train = rq.Train(name="old", data="starter:pirate")
        run = service.runs.create(
            train,
            base=("starter", "starter", facts.fingerprint),
            adapter_id=new_adapter_id(),
            colour="#000000",
        )
        (run.folder / name).write_text("{", encoding="utf-8")
        request = rq.Preflight(train=rq.Train(name="new", data="starter:pirate"))

        report = service.start(request).result(timeout=120)

        assert report.ready
        assert [each.state for each in service.snapshot().runs] == ["damaged"]
