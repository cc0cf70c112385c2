"""What a browser keeps of the form, and what a page that is opened fills in."""

from pathlib import Path

import pytest

from tests.ui.app.test_page import checks, form_of, last_check, page, wait
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import words
from ui.app.layout import Page

__all__ = ["page"]


def test_a_reload_keeps_what_somebody_chose(page: Page, service: FakeService) -> None:
    chosen = {"adapter__rank": 16, "max_steps": "9", "seed": 7, "data": "starter:polite"}
    kept = last_check(page, **chosen, method="dora", name="my own")[-1]
    assert kept == {
        "adapter.rank": 16, "max_steps": "9", "seed": 7, "data": "starter:polite",
        "name": "my own", "method": "dora",
    }  # fmt: skip
    shown = page.attach(kept)
    parts = page.train.form.components
    assert shown[parts["adapter.rank"]] == 16
    assert shown[parts["max_steps"]] == "9"
    assert shown[parts["data"]]["value"] == "starter:polite"
    assert shown[page.train.method] == "dora"
    assert (shown[page.train.name], shown[page.train.suggested]) == ("my own", "")


def test_defaults_and_suggestions_are_not_kept(page: Page) -> None:
    values = form_of(page)
    assert list(checks(page, "pirate", **values))[-1][-1] == {}


def attached(page: Page, kept: object) -> dict:
    """What an opened page fills in, besides the loaded base."""
    own = {page.seen, *page.load.restored}
    values = {part: value for part, value in page.attach(kept).items() if part not in own}
    for part in page.train.picker.offered:  # filled or not, it knows of later uploads
        update = values.pop(part)
        if "value" in update:
            values[part] = update["value"]
    return values


def test_an_opened_page_shows_the_loaded_base_in_the_load_form(
    page: Page, service: FakeService
) -> None:
    held = {"quantization": "nf4", "double_quant": False}
    service.engine.base = FACTS.model_copy(update=held)

    shown = page.attach(None)

    assert [shown[part] for part in page.load.restored] == ["starter", "nf4", False, "own"]


@pytest.mark.parametrize("left", [False, True])
def test_an_opened_page_can_load_again_whatever_was_ticked_for_four_bits(
    page: Page, service: FakeService, left: bool
) -> None:
    shown = page.attach(None)
    form = page.load.form.components
    values = {name: shown.get(part, part.value) for name, part in form.items()}

    said = page.load.load_base(**{**values, "double_quant": values["double_quant"] or left})

    assert words(said) == ""
    assert wait(service).base is not None


def test_a_path_that_somebody_wrote_is_restored_while_it_is_there(
    page: Page, tmp_path: Path
) -> None:
    file, parts = tmp_path / "rows.jsonl", page.train.form.components
    kept = {"data": str(file), "name": "rows", "drop_bad_rows": True, "adapter.rank": 16}

    without = attached(page, kept)
    file.write_text("{}")
    there = attached(page, kept)

    assert (there[parts["data"]], there[page.train.name]) == (str(file), "rows")
    assert there[parts["drop_bad_rows"]]
    assert parts["data"] not in without
    assert parts["drop_bad_rows"] not in without
    assert without[page.train.name] == "pirate"  # not "rows", for other data
    assert without[parts["adapter.rank"]] == 16


def test_data_on_the_hub_are_restored(page: Page) -> None:
    hub = attached(page, {"data": "someone/rows"})
    assert hub[page.train.form.components["data"]] == "someone/rows"


def test_what_is_gone_is_not_restored(page: Page, service: FakeService) -> None:
    service.add_adapter("taken")
    gone = str(service.settings.uploads_dir / "0123456789ab" / "gone.jsonl")
    kept = {"data": gone, "name": "taken", "start_from": "nobody", "method": "magic", "x": 1}
    assert attached(page, kept) == {page.train.name: "pirate", page.train.suggested: "pirate"}


@pytest.mark.parametrize("kept", [None, [], "x", {"adapter.rank": {"a": 1}, "seed": None}])
def test_a_browser_that_kept_nonsense_gets_the_defaults(page: Page, kept: object) -> None:
    assert attached(page, kept) == {page.train.name: "pirate", page.train.suggested: "pirate"}
