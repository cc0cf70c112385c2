"""What can be done with adapters on the page: from adding one to blending and merging."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import PATIENCE_MS, App, Client, idle, save_picture

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAMES = ("rogue", "gentle")


@pytest.fixture(scope="module")
def ids(app: App) -> dict[str, str]:
    """Two adapters of this module's own: their ids by name."""
    client = app.client()
    idle(client)
    for name in NAMES:
        client.predict({"name": name, "max_steps": 3, "tokens_per_step": 256}, api_name="/train")
        idle(client)
    adapters = client.predict(api_name="/snapshot")["adapters"]
    client.close()
    return {each["name"]: each["id"] for each in adapters if each["name"] in NAMES}


@pytest.fixture
def loads(page: Page, client: Client, ids: dict[str, str]) -> Iterator[Page]:
    """The Load tab; the app is idle again afterwards."""
    page.get_by_role("tab", name="Load").click()
    yield page
    idle(client)


def row(page: Page, adapter_id: str) -> Locator:
    return page.locator(f"#adapters tr[data-arg='{adapter_id}']")


def pick(page: Page, adapter_id: str) -> None:
    """Open the panel of an adapter."""
    row(page, adapter_id).locator("td").nth(2).click()
    expect(page.locator("#new-name")).to_be_visible()


def choose(page: Page, dropdown: str, *names: str) -> None:
    """Pick from a dropdown that takes several."""
    field = page.locator(f"{dropdown} input")
    for name in names:
        field.click()
        page.get_by_role("option", name=name, exact=True).click()
    field.press("Escape")


def test_an_adapter_in_a_zip_is_inspected_and_then_added(
    loads: Page, client: Client, app: App, ids: dict[str, str], tmp_path: Path
) -> None:
    folder = app.workspace / "adapters" / ids["rogue"]
    packed = shutil.make_archive(str(tmp_path / "from elsewhere"), "zip", root_dir=folder)
    loads.locator("#add-adapter").get_by_role("button", name="Add an adapter").click()
    with loads.expect_file_chooser() as chooser:
        loads.locator("#add-upload").click()
    chooser.value.set_files(packed)

    report = loads.locator("#add-report")
    expect(report).to_contain_text("Fits", timeout=PATIENCE_MS)
    expect(report.locator(".aw-heat td").first).to_be_visible()
    save_picture(loads, "add-inspected")
    loads.locator("#add-name input").fill("guest")
    loads.locator("#add-go").click()

    expect(report).to_contain_text("guest was added to the library and loaded")
    expect(report).to_contain_text("Verified")
    expect(loads.locator("#adapters tr", has_text="guest")).to_be_visible()
    client.predict({"name": "guest"}, api_name="/delete_adapter")


def test_a_picked_adapter_shows_what_it_changes_and_that_it_works(
    loads: Page, ids: dict[str, str]
) -> None:
    pick(loads, ids["rogue"])

    expect(loads.locator("#detail .aw-heat td")).to_have_count(28, timeout=PATIENCE_MS)
    expect(loads.locator("#detail")).to_contain_text("It changes")
    loads.get_by_role("button", name="Show the next word").click()
    expect(loads.locator("#next-words")).to_contain_text(
        "It works, but it is off now", timeout=PATIENCE_MS
    )
    expect(loads.locator("#next-words tbody tr").first).to_be_visible()
    save_picture(loads, "adapter-detail")


def test_an_adapter_is_renamed_deleted_and_brought_back(
    loads: Page, client: Client, ids: dict[str, str]
) -> None:
    gentle = ids["gentle"]
    pick(loads, gentle)
    name = loads.locator("#new-name input, #new-name textarea")
    expect(name).to_have_value("gentle")

    name.fill("kind")
    loads.get_by_role("button", name="Rename", exact=True).click()
    expect(row(loads, gentle)).to_contain_text("kind")

    loads.locator("#delete-adapter").click()
    expect(row(loads, gentle)).to_have_count(0)
    expect(name).not_to_be_visible()

    loads.locator(".aw-deleted span", has_text="kind").get_by_role("button", name="Undo").click()
    expect(row(loads, gentle)).to_contain_text("kind")
    idle(client)
    client.predict({"name": "kind", "new_name": "gentle"}, api_name="/rename_adapter")
    expect(row(loads, gentle)).to_contain_text("gentle")


