"""A Hub data set on the page: described first, downloaded on request, then checked like a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend import Settings, errors
from backend import requests as rq
from backend import results as rs
from tests.ui import fake_answers
from tests.ui.app.test_page import checks, event, form_of
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.train.data.hub_picker import description
from ui.train.readiness import Check

SOURCE = "someone/set:en"
SAID = fake_answers.on_the_hub(rq.DescribeHubData(data=SOURCE))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    settings = Settings(workspace=tmp_path / "w", runtime="inline")
    with FakeService(settings, step_seconds=0.001) as fake:
        fake.start(rq.LoadModel()).result(timeout=10)
        yield fake


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def last_check(page: Page, **changes: object) -> dict[Any, Any]:
    """Check the settings, and return what each component shows afterwards."""
    outputs = list(checks(page, **form_of(page, data=SOURCE, **changes)))[-1]
    parts = [page.train.check, page.train.card, page.train.go]
    shown = dict(zip(parts, outputs, strict=False))
    hub = page.train.picker.hub
    return {**shown, **dict(zip(hub.drawn, hub.show(outputs[0]), strict=True))}


def never(request: rq.Request) -> Any:
    raise AssertionError(f"{request} would download the data.")


def test_a_data_set_is_described_and_not_downloaded(page: Page, service: FakeService) -> None:
    service.script["preview-data"] = service.script["preflight"] = never

    shown = last_check(page)

    hub = page.train.picker.hub
    said = words(shown[hub.view])
    assert shown[hub.group]["visible"]
    assert (shown[hub.configuration]["value"], shown[hub.split]["value"]) == ("en", "train")
    assert shown[hub.configuration]["choices"] == ["en", "de"]
    for part in ("cc-by-4.0", "600, 20 held out", "3 MB in 2 files", "7 MB needed, 9.0 GB free",
                 "Where is <b>the cat</b>?", "Download 3 MB"):  # fmt: skip
        assert part in said, part
    assert "it needs about 7 MB of disk space, and 9.0 GB are free" in words(shown[page.train.card])
    assert not shown[page.train.go]["interactive"]
    looked = page.train.picker.look_at_data(**form_of(page, data=SOURCE))
    assert "Press Download below the data first." in words(looked[1])


def test_after_the_download_the_settings_are_checked(page: Page, service: FakeService) -> None:
    last_check(page)
    hub = page.train.picker.hub
    key = hub.download(event("download", SAID.source))
    job = page.handle.last("download-hub-data")
    assert job is not None
    job.result(timeout=10)
    ready = SAID.model_copy(update={"ready": True})
    service.script["describe-hub-data"] = lambda request: ready

    shown = last_check(page)

    assert str(key).startswith("downloading at")
    assert "Ready." in words(shown[page.train.card])
    assert "On this machine" in words(shown[hub.view])
    assert "Download" not in words(shown[hub.view])


def test_a_check_goes_on_when_the_download_is_done(page: Page, service: FakeService) -> None:
    snapshot = service.snapshot()
    fetching = rs.JobInfo(
        id=9, title="Downloading", operation="download-hub-data", run_id=None, text="",
        fraction=None, seconds_left=None, stopping=False,
    )  # fmt: skip
    during = snapshot.model_copy(update={"side_jobs": (fetching,)})
    check = Check(hub=SAID, downloading=True)

    keys = [page.train.show(each, check, [])[page.train.check_key] for each in (during, snapshot)]

    assert keys[0] != keys[1]


def test_a_stopped_download_can_be_continued(page: Page, service: FakeService) -> None:
    kept = SAID.model_copy(update={"kept_bytes": 1024**2})
    service.script["describe-hub-data"] = lambda request: kept
    service.script["download-hub-data"] = lambda request: errors.Stopped(
        "The download of someone/set was stopped, as requested.", cure="What has arrived is kept."
    )
    last_check(page)
    hub = page.train.picker.hub
    hub.download(event("download", SAID.source))
    job = page.handle.last("download-hub-data")
    assert job is not None
    job.wait(10)

    shown = last_check(page)

    assert "was stopped, as requested. What has arrived is kept." in words(shown[page.train.card])
    assert "Continue the download: 1 MB of 3 MB are here" in words(shown[hub.view])


def test_a_choice_to_make_is_offered(page: Page, service: FakeService) -> None:
    problem = rs.Problem(what="The data set has 2 configurations: en, de.", cure="Choose one.")
    unchosen = SAID.model_copy(
        update={"configuration": "", "splits": (), "split": "", "problem": problem}
    )
    service.script["describe-hub-data"] = lambda request: unchosen

    shown = last_check(page)

    hub = page.train.picker.hub
    assert shown[hub.configuration]["value"] is None
    assert shown[hub.configuration]["choices"] == ["en", "de"]
    assert "The data set has 2 configurations" in words(shown[page.train.card])
    assert "Download 3 MB in 2 files" in words(shown[hub.view])
    assert "'button'" not in str(shown[hub.view])
    assert hub.choose_configuration("someone/set@v1", "de", "") == "someone/set@v1:de"
    assert hub.choose_split("someone/set:de", "de", "test") == "someone/set:de:test"
    assert hub.choose_split("someone/set", None, "test") == "someone/set::test"


def test_other_data_hides_the_choices(page: Page) -> None:
    hub = page.train.picker.hub

    assert not hub.show(Check())[0]["visible"]
    assert hub.show(Check(waiting=True))[0] == gr.skip()


def test_why_there_are_no_first_rows_is_said() -> None:
    said = SAID.model_copy(update={"first_rows": (), "first_rows_note": "They cannot be shown."})

    assert "They cannot be shown." in words(description(said))
