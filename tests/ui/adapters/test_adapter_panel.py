"""The picked adapter's panel on the Load tab: it follows the adapter and closes without it."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, offered, rename, wait
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.adapters.adapter_detail import report_card
from ui.adapters.adapter_panel import NOTHING, DetailPanel
from ui.adapters.adapter_table import adapter_table
from ui.app.layout import Page


@pytest.fixture
def page(service: FakeService) -> Page:
    service.add_adapter("pirate")
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


@pytest.fixture
def inspected(service: FakeService) -> list[str]:
    """Let every inspection fail, and return what was inspected."""
    asked: list[str] = []
    service.script["inspect-adapter"] = lambda request: (
        asked.append(request.source) or errors.DataError("It cannot be read.")
    )
    return asked


def test_a_pick_opens_the_panel_and_measures_once(
    page: Page, service: FakeService, inspected: list[str]
) -> None:
    detail = page.load.detail
    picked = page.load.pick(event("pick", offered(draw(page)[page.load.adapters], "pick")))

    first, last = detail.show(picked, "")
    again = list(detail.show(picked, picked))  # as after every other click in the table

    assert first[detail.shown.index(detail.new_name)] == "pirate"
    assert "It cannot be read." in words(last[detail.shown.index(detail.report)])
    assert again == [(gr.skip(),) * len(detail.shown)]
    assert inspected == ["library:pirate"]
    drawn = draw(page, chosen=picked)
    assert drawn[detail.panel]["visible"]
    assert "pirate" in words(drawn[detail.head])


def test_the_panel_follows_a_rename_and_closes_when_the_adapter_is_gone(
    page: Page, service: FakeService, inspected: list[str]
) -> None:
    detail, picked = page.load.detail, service.library.get("pirate").id

    rename(service, "pirate", "captain")
    renamed = draw(page, chosen=picked)
    service.library.discard(picked)
    gone = draw(page, chosen=picked)

    assert renamed[detail.panel]["visible"]
    assert "captain" in words(renamed[detail.head])
    assert not gone[detail.panel]["visible"]
    assert list(detail.show(picked, "")) == [(gr.skip(),) * len(detail.shown)]
    assert inspected == []


ACTIONS: list[Callable[[DetailPanel, str], object]] = [
    lambda detail, chosen: detail.next_words(chosen, "Hello"),
    lambda detail, chosen: detail.make_zip(chosen)[1],
    lambda detail, chosen: detail.save_copy(chosen, "copy"),
    lambda detail, chosen: detail.rename_adapter(chosen, "other"),
    lambda detail, chosen: detail.take_off(chosen),
    lambda detail, chosen: detail.delete_adapter(chosen),
]


@pytest.mark.parametrize("act", ACTIONS)
def test_nothing_is_done_to_another_adapter_that_got_the_name(
    page: Page, service: FakeService, act: Callable[[DetailPanel, str], object]
) -> None:
    picked = service.library.get("pirate").id
    service.library.discard(picked)
    service.add_adapter("pirate")

    said = words(act(page.load.detail, picked))

    assert "no longer in the library" in said
    assert service.library.get("pirate")


def test_what_is_done_is_done_to_the_picked_adapter_under_its_name_of_now(
    page: Page, service: FakeService
) -> None:
    picked = service.library.get("pirate").id
    rename(service, "pirate", "captain")
    service.add_adapter("pirate")
    asked: list[rq.DeleteAdapter] = []
    service.script["delete-adapter"] = lambda request: (
        asked.append(request) or rs.Removed(name=request.name, active=[], freed_bytes=0)
    )

    page.load.detail.delete_adapter(picked)
    wait(service)

    assert asked == [rq.DeleteAdapter(name="captain")]


def test_what_an_upload_writes_does_not_wipe_its_report(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "some.zip"
    file.write_bytes(b"PK")
    add = page.load.add

    source, uploaded, _ = add.take_upload(str(file))

    assert add.forget(source, uploaded) == (gr.skip(),) * 3
    assert add.forget("another", uploaded)[0] == NOTHING


def ask(page: Page, service: FakeService, shift: float = 0.5) -> tuple[str, list[rq.NextToken]]:
    """Ask whether the adapter is on; returns what is said and what was asked of the model."""
    asked: list[rq.NextToken] = []
    service.script["next-token"] = lambda request: (
        asked.append(request)
        or rs.NextTokens(words=["A", "The"], chances=[[1.0, 0.0], [1.0 - shift, shift]])
    )
    picked = service.library.get("pirate").id
    return words(page.load.detail.next_words(picked, "Where is the cat?")), asked


def test_an_adapter_that_is_off_is_not_said_to_be_on(page: Page, service: FakeService) -> None:
    said, asked = ask(page, service)

    assert "It works, but it is off now. When turned on, it will change the prob" in said
    assert "by up to 50 %" in said
    assert asked[0].variants == [[], [("pirate", 1.0)]]


def test_an_adapter_that_is_on_is_asked_at_its_strength(page: Page, service: FakeService) -> None:
    service.start(rq.SetActive(adapters=[("pirate", 0.5)])).result(timeout=10)

    said, asked = ask(page, service, shift=1e-5)

    assert "It is on and changes the probabilities of the next word by less than 0.1 %." in said
    assert asked[0].variants == [[], [("pirate", 0.5)]]


def test_a_copy_by_a_plain_name_lies_in_the_workspace(page: Page, service: FakeService) -> None:
    asked: list[rq.SaveAdapter] = []
    service.script["save-adapter"] = lambda request: (
        asked.append(request) or errors.DiskFull("The disk is full.")
    )

    page.load.detail.save_copy(service.library.get("pirate").id, "my model")

    assert asked[0].destination == str(service.settings.copies_dir / "my model")


def test_an_adapter_is_sent_to_the_hub(page: Page, service: FakeService) -> None:
    panel, chosen = page.load.detail.push, service.library.get("pirate").id

    begun, (said, button) = panel.push(chosen, " me/pirate ", True, False)
    *_, (nameless, _) = panel.push(chosen, "pirate", True, False)

    assert not begun[1]["interactive"]
    assert button["interactive"]
    assert "https://hub/me/pirate" in words(said)
    assert "Verified: every file on the Hub has the same digest" in words(said)
    assert "Use the form your-name/pirate" in words(nameless)


def test_what_the_model_says_of_an_adapter_is_in_the_table(
    page: Page, service: FakeService
) -> None:
    on = rs.AdapterStatus(
        name="pirate", loaded=True, active=True, strength=1.0, trainable=False, merged=False,
        memory_bytes=1_200_000,
    )  # fmt: skip
    snapshot = service.snapshot()

    def said(**changes: object) -> str:
        status = [on.model_copy(update=changes)]
        return words(adapter_table(snapshot.model_copy(update={"status": status})))

    assert "1 MB loaded" in said()
    assert "1 MB trainable, merged" in said(trainable=True, merged=True)


def test_an_adapter_that_comes_back_under_another_name_says_so(
    page: Page, service: FakeService
) -> None:
    deleted = service.library.get("pirate")
    service.library.discard(deleted.id)
    service.add_adapter("pirate")
    service.script["restore-adapter"] = lambda request: rs.Renamed(
        adapter=service.library.restore(request.name)
    )

    page.load.switch(event("restore", "pirate"))
    wait(service)
    note = words(draw(page)[page.load.adapter_note])

    assert "pirate is restored as pirate 2" in note
    assert "It is off." in note
    service.start(rq.SetActive(adapters=[("pirate 2", 1.0)])).result(timeout=10)
    assert "is restored" not in words(draw(page)[page.load.adapter_note])


def test_what_could_be_read_of_a_refused_adapter_is_shown() -> None:
    report = rs.AdapterReport(
        source="x", suggested_name="x", method="LoRA", rank=8, alpha=16.0, ranks=[8],
        targets=["q_proj"], parameters=1024, bytes=4096, made_for="starter", base_match="same",
        verdict="cannot", reasons=[rs.Problem(what="x contains whole layers.")],
        layers=[], effective_rank=0.0, lineage=[("From", "the folder x")], in_library=False,
    )  # fmt: skip

    said = words(report_card(report))

    assert "Cannot be added. x contains whole layers." in said
    assert "LoRA, rank 8, alpha 16" in said
    assert "1,024 parameters, 4 KB" in said
    assert "starter (the loaded base)" in said


def inspection(**fields: object) -> rs.AdapterReport:
    return rs.AdapterReport(
        source="x", suggested_name="x", method="LoRA", rank=8, alpha=16.0, ranks=[8],
        targets=["q_proj"], parameters=1024, bytes=4096, made_for="starter", base_match="same",
        verdict="fits", reasons=[], layers=[], effective_rank=0.0, lineage=[], in_library=False,
        **fields,
    )  # fmt: skip


def test_what_was_left_out_or_converted_stands_in_the_report() -> None:
    said = words(report_card(inspection(notes=("It is an MLX adapter.", "A mark was left out."))))
    assert "It is an MLX adapter." in said
    assert "A mark was left out." in said


def test_other_adapters_of_a_zip_are_offered_and_a_choice_is_inspected(
    page: Page, service: FakeService
) -> None:
    add, asked = page.load.add, []
    place = str(service.settings.workspace / "a.zip")
    service.script["inspect-adapter"] = lambda request: (
        asked.append(request.source)
        or inspection(choices=(f"{place}/checkpoint-5", f"{place}/checkpoint-10"))
    )

    first, last = list(add.look(place))
    source, uploaded = add.choose(f"{place}/checkpoint-5")
    after = list(add.look_at_choice(source))

    assert not first[2]["visible"]
    assert last[2]["visible"]
    assert last[2]["choices"] == [
        ("checkpoint-5", f"{place}/checkpoint-5"),
        ("checkpoint-10", f"{place}/checkpoint-10"),
    ]
    assert asked == [place, f"{place}/checkpoint-5"]
    assert add.forget(source, uploaded) == (gr.skip(),) * 3
    assert not add.forget("another", uploaded)[2]["visible"]
    assert after[-1][1]["interactive"]