def test_a_panel_closes_when_its_adapter_is_deleted_elsewhere(
    loads: Page, client: Client, ids: dict[str, str]
) -> None:
    pick(loads, ids["gentle"])
    client.predict({"name": "gentle"}, api_name="/delete_adapter")
    expect(loads.locator("#new-name")).not_to_be_visible()
    client.predict({"name": "gentle"}, api_name="/restore_adapter")
    expect(row(loads, ids["gentle"])).to_be_visible()


def test_an_adapter_is_downloaded_as_a_zip(
    loads: Page, ids: dict[str, str], tmp_path: Path
) -> None:
    pick(loads, ids["rogue"])
    loads.locator("#pack").click()
    button = loads.get_by_text("Download rogue.zip")
    expect(button).to_be_visible()
    with loads.expect_download() as caught:
        button.click()

    file = tmp_path / "arrived.zip"
    caught.value.save_as(file)
    with zipfile.ZipFile(file) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())


def test_two_adapters_are_blended_exactly_and_the_blend_is_kept(
    page: Page, client: Client, ids: dict[str, str]
) -> None:
    page.get_by_role("tab", name="Combine").click()
    choose(page, "#combine-ingredients", *NAMES)
    expect(page.locator("#combine-likeness .aw-heat")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#combine-name input, #combine-name textarea").fill("both of them")
    expect(page.locator("#combine-go")).to_have_text("Blend into both of them")
    page.locator("#combine-go").click()

    result = page.locator("#combine-result")
    expect(result).to_contain_text("both of them is exactly the weighted sum", timeout=PATIENCE_MS)
    expect(result).to_contain_text("Verified: the saved blend")
    save_picture(page, "combine-result")
    result.get_by_role("button", name="Keep it").click()
    expect(result).not_to_be_visible()
    assert "both of them" in [each["name"] for each in idle(client)["adapters"]]
    client.predict({"name": "both of them"}, api_name="/delete_adapter")


def test_a_merged_model_is_loaded_as_base(page: Page, client: Client, ids: dict[str, str]) -> None:
    page.get_by_role("tab", name="Merge").click()
    choose(page, "#merge-adapters", "rogue")
    expect(page.locator("#merge-go")).to_be_enabled(timeout=PATIENCE_MS)
    page.locator("#merge-go").click()

    stage = page.locator("#merge-stage")
    expect(stage).to_contain_text("Verified:", timeout=PATIENCE_MS)
    save_picture(page, "merged")
    stage.get_by_role("button", name="Load it as base").click()
    expect(page.get_by_role("button", name="Base starter-rogue")).to_be_visible(timeout=PATIENCE_MS)
    idle(client)
    client.predict({"source": "starter"}, api_name="/load_model")
    idle(client)


def test_a_strength_that_is_moved_by_keys_keeps_the_focus(
    loads: Page, client: Client, ids: dict[str, str]
) -> None:
    client.predict({"adapters": [["rogue", 1.0]]}, api_name="/set_active")
    slider = row(loads, ids["rogue"]).locator("input[type=range]")
    slider.focus()

    for _ in range(3):
        slider.press("ArrowLeft")

    shown = row(loads, ids["rogue"]).locator("output")
    expect(shown).to_have_text("0.85")
    loads.wait_for_timeout(1500)  # until it has rested, and the table was drawn again
    idle(client)
    expect(slider).to_be_focused()
    expect(shown).to_have_text("0.85")
    assert client.predict(api_name="/snapshot")["active"] == [["rogue", 0.85]]
    client.predict({"adapters": []}, api_name="/set_active")


def test_a_weight_beyond_its_slider_becomes_its_end_without_a_toast(
    page: Page, ids: dict[str, str]
) -> None:
    page.get_by_role("tab", name="Combine").click()
    choose(page, "#combine-ingredients", *NAMES)
    box = page.locator("#combine-weight-0 input[type=number]")
    expect(page.locator("#combine-weight-1")).to_be_visible()
    page.wait_for_timeout(1000)  # the answer that lays out the sliders sends their values

    box.fill("99")
    page.locator("#combine-prompt textarea").click()

    expect(box).to_have_value("2")
    page.wait_for_timeout(1000)
    expect(page.locator(".toast-body")).to_have_count(0)
