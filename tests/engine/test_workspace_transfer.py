"""A workspace on another machine answers as it did, and its runs go on as they would have."""

from pathlib import Path

from backend import Service, Settings
from backend import requests as rq

TEXTS = ["Where is the cat?", "Arr, the cat be on the mat!"]


def scores(service: Service, name: str) -> list[list[float]]:
    request = rq.Score(texts=TEXTS, variants=[[], [(name, 1.0)]])
    return service.start(request).result(timeout=60).scores


def extended(service: Service, run_id: str) -> list[float]:
    request = rq.Resume(run_id=run_id, extra_epochs=0.02)
    service.start(request).result(timeout=120)
    return service.curve(run_id).loss


def test_an_imported_workspace_answers_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    target = tmp_path / "workspace.zip"
    with Service(Settings(workspace=tmp_path / "there", runtime="inline")) as there:
        there.start(rq.LoadModel(source="starter")).result(timeout=120)
        train = rq.Train(
            name="pirate", data="starter:pirate", adapter=rq.Lora(rank=4), max_steps=3,
            eval_share=0.0, precision="fp32",
        )  # fmt: skip
        run_id = there.start(train).result(timeout=120).run_id
        expected = scores(there, "pirate")
        there.export_workspace(target, checkpoints=True)
        longer = extended(there, run_id)
    with Service(Settings(workspace=tmp_path / "here", runtime="inline")) as here:
        came = here.import_workspace(target)
        assert came.session
        job = here.restore()
        assert job is not None
        job.result(timeout=120)

        assert (came.adapters, came.left_out) == (["pirate"], [])
        assert scores(here, "pirate") == expected
        assert len(longer) > 3
        assert extended(here, run_id) == longer
