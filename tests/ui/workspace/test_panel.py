"""The workspace as a whole on the page: exporting, importing, reporting, and who sees it."""

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest

from backend import Settings, errors
from backend import results as rs
from tests.backend.workspaces import add_adapter, add_run
from tests.ui.app.test_page import draw, event
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.workspace.cards import imported_card
from ui.workspace.panel import WorkspacePanel


@pytest.fixture
def page(service: FakeService) -> Page:
    run = add_run(service, "pirate")
    add_adapter(service, "pirate", run=run)
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def finished(panel: WorkspacePanel) -> str:
    """Wait for what goes on, and return what the card says then."""
    assert panel._thread is not None
    panel._thread.join(60)
    return words(panel.show()[panel.state])


def shown(page: Page, part: gr.components.Component) -> dict:
    return draw(page)[part]


def test_an_export_shows_its_evidence_and_can_be_fetched(page: Page, service: FakeService) -> None:
    panel = page.runs.workspace

    panel.export_workspace(True)
    said = finished(panel)

    assert "1 adapter and 1 run" in said
    assert "Verified: 10 files read back and identical." in said
    offered = shown(page, panel.download)
    assert offered["visible"]
    assert Path(offered["value"]).parent == service.settings.exports_dir
    with zipfile.ZipFile(offered["value"]) as packed:
        assert any("checkpoint-2" in name for name in packed.namelist())


def test_a_large_export_is_named_and_not_offered(page: Page, service: FakeService) -> None:
    service.settings = service.settings.model_copy(update={"max_upload_bytes": 10})
    panel = page.runs.workspace

    panel.export_workspace(False)

    assert str(service.settings.exports_dir) in finished(panel)
    assert not shown(page, panel.download)["visible"]


def test_an_import_says_what_came(page: Page, service: FakeService, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.zip"
    with FakeService(Settings(workspace=tmp_path / "there")) as there:
        add_adapter(there, "pirate", seed=5)
        there.export_workspace(target)
    service.settings = service.settings.model_copy(update={"allowed_roots": (tmp_path,)})
    panel = page.runs.workspace

    panel.import_workspace(f" {target} ")
    said = finished(panel)

    assert "1 adapter and 0 runs imported." in said
    assert "pirate is now called pirate 2" in said
    assert "Verified: 3 files identical to the export." in said
    assert {info.name for info in service.snapshot().adapters} == {"pirate", "pirate 2"}


def test_an_import_from_elsewhere_is_refused(page: Page, tmp_path: Path) -> None:
    panel = page.runs.workspace

    panel.import_workspace(str(tmp_path.parent / "a.zip"))

    assert "The page may not use" in finished(panel)


def test_nothing_named_is_said(page: Page) -> None:
    page.runs.workspace.import_workspace(" ")

    assert "Enter the path of an exported zip first." in words(
        shown(page, page.runs.workspace.state)
    )


def test_a_report_is_offered(page: Page, service: FakeService) -> None:
    panel = page.runs.workspace

    panel.report_problem()

    assert "Nothing was sent" in finished(panel)
    assert Path(shown(page, panel.download)["value"]).name.startswith("problem-")


def hanging(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let exports go on until the event is set, or somebody stops them."""
    free = threading.Event()

    def export(*_: object, progress: Callable[[str, float], None], **__: object) -> None:
        while not free.wait(0.01):
            progress("Writing the run pirate", 0.25)

    monkeypatch.setattr(service, "export_workspace", export)
    return free


def test_what_goes_on_is_shown_and_stopped(
    page: Page, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(service, monkeypatch)
    panel, before = page.runs.workspace, page.handle.version

    panel.export_workspace(False)
    while "25 %" not in words(shown(page, panel.state)):
        pass
    assert "Writing the run pirate" in words(shown(page, panel.state))
    assert page.handle.version > before + 1
    panel.stop(event("stop"))

    assert "Stopped. Nothing was changed." in finished(panel)


def test_one_goes_on_at_a_time(
    page: Page, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(service, monkeypatch)
    refused: list[str] = []
    monkeypatch.setattr(
        "ui.workspace.panel.refuse", lambda title, error: refused.append(error.what)
    )
    panel = page.runs.workspace

    panel.export_workspace(False)
    panel.report_problem()
    panel.stop(event("stop"))

    assert refused == ["An export or import is still running."]
    assert "Stopped" in finished(panel)


def test_a_fault_inside_ends_as_a_card(
    page: Page, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise errors.DiskFull("Could not write a.zip.")

    monkeypatch.setattr(service, "export_workspace", fail)

    page.runs.workspace.export_workspace(False)

    assert "Could not write a.zip." in finished(page.runs.workspace)


def test_a_guest_of_a_demo_sees_none_of_it(tmp_path: Path) -> None:
    with FakeService(Settings(workspace=tmp_path / "w", demo=True)) as service:
        with gr.Blocks():
            page = Page(service)
        panel = page.runs.workspace
        panel._show(["p", {}, ["/private/path"]])

        assert not panel.fold.visible
        assert panel.fold in page.handle.kept_for_owner
        assert panel.show()[panel.state] == ["div", {}, []]
        panel.report_problem()  # by hand, past the page
        assert panel._thread is not None
        panel._thread.join(60)
        assert "shared demo" in words(panel._card)


def test_an_import_of_what_is_here_says_so() -> None:
    came = rs.ImportedWorkspace(
        adapters=[], runs=[], already_there=["the adapter pirate"] * 2, renamed=[], queued=[],
        session=False, left_out=[f"The run {n} is left out." for n in range(30)],
        missing_paths=["/data/x.jsonl"], verified=0,
    )  # fmt: skip
    said = words(imported_card(came))

    assert "Nothing new: everything in it is already here." in said
    assert "and 18 more" in said
    assert "/data/x.jsonl" in said
    assert "Verified" not in said
