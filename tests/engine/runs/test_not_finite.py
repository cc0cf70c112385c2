"""A base that computes NaN, and runs whose test does: an error with a sentence, never a wedge."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import Service, Settings
from backend import requests as rq
from backend.engine.core import tolerances
from backend.engine.steps import step_loss
from backend.errors import Diverged, ModelError, VerificationFailed
from backend.results import Evaluation
from backend.runs.run_summary import describe
from tests.engine.starter_runs import QUICK
from tests.engine.tiny import write_base


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a base with one NaN in one norm weight."""
    base = write_base(tmp_path_factory.mktemp("base"))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    workspace = tmp_path_factory.mktemp("workspace")
    with Service(Settings(workspace=workspace, runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(base))).result(timeout=120)
        yield service


@pytest.mark.parametrize("share", [0.2, 0.0])
def test_a_run_on_a_damaged_base_ends_and_says_why(damaged: Service, share: float) -> None:
    request = rq.Train(**{**QUICK, "name": f"share {round(10 * share)}", "eval_share": share})
    job = damaged.start(request)

    with pytest.raises(ModelError, match="computes numbers that are not finite") as caught:
        job.result(timeout=120)

    assert "damaged" in caught.value.cure
    assert job.run_id is not None
    run = next(each for each in damaged.snapshot().runs if each.id == job.run_id)
    assert (run.state, run.error) == ("failed", "ModelError")
    assert damaged.snapshot().job is None


def test_a_check_that_times_a_step_notices_a_damaged_base(damaged: Service) -> None:
    request = rq.Preflight(train=rq.Train(name="checked", data=QUICK["data"]), measure=True)

    report = damaged.start(request).result(timeout=120)

    assert not report.ready
    assert "computes numbers that are not finite" in report.problems[0].what


@pytest.mark.parametrize(
    "request_",
    [
        rq.Score(texts=["Where is the cat?"], variants=[[]]),
        rq.NextToken(prompt="Where is the cat?", variants=[[]]),
        rq.Compare(prompts=["Where is the cat?"], variants=[[]]),
        rq.Chat(messages=[rq.Message(role="user", content="Where is the cat?")]),
    ],
    ids=lambda request: type(request).__name__,
)
def test_answers_and_scores_of_a_damaged_base_are_errors(
    damaged: Service, request_: rq.Request
) -> None:
    with pytest.raises(ModelError, match="is nan: the model"):
        damaged.start(request_).result(timeout=120)


def test_a_test_that_is_not_finite_ends_the_run_as_diverged(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step_loss.evaluate
    tests: list[Evaluation] = []

    def poisoned(*args: Any, **kwargs: Any) -> Evaluation:
        tests.append(original(*args, **kwargs))
        poison = {} if len(tests) == 1 else {"loss": math.inf}
        return tests[-1].model_copy(update=poison)

    monkeypatch.setattr(step_loss, "evaluate", poisoned)
    job = base_only.start(rq.Train(**{**QUICK, "name": "overflows", "eval_share": 0.2}))
    with pytest.raises(Diverged, match="held-out loss became inf at step"):
        job.result(timeout=300)

    assert job.run_id is not None
    assert describe(base_only.runs.get(job.run_id)).state == "failed"


def test_results_carry_numbers_that_are_not_finite() -> None:
    found = Evaluation(loss=math.nan, exact_match=0.0, token_accuracy=0.0, examples=1, tokens=1)

    assert math.isnan(Evaluation.model_validate_json(found.model_dump_json()).loss)
    assert math.isnan(Evaluation.model_validate(found.model_dump(mode="json")).loss)


@pytest.mark.parametrize("values", [[0.1, math.nan], [math.nan, 0.1], [math.inf, 0.1]])
def test_a_difference_to_nan_is_never_close(values: list[float]) -> None:
    with pytest.raises(VerificationFailed):
        tolerances.require_close(values, [0.1, 0.1], dtype=torch.float32, what="Saving")
