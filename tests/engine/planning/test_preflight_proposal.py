"""The pre-flight proposes settings for examples that do not fit the current ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.results import PreflightReport
from tests.engine.tiny import start_service, write_base


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("small")
    with start_service(folder / "w", write_base(folder / "base")) as service:
        yield service


@pytest.fixture
def file(tmp_path: Path) -> Path:
    long = "on and on and " * 30
    rows = [{"prompt": f"{long} {n}", "completion": f"yes {n}"} for n in range(40)]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def check(service: Service, file: Path, **fields: Any) -> PreflightReport:
    train = rq.Train(**{"name": "a", "data": str(file), **fields})
    request = rq.Preflight(train=train, measure=False)
    report: PreflightReport = service.start(request).result(timeout=120)
    return report


def test_examples_that_no_batch_holds_get_a_proposal_that_holds_them(
    small: Service, file: Path
) -> None:
    blocked = check(small, file, tokens_per_step=64)

    assert not blocked.ready
    assert blocked.proposal is not None
    assert blocked.proposal.tokens_per_step > 64
    ready = check(small, file, **blocked.proposal.settings)
    assert ready.ready, ready.problems
    assert ready.proposal == blocked.proposal == check(small, file).proposal


def test_the_tokens_per_batch_are_named_where_they_cut_the_examples(
    small: Service, file: Path
) -> None:
    (problem,) = check(small, file, tokens_per_step=64).problems
    longest = check(small, file).stats.longest  # type: ignore[union-attr]

    assert problem.what == (
        "None of the 40 examples has a token with loss: the answers start after the first 64 "
        "tokens, as many as a batch has."
    )
    assert problem.cure == f"Raise the tokens per batch to {longest:,} tokens."


def test_both_settings_are_named_where_both_are_too_small(small: Service, file: Path) -> None:
    (problem,) = check(small, file, tokens_per_step=64, max_length=80).problems

    assert problem.cure.startswith("Raise the longest example and the tokens per batch to ")


def test_the_base_is_named_where_it_cuts_the_examples(small: Service, tmp_path: Path) -> None:
    rows = [{"prompt": "on and on " * 3000, "completion": f"yes {n}"} for n in range(4)]
    file = tmp_path / "endless.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    (problem,) = check(small, file, tokens_per_step=8192, max_length=8192).problems

    assert "all that the base reads at once" in problem.what
    assert problem.cure == "Shorten the prompts, or load another base."


def test_examples_without_answers_get_no_proposal(small: Service, tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text('{"prompt": "a", "completion": ""}\n' * 9, encoding="utf-8")

    report = check(small, file)

    assert report.proposal is None
    assert report.problems[0].cure == "Add answers to the examples."
