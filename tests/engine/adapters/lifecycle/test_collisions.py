"""An id that is taken is drawn again, and no adapter ever takes the place of another one."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend import library as library_module
from backend import requests as rq
from backend.errors import InvalidRequest
from backend.library import SIDECAR, Library
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import Bench, do, state
from tests.engine.starter_runs import QUICK


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of the library."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def colliding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """Draw the resident's id first, whenever an id is drawn, and only then another one."""
    resident = bench.service.library.get("resident").id
    taken = resident.removeprefix("ad_")
    drawn = (f"{number:x}".ljust(32, "0") for number in itertools.count(0xF00))
    alternate = itertools.chain.from_iterable((taken.ljust(32, "0"), other) for other in drawn)
    uuids = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(alternate)))
    monkeypatch.setattr(library_module, "uuid", uuids)
    return resident


MAKERS = {
    "add": lambda bench: rq.LoadAdapter(source=str(bench.good), name="new"),
    "combine": lambda bench: rq.Combine(name="new", sources=[("resident", 0.5)], method="svd"),
    "convert": lambda bench: rq.ConvertAdapter(name="resident", new_name="new"),
    "train": lambda bench: rq.Train(**{**QUICK, "name": "new", "max_steps": 1}),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_taken_id_is_drawn_again(bench: Bench, colliding: str, maker: str) -> None:
    library = bench.service.library
    kept = contents(library.folder(colliding))
    before = tiny.scores(bench.service, [("resident", 1.0)])

    do(bench, MAKERS[maker](bench))

    assert library.get("new").id != colliding
    assert contents(library.folder(colliding)) == kept
    assert tiny.scores(bench.service, [("resident", 1.0)]) == before


def test_reading_back_takes_no_id_of_an_adapter_on_the_model(
    bench: Bench, colliding: str, tmp_path: Path
) -> None:
    """The second reading of a saved adapter lies on the model under an id of its own."""
    before = state(bench)

    do(bench, rq.SaveAdapter(name="resident", destination=str(tmp_path / "copy")))
    do(bench, rq.PrepareHotswap(adapters=["resident"], compile=False))
    do(bench, rq.EndHotswap())

    assert state(bench) == before


@pytest.mark.parametrize("maker", MAKERS)
def test_what_lies_in_the_place_of_a_new_adapter_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    """The folder came between drawing the id and writing."""
    library = bench.service.library
    before = tiny.scores(bench.service, [("resident", 1.0)])
    draw, places = Library.new_id, []

    def overtaken(self: Library, *taken: Any) -> str:
        drawn = draw(self, *taken)
        if not places:
            places.append(self.folder(drawn))
            places[0].mkdir()
            (places[0] / "file").write_text("of another app", encoding="utf-8")
        return drawn

    monkeypatch.setattr(Library, "new_id", overtaken)
    with pytest.raises(InvalidRequest, match="exists and is not an empty folder"):
        do(bench, MAKERS[maker](bench))

    there = places[0]
    assert contents(there) == {"file": b"of another app"}
    assert [info.name for info in library.all()] == ["resident"]
    assert not list(library.root.glob(".*.partial"))
    assert tiny.scores(bench.service, [("resident", 1.0)]) == before
    shutil.rmtree(there)


def test_a_resumed_run_replaces_its_own_adapter_and_no_other(bench: Bench) -> None:
    request = rq.Train(**{**QUICK, "name": "new", "max_steps": 6, "save_every": 5})
    run = do(bench, request)
    library = bench.service.library
    mine = library.get("new")

    more = do(bench, rq.Resume(run_id=run.run_id, extra_epochs=0.1))
    assert more.steps > run.steps
    assert library.get("new").steps == more.steps

    foreign = library.get("new").model_copy(update={"run_id": "another-run", "name": "theirs"})
    library.update(foreign)
    kept = contents(library.folder(mine.id))
    before = bench.service.runs.get(run.run_id).status()
    with pytest.raises(InvalidRequest, match="exists and is not an empty folder"):
        do(bench, rq.Resume(run_id=run.run_id, extra_epochs=0.1))
    assert contents(library.folder(mine.id)) == kept
    assert bench.service.runs.get(run.run_id).status() == before
    (library.folder(mine.id) / SIDECAR).write_text("{", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="exists and is not an empty folder"):
        do(bench, rq.Resume(run_id=run.run_id, extra_epochs=0.1))
    assert (library.folder(mine.id) / SIDECAR).read_text(encoding="utf-8") == "{"
    library.write_sidecar(library.folder(mine.id), mine)
