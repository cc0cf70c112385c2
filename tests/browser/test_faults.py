"""What goes wrong is said on the page, and nothing is lost."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE_MS, App, Client, idle, save_picture, timed, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LONG = {"epochs": 900, "save_every": 2}


def steps_of(client: Client, run_id: str) -> list[int]:
    events = client.predict(run_id, api_name="/events")
    return [event["step"] for event in events if event["type"] == "step"]


def saved(client: Client, run_id: str) -> bool:
    return any(e["type"] == "saved" for e in client.predict(run_id, api_name="/events"))


def started(client: Client, name: str) -> str:
    """Start a long run and wait until it has a checkpoint to go back to."""
    idle(client)
    run_id = client.predict({"name": name, **LONG}, api_name="/train")["run_id"]
    wait_for(lambda: saved(client, run_id), "The run does not save a checkpoint.", 300)
    return run_id


def stop_well(page: Page, client: Client) -> None:
    page.locator(".aw-job").get_by_role("button", name="Stop").click()
    idle(client)


def test_stop_saves_and_resume_goes_on(page: Page, client: Client) -> None:
    run_id = started(client, "stopped one")
    stop_well(page, client)
    card = page.locator(".aw-stage .aw-note")
    expect(card).to_contain_text("everything is saved")
    save_picture(page, "train-stopped", full=False)
    before = max(steps_of(client, run_id))

    page.get_by_role("tab", name="Runs").click()
    page.locator(f"tr[data-arg='{run_id}']").click()
    page.locator("#run-actions").get_by_role("button", name="Resume").click()
    expect(page.locator(".aw-job-title")).to_be_visible()
    wait_for(lambda: max(steps_of(client, run_id)) > before, "The run does not go on.", 300)
    stop_well(page, client)
    save_picture(page, "runs-resumed", full=False)


def test_a_killed_worker_is_said_and_the_run_resumes_without_gap_or_repeat(
    page: Page, client: Client, app: App
) -> None:
    run_id = started(client, "killed one")
    expect(page.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    app.worker().kill()
    with timed("killed worker until the page says so"):
        expect(page.locator(".aw-stage .aw-note.bad")).to_contain_text("The model process ended")
    save_picture(page, "train-interrupted", full=False)
    idle(client)
    expect(page.get_by_role("button", name="Base starter")).to_be_visible()

    page.locator(".aw-stage").get_by_role("button", name="Resume").click()
    kinds = lambda: [e["type"] for e in client.predict(run_id, api_name="/events")]  # noqa: E731
    wait_for(lambda: "resumed" in kinds() and kinds()[-1] == "step", "It does not resume.", 300)
    page.wait_for_timeout(5000)
    shown = page.evaluate("document.querySelector('#train-chart .aw-plot').data[0].x")
    assert shown == list(range(1, len(shown) + 1))
    stop_well(page, client)


BAD_FILES = {
    "broken.jsonl": (
        '{"text": "one"}\n{"text": \n{"text": "three"}\n',
        "it is not valid JSON",
    ),
    "columns.csv": ("colour,size\nred,3\n", "None of the columns (colour, size) is recognised"),
    "empty.jsonl": ("", "empty.jsonl is empty."),
    "cat.png": ("not a picture", "cat.png is not a data file."),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_a_bad_file_is_told_in_one_sentence(
    page: Page, client: Client, tmp_path: Path, name: str
) -> None:
    idle(client)
    content, sentence = BAD_FILES[name]
    file = tmp_path / name
    file.write_text(content)
    with page.expect_file_chooser() as chooser:
        page.locator("#train-upload").click()
    chooser.value.set_files(file)
    expect(page.get_by_text(sentence).first).to_be_visible()
    if name != "cat.png":
        expect(page.locator("#train-start")).to_be_disabled()


def test_a_good_upload_can_be_trained_on(page: Page, client: Client, tmp_path: Path) -> None:
    idle(client)
    rows = [
        {"prompt": f"What is item {n}?", "completion": f"Item {n} is <b>{n}</b>."}
        for n in range(40)
    ]
    file = tmp_path / "my items.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with page.expect_file_chooser() as chooser:
        page.locator("#train-upload").click()
    chooser.value.set_files(file)
    expect(page.locator("#data-line")).to_contain_text("40 rows")
    expect(page.locator("#train-name input")).to_have_value("my items")
    expect(page.locator("#train-start")).to_be_enabled(timeout=PATIENCE_MS)


def test_a_setting_out_of_bounds_says_which(page: Page, client: Client) -> None:
    idle(client)
    page.locator("#train-rank input").fill("0")
    expect(page.locator(".aw-card").first).to_contain_text("Rank")
    expect(page.locator("#train-start")).to_be_disabled()
