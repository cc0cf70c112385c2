"""The Merge tab: what it offers by default, what it refuses and how out, progress and evidence."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from backend import Settings, errors
from backend import requests as rq
from backend import results as rs
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.app.session_bar import bar
from ui.components.service_handle import ServiceHandle
from ui.merge.merge_cards import stage
from ui.merge.tab import MergeTab


@pytest.fixture
def tab(service: FakeService) -> MergeTab:
    service.add_adapter("pirate")
    service.add_adapter("polite", method="DoRA")
    with gr.Blocks():
        return MergeTab(ServiceHandle(service))


def event(act: str, arg: str = "") -> Any:
    return SimpleNamespace(_data={"act": act, "arg": arg})


def form(tab: MergeTab, **changes: Any) -> dict[str, Any]:
    folder = str(tab.handle.service.settings.merged_dir / "new")
    values = {"names": ["pirate"], "strengths": {}, "folder": folder}
    return {**values, "precision": "as-base", "largest": 5, **changes}


def wait(happened: Callable[[], Any]) -> Any:
    for _ in range(2000):
        if value := happened():
            return value
        time.sleep(0.005)
    raise TimeoutError("It does not happen.")


def shown(tab: MergeTab) -> str:
    return words(tab.show(tab.handle.service.snapshot())[tab.stage])


def test_what_is_active_is_chosen_and_the_folder_is_named_after_it(tab: MergeTab) -> None:
    tab.handle.service.start(rq.SetActive(adapters=[("pirate", 0.5)])).result(timeout=10)

    names, strengths, followed, first, second, *_, folder, suggested = tab.follow(
        [], {}, "", "", []
    )

    assert names["value"] == ["pirate"]
    assert followed == [("pirate", 0.5)]
    assert names["choices"] == ["pirate", "polite"]
    assert strengths == {"pirate": 0.5}
    assert (first["label"], first["value"], first["visible"]) == ("Strength of pirate", 0.5, True)
    assert second == gr.update(visible=False)
    assert folder == suggested == str(tab.handle.service.settings.merged_dir / "starter-pirate")


def test_a_choice_of_ones_own_and_a_folder_of_ones_own_stay(tab: MergeTab) -> None:
    tab.handle.service.start(rq.SetActive(adapters=[("pirate", 1.0)])).result(timeout=10)

    names, strengths, followed, *_, folder, _ = tab.follow(
        ["polite", "gone"], {"polite": 1.0}, "/mine", "/suggested", []
    )

    assert names["value"] == ["polite"]
    assert (strengths, followed) == ({"polite": 1.0}, [])
    assert folder == gr.skip()


def test_a_strength_of_ones_own_stays_also_where_the_same_adapter_is_active(tab: MergeTab) -> None:
    tab.handle.service.start(rq.SetActive(adapters=[("pirate", 1.0)])).result(timeout=10)
    _, strengths, followed, *_ = tab.follow([], {}, "", "", [])
    own = tab.remember(["pirate"], strengths, 0.3, 1, 1, 1, 1, 1)

    _, strengths, *_ = tab.follow(["pirate"], own, "", "", followed)

    assert strengths == {"pirate": 0.3}


def test_a_drawing_never_sends_the_same_choice_back(tab: MergeTab) -> None:
    names, *_ = tab.follow([], {}, "", "", [])

    # somebody may have chosen in the meantime, on a page that answers late
    assert names == gr.update(choices=["pirate", "polite"])


def test_a_strength_stays_with_its_adapter_when_the_list_changes(tab: MergeTab) -> None:
    strengths = tab.remember(["pirate", "polite"], {}, 0.3, 1.0, 1, 1, 1, 1)
    first, second, *_ = tab.lay_out(["polite", "pirate"], strengths, "", "")

    assert (first["label"], first["interactive"]) == ("Strength of polite", False)
    assert first["info"] == "DoRA only works at strength 1."
    assert (second["label"], second["value"]) == ("Strength of pirate", 0.3)


def test_the_card_says_what_the_merge_takes(tab: MergeTab) -> None:
    card, go = tab.check(**form(tab, precision="bf16"))

    assert "1 file in bf16, 8 MB of" in words(card)
    assert (go["value"], go["interactive"]) == ("Merge pirate into starter", True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": []}, "Choose one or more adapters to merge"),
        ({"folder": " "}, "No folder is given. Enter the name of a new folder."),
        ({"folder": "/somewhere/else"}, "The page may not use /somewhere/else."),
        ({"names": ["polite"], "strengths": {"polite": 0.5}}, "at strength 1 only, got 0.5"),
        ({"names": ["foreign"]}, "was made for the base"),
    ],
    ids=["nothing", "no folder", "outside", "dora", "foreign"],
)
def test_what_cannot_start_is_said_in_a_sentence(
    tab: MergeTab, changes: dict[str, Any], sentence: str
) -> None:
    tab.handle.service.add_adapter("foreign", fingerprint="another")

    card, go = tab.check(**form(tab, **changes))

    assert sentence in words(card)
    assert go["interactive"] is False


def test_a_folder_that_is_taken_comes_with_one_that_is_free(tab: MergeTab) -> None:
    taken = tab.handle.service.settings.merged_dir / "starter-pirate"
    taken.mkdir(parents=True)
    (taken / "config.json").write_text("{}", encoding="utf-8")

    card, _ = tab.check(**form(tab, folder=str(taken)))

    assert "exists and is not an empty folder" in words(card)
    assert "Write to starter-pirate-2" in words(card)
    assert tab.rename(event("folder", "/w/free")) == "/w/free"


def test_without_a_base_or_a_fitting_adapter_the_way_out_is_a_click(service: FakeService) -> None:
    with gr.Blocks():
        tab = MergeTab(ServiceHandle(service))
    assert "Train the first one" in words(tab.check(**form(tab))[0])

    service.start(rq.UnloadModel()).result(timeout=10)
    assert "Choose a base" in words(tab.check(**form(tab))[0])


def test_a_demo_says_why_it_does_not_merge(tmp_path: Path) -> None:
    with FakeService(Settings(workspace=tmp_path, demo=True)) as service, gr.Blocks():
        tab = MergeTab(ServiceHandle(service))
        assert "cannot write to folders" in words(tab.check(**form(tab))[0])


def test_a_merge_shows_its_progress_here_and_in_the_bar_and_then_its_evidence(
    tab: MergeTab,
) -> None:
    service = tab.handle.service
    service.step_seconds = 0.05
    assert "appears here" in shown(tab)

    tab.start(**form(tab))
    snapshot = wait(lambda: (s := service.snapshot()).side_jobs and s.side_jobs[0].text and s)
    assert snapshot.phase == "merging"
    assert "Writing file 1 of 2" in words(tab.show(snapshot)[tab.stage])
    assert "Merging pirate" in words(bar(snapshot))
    assert "A merge is in progress" in words(tab.check(**form(tab))[0])

    wait(lambda: not service.snapshot().side_jobs)
    assert "Verified: log-probabilities of 8 texts differ by at most 1e-07" in shown(tab)
    assert "Load it as base" in shown(tab)


def test_cancel_here_or_in_the_bar_stops_the_merge(service: FakeService) -> None:
    service.add_adapter("pirate")
    service.step_seconds = 0.05
    with gr.Blocks() as demo:
        page = Page(service)
        page.connect(demo)

    for cancel in (page.merge.act, page.use_bar):
        page.merge.start(**form(page.merge))
        job = wait(lambda: service.snapshot().side_jobs)[0]
        cancel(event("cancel" if cancel == page.merge.act else "stop-side", str(job.id)))
        wait(lambda: not service.snapshot().side_jobs)
        assert "Stopped, as asked." in shown(page.merge)


def test_a_failure_says_what_happened(tab: MergeTab) -> None:
    tab.handle.service.script["merge"] = lambda request: errors.VerificationFailed(
        "The answers differ by 1e-2.", cure="Nothing was kept."
    )

    tab.start(**form(tab))
    wait(lambda: not tab.handle.service.snapshot().side_jobs)

    assert "The answers differ by 1e-2." in shown(tab)


def test_what_was_not_compared_is_not_called_verified() -> None:
    merged = rs.Merged(
        path="/w/m", bytes=1, files=1, precision="bf16", max_difference=None,
        verified="all numbers are finite. Answers were not compared (no memory)",
        notes=["Merged in memory."], seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip

    said = words(stage(None, merged))

    assert "Partly verified: all numbers are finite" in said
    assert "Merged in memory." in said


def test_the_merged_folder_loads_as_a_base_by_a_click(tab: MergeTab) -> None:
    tab.act(event("load", "starter"))
    wait(lambda: tab.handle.service.snapshot().job is None)

    assert tab.handle.failure("load-model") is None


def test_a_plain_name_is_a_folder_of_the_workspace(tab: MergeTab) -> None:
    _, button = tab.check(**form(tab, folder="my model"))

    request = tab.request(**form(tab, folder="my model"))
    assert request.destination == str(tab.handle.service.settings.merged_dir / "my model")
    assert button["interactive"]


def test_the_folder_of_the_last_merge_is_no_complaint(tab: MergeTab) -> None:
    folder = tab.handle.service.settings.merged_dir / "new"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    before = words(tab.check(**form(tab))[0])
    merged = SimpleNamespace(path=str(folder))
    tab.handle.outcome = lambda operation: merged  # type: ignore[method-assign, assignment]

    after = words(tab.check(**form(tab))[0])

    assert "exists and is not an empty folder" in before
    assert "was written there (below)." in after
    assert "Write to starter-pirate" in after
