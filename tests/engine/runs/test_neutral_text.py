"""Forgetting: the base's perplexity on neutral text, without and with a run's adapter."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.engine.runs import neutral_text
from backend.results import RunResult
from tests.engine.templates.traits import TEMPLATES, tokenizer_with
from tests.engine.tiny import fresh, start_service, write_base

ROWS = "".join(f'{{"prompt": "What is {n}?", "completion": "It is {n}."}}\n' for n in range(20))


def train(service: Service, folder: Path, **fields: Any) -> RunResult:
    data = folder / "rows.jsonl"
    data.write_text(ROWS, encoding="utf-8")
    chosen = {"name": "x", "data": str(data), "max_steps": 4, "precision": "fp32", **fields}
    result: RunResult = service.start(rq.Train(**chosen)).result(timeout=300)
    return result


def plain_loss(base: Path, context: int) -> float:
    """Return the mean loss of the paragraphs by plain Transformers."""
    model, total, count = fresh(base), 0.0, 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in neutral_text.PARAGRAPHS:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :context]
        with torch.no_grad():
            loss = model(ids, labels=ids).loss.item()
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return total / count


def test_a_run_reports_the_perplexity_of_neutral_text_before_and_after(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    with start_service(tmp_path / "w", base) as service:
        result = train(service, tmp_path, learning_rate=0.02)
        (summary,) = service.snapshot().runs
        notes = [event.text or "" for event in service.events(result.run_id)]

    found = result.neutral_text
    assert found is not None
    assert found == summary.neutral_text
    assert found.before == pytest.approx(plain_loss(base, neutral_text.TOKENS_AT_ONCE), abs=1e-4)
    assert found.after is not None
    assert found.after != found.before
    assert any(text.startswith("On neutral text its perplexity went from") for text in notes)


def test_a_base_without_a_chat_template_is_measured(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(TEMPLATES["no end mark"])
    tokenizer.chat_template = None
    base = write_base(tmp_path / "base", tokenizer=tokenizer)
    with start_service(tmp_path / "w", base) as service:
        result = train(service, tmp_path)

    assert result.neutral_text is not None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_number_that_is_not_finite_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    evaluate = neutral_text.step_loss.evaluate
    seen: list[int] = []

    def second_is_not_finite(*args: Any) -> Any:
        found = evaluate(*args)
        seen.append(1)
        return found.model_copy(update={"loss": loss}) if len(seen) == 2 else found

    base = write_base(tmp_path / "base")
    with start_service(tmp_path / "w", base) as service:
        stand_in = SimpleNamespace(evaluate=second_is_not_finite)
        monkeypatch.setattr(neutral_text, "step_loss", stand_in)
        result = train(service, tmp_path)
        (summary,) = service.snapshot().runs

    assert result.state == "finished"
    assert result.neutral_text is not None
    assert (result.neutral_text.after, result.neutral_text.forgets) == (None, True)
    assert summary.neutral_text == result.neutral_text


def test_a_failed_measurement_does_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(neutral_text, "_measured", fail)
    base = write_base(tmp_path / "base")
    with start_service(tmp_path / "w", base) as service:
        result = train(service, tmp_path)
        notes = [event.text or "" for event in service.events(result.run_id)]
        assert [each.name for each in service.library.all()] == ["x"]

    assert (result.state, result.neutral_text) == ("finished", None)
    assert any("Perplexity on neutral text was not measured" in text for text in notes)
