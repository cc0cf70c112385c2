"""A Hub data set described, downloaded, stopped and read through the service."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.errors import InvalidRequest, NotFound, Stopped, Unsupported
from backend.permissions import check_caller
from tests.hub_bench import Bench, lines
from tests.hub_stand_in import HubStandIn, know_only

pytestmark = pytest.mark.slow
ROWS = [{"question": f"Question {n}?", "answer": "x" * 400} for n in range(20_000)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("hub-service")
    hub = HubStandIn({})
    with pytest.MonkeyPatch.context() as patch:
        know_only(hub, root / "home", patch)
        yield Bench(hub, root)
    hub.close()


@pytest.fixture(scope="module")
def service(bench: Bench) -> Iterator[Service]:
    with Service(Settings(workspace=bench.root / "workspace")) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=120)
        yield service


def wait_for_text(service: Service, text: str) -> int:
    """Wait until a background job says something; return the job's id."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for job in service.snapshot().side_jobs:
            if text in job.text:
                return job.id
        time.sleep(0.02)
    raise TimeoutError(f"No job says {text!r}.")


def test_a_download_shows_its_bytes_is_stopped_and_continued(
    service: Service, bench: Bench
) -> None:
    id = bench.add("talk", train__jsonl=lines(*ROWS), validation__jsonl=lines(*ROWS[:50]))
    described = service.start(rq.DescribeHubData(data=id)).result(timeout=120)
    hub = bench.hub
    hub.stalls_after, hub.release = {"train.jsonl": 4_000_000}, hub.release.__class__()
    job = service.start(rq.DownloadHubData(data=described.source))
    download = wait_for_text(service, "B of ")
    time.sleep(1)  # until the first part has arrived
    service.stop_side(download)
    time.sleep(1)  # until the process has the command
    hub.release.set()
    with pytest.raises(Stopped, match="What has arrived is kept"):
        job.result(timeout=120)
    hub.stalls_after = {}
    between = service.start(rq.DescribeHubData(data=id)).result(timeout=120)

    done = service.start(rq.DownloadHubData(data=id)).result(timeout=120)
    after = service.start(rq.DescribeHubData(data=id)).result(timeout=120)
    with hub.unreachable():
        preview = service.start(rq.PreviewData(data=id, every_row=False)).result(timeout=120)

    assert (described.ready, described.kept_bytes) == (False, 0)
    assert described.first_rows[0]["question"] == "Question 0?"
    assert between.kept_bytes >= 1_000_000
    assert (done.rows, done.held_out_rows) == (20_000, 50)
    assert done.downloaded_bytes == described.download_bytes - between.kept_bytes
    assert after.ready
    assert preview.rows == 20_050
    assert preview.notes == ("The split 'validation' of the data set is held out.",)
    assert preview.shape == "question + answer"


def test_only_data_sets_of_the_hub_are_described(service: Service, tmp_path: Path) -> None:
    for source in ("starter:pirate", str(tmp_path / "rows.csv")):
        with pytest.raises(NotFound, match="is not a data set of the Hub"):
            service.start(rq.DescribeHubData(data=source)).result(timeout=120)


def test_a_visitor_of_a_demo_downloads_nothing(service: Service) -> None:
    demo = service.settings.model_copy(update={"demo": True})
    for request in (rq.DescribeHubData(data="owner/set"), rq.DownloadHubData(data="owner/set:a")):
        with pytest.raises(Unsupported):
            check_caller(request, demo)
    with pytest.raises(InvalidRequest):
        check_caller(rq.DescribeHubData(data="https://example.org/x"), service.settings)
