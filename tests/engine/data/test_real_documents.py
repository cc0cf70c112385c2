"""Real text, whole way: documentation of installed packages is learned through the real service."""

from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from tests.real_documents import question_rows, write_questions


def test_there_are_a_few_hundred_real_questions() -> None:
    rows = question_rows(300)

    assert len(rows) == 300
    assert len({row["prompt"] for row in rows}) == 300
    assert rows == question_rows(300)


@pytest.mark.slow
def test_real_documentation_is_learned(base_only: Service, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "documentation.jsonl", 300)
    answers = [row["completion"] for row in question_rows(300)[:20]]

    run = base_only.start(
        rq.Train(
            name="documentation",
            data=str(path),
            adapter=rq.Lora(rank=16),
            epochs=3,
            max_steps=25,
            tokens_per_step=768,
            max_length=128,
            learning_rate=1e-2,
            precision="fp32",
        )
    ).result(timeout=300)
    scores = base_only.start(
        rq.Score(texts=answers, variants=[[], [("documentation", 1.0)]])
    ).result(timeout=120)

    losses = base_only.curve(run.run_id).loss
    assert run.state == "finished"
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.evaluation is not None
    assert run.evaluation_before is not None
    assert run.evaluation.loss < run.evaluation_before.loss
    base, adapter = scores.scores
    assert sum(adapter) > sum(base)
    better = sum(after > before for before, after in zip(base, adapter, strict=True))
    assert better >= 18
