"""A run for several processes before there are any: what is refused, counted and written out."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend.engine import run_process
from backend.engine.core.process_group import FollowingRun, Ranks
from backend.engine.data.tokenization import Tokens
from backend.engine.runs.run_log import RunLog
from backend.engine.steps.packing import Packs
from backend.errors import InvalidRequest, NotFound, Unsupported, WorkbenchError
from backend.results import PreflightReport
from tests.engine.shared_run import LEARNS, LONG
from tests.engine.tiny import start_service, write_base


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("rank_rules")
    with start_service(folder / "workspace", write_base(folder / "base", layers=2)) as service:
        yield service


def test_packs_that_nobody_needs_have_nothing_to_learn() -> None:
    documents = [Tokens(torch.arange(4).numpy(), torch.ones(4, dtype=torch.bool).numpy())] * 3
    packs = Packs(documents, [[0], [1], [2]], shared_by=2)

    assert len(packs) == 4
    assert len(packs[2]["labels"]) == 3
    assert len(packs[3]["labels"]) == 0
    assert packs[3]["input_ids"].shape == (1, 4)
    assert packs.tokens(3) == 0


def test_a_step_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rq.Train(name="uneven", accumulation=3, processes=2)

    assert str(caught.value) == (
        "Each step has 3 batches, which 2 processes cannot share evenly. "
        "Set Accumulation to a multiple of 2, such as 4."
    )


def test_more_processes_than_places_are_refused(service: Service) -> None:
    base = service.snapshot().base
    assert base is not None
    many = base.places + 1
    train = rq.Train(**{**LEARNS, "name": "many", "processes": many, "accumulation": many})

    with pytest.raises(Unsupported) as caught:
        service.start(train)

    assert str(caught.value).startswith(f"{many} processes were requested, but this machine has ")
    assert "many" not in [run.name for run in service.snapshot().runs]


def test_the_check_before_a_run_counts_every_process(service: Service) -> None:
    base = service.snapshot().base
    assert base is not None

    def check(processes: int) -> PreflightReport:
        train = rq.Train(
            **{**LEARNS, "name": "ahead", "processes": processes, "accumulation": processes}
        )
        job = service.start(rq.Preflight(train=train, measure=False))
        report: PreflightReport = job.result(timeout=LONG)
        return report

    alone, many = check(1), check(base.places + 1)

    assert alone.ready
    assert not many.ready
    assert "processes were requested, but this machine has" in many.problems[0].what
    each = alone.memory_bytes + dict(alone.memory_parts)["weights"]
    assert many.memory_bytes == pytest.approx((base.places + 1) * each, rel=0.01)


def test_a_launch_on_several_machines_is_written_out(service: Service) -> None:
    train = rq.Train(**{**LEARNS, "name": "far away", "processes": 8, "accumulation": 8})

    launch = service.prepare_launch(train, machines=2)

    assert "--nnodes 2 --nproc_per_node 4 --rdzv_backend c10d " in launch.command
    assert launch.command.endswith(f"-m backend.engine run {launch.folder}")
    run = service.runs.get(launch.run_id)
    assert (run.status().state, run.is_alive()) == ("queued", True)
    assert service.runs.sweep("Gone.") == []
    with pytest.raises(InvalidRequest, match="cannot be divided evenly between 3 machines"):
        service.prepare_launch(train, machines=3)


def test_only_the_leader_writes(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "quiet"}))
    run = FollowingRun(Path(launch.folder), 1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    run.claim(launched=True)
    log = RunLog(run, control=None)  # type: ignore[arg-type]
    log.begin(step=0, total_steps=3, seconds=0.0, resumed=False)
    log.failed(WorkbenchError("Something."))
    log.close()

    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert after.pop(run.folder / "output-2.log")
    assert after == before


def test_a_step_that_broke_off_after_its_correction_counts(service: Service) -> None:
    """The weights had moved, and the last checkpoint holds them: only its loss was never noted."""
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "corrected"}))
    run = service.runs.get(launch.run_id)
    log = RunLog(run, control=None)  # type: ignore[arg-type]
    log.begin(step=12, total_steps=60, seconds=1.0, resumed=False)
    log.saved(13)
    log.failed(WorkbenchError("Something."))
    log.close()
    assert run.status().step == 13


def test_a_stop_of_an_earlier_sitting_is_forgotten(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "told before"}))
    run = service.runs.get(launch.run_id)
    run.tell("stop")

    run_process._drop_old_command(run, begun=time.time() - 60)
    assert run.told().startswith("stop ")
    run_process._drop_old_command(run, begun=time.time() + 60)
    assert run.told() == ""


def test_a_run_that_waits_can_be_discarded(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "never mind"}))

    with pytest.raises(InvalidRequest, match="already"):
        service.start(rq.Train(**{**LEARNS, "name": "never mind"}))
    service.discard(launch.run_id)

    assert "never mind" not in [run.name for run in service.snapshot().runs]
    with pytest.raises(NotFound):
        service.discard(launch.run_id)


def test_a_demo_trains_in_one_process(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path, runtime="inline", demo=True)) as service:
        train = rq.Train(**{**LEARNS, "name": "shared"})

        with pytest.raises(Unsupported, match="This shared demo trains in one process"):
            service.start(train, caller="page")
        with pytest.raises(Unsupported, match="This shared demo trains in one process"):
            service.prepare_launch(train, caller="page")


def test_a_lost_connection_is_told_from_other_errors() -> None:
    ranks = Ranks(rank=0, world=2)
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")

    assert ranks.lost(broken)
    assert not ranks.lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not Ranks().lost(broken)
