"""Notes before a run say what it will do."""

from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from tests.engine import tiny

ROWS = (
    '{"prompt": "Hello!", "completion": "Ahoy there, matey."}\n'
    '{"prompt": "Hi", "completion": "No"}\n'
)


@pytest.mark.parametrize(
    ("accumulation", "said"),
    [(1, "each epoch is one step"), (4, "One step takes 4 times the whole data")],
)
def test_a_step_that_takes_the_whole_data_or_more_is_named(
    accumulation: int, said: str, tmp_path: Path
):
    data = tmp_path / "rows.jsonl"
    data.write_text(ROWS)
    with tiny.start_service(tmp_path / "workspace", tiny.write_base(tmp_path / "base")) as service:
        notes = notes_on(service, data, accumulation=accumulation)
        assert any(said in note for note in notes)
        assert not any("One step takes" in n for n in notes_on(service, data, tokens_per_step=16))


def notes_on(service: Service, data: Path, **settings: int) -> list[str]:
    train = rq.Train(name="one", data=str(data), epochs=4, eval_share=0.0, **settings)
    found: list[str] = service.start(rq.Preflight(train=train)).result(timeout=60).notes
    return found
