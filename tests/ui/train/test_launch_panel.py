"""Launching a run by hand from the page: the command, refusals, and the run that waits."""

import gradio as gr
import pytest

from backend import results as rs
from tests.ui.app.test_page import draw, event, form_of, page
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.train.launch_panel import room

__all__ = ["page"]


def write(page: Page, machines: object = 1, **changes: object) -> tuple[str, dict]:
    """Press the button; returns what is said and what becomes of the command's box."""
    said, box = page.train.launch.write_command(machines, **{**form_of(page), **changes})
    return words(said), box


def waiting(service: FakeService) -> rs.RunSummary:
    (run,) = service.snapshot().runs
    return run


def test_room_is_told_in_cores_and_gpus() -> None:
    assert "Load a base model" in words(room(None))
    two = FACTS.model_copy(update={"places": 2})
    assert "This machine has 2 cores, so the page can start up to 2 processes" in words(room(two))
    gpu = FACTS.model_copy(update={"device": "cuda:0", "places": 1})
    assert "This machine has 1 GPU. The processes share" in words(room(gpu))


def test_the_command_names_the_run_and_the_number_of_processes(
    page: Page, service: FakeService
) -> None:
    said, box = write(page, accumulation=2, processes=2)

    run = waiting(service)
    assert "The run is waiting to be launched. Type this on this machine." in said
    assert box["visible"]
    assert "--nproc_per_node 2" in box["value"]
    assert str(service.runs.get(run.id).folder) in box["value"]


def test_several_machines_share_the_processes_and_a_disk(page: Page) -> None:
    said, box = write(page, 2, accumulation=4, processes=4)

    assert "Type this on each of the 2 machines" in said
    assert "must be on a shared disk" in said
    assert "--nnodes 2" in box["value"]
    assert "--nproc_per_node 2" in box["value"]


@pytest.mark.parametrize(
    ("machines", "processes", "sentence"),
    [
        (1.5, 2, "Machines must be a whole number of at least 1, got 1.5."),
        (None, 2, "Machines must be a whole number of at least 1, got None."),
        (3, 4, "4 processes cannot be divided evenly between 3 machines."),
    ],
)
def test_what_cannot_be_launched_is_said(
    page: Page, service: FakeService, machines: object, processes: int, sentence: str
) -> None:
    said, box = write(page, machines, accumulation=4, processes=processes)

    assert sentence in said
    assert box == gr.update(visible=False)
    assert service.snapshot().runs == []


def test_a_waiting_run_shows_its_command_and_can_be_discarded(
    page: Page, service: FakeService
) -> None:
    write(page, accumulation=2, processes=2)
    run = waiting(service)

    said = words(draw(page)[page.train.stage])
    assert f"{run.name}: waiting to be launched" in said
    assert "It starts when its command is run on this machine." in said
    assert "--nproc_per_node 2" in said

    page.train.act_on_run([], event("discard", run.id))
    assert service.snapshot().runs == []


def test_its_name_is_taken_meanwhile(page: Page, service: FakeService) -> None:
    write(page, name="pirate", accumulation=2, processes=2)

    said, _ = write(page, name="pirate", accumulation=2, processes=2)

    assert "There is already" in said
    assert service.free_name("pirate") != "pirate"
