"""Held-out examples at the end of a run: base and adapter beside the reference."""

from collections.abc import Callable

import numpy as np
import pytest

from backend import Service
from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.engine.runs.heldout_samples import MOST, _asked
from backend.results import Evaluation
from tests.engine.runs.test_pausing import at_step, service, start

__all__ = ["at_step", "service"]


def test_base_and_adapter_answer_held_out_examples_beside_their_reference(
    service: Service,
) -> None:
    run = start(service, "sampled", learning_rate=0.05).result(timeout=120)

    samples = [event for event in service.events(run.run_id) if event.type == "sample"]
    assert len(samples) == MOST
    for each in samples:
        assert each.prompt
        assert each.reference
        prompt = each.prompt.removeprefix("user").strip()
        asked = rq.Compare(prompts=[prompt], variants=[[], [("sampled", 1.0)]], max_new_tokens=64)
        base, adapter = service.start(asked).result(timeout=60).answers
        if "system" not in each.prompt:
            assert (each.base, each.text) == (base[0], adapter[0])


def test_a_stopped_run_ends_without_examples(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(3, service.stop)

    run = start(service, "stopped without").result(timeout=120)

    assert [event for event in service.events(run.run_id) if event.type == "sample"] == []


def tokens(learned: list[int], *, cut: bool = False) -> Tokens:
    return Tokens(np.arange(10, 10 + len(learned)), np.array(learned, dtype=bool), cut)


@pytest.mark.parametrize(
    "document",
    [tokens([0, 1, 1]), tokens([1, 1, 1]), tokens([0, 0, 0]), tokens([0, 0, 1], cut=True)],
    ids=["no question", "plain text", "nothing to learn", "cut short"],
)
def test_what_asks_nothing_whole_is_no_sample(document: Tokens) -> None:
    assert _asked(document) is None


def test_a_sample_is_the_first_answer_of_an_example() -> None:
    found = _asked(tokens([0, 0, 0, 1, 1, 0, 0, 1]))

    assert found is not None
    assert found.prompt == [10, 11, 12]
    assert found.reference == [13, 14]


def test_perplexity_is_the_number_of_equally_likely_tokens() -> None:
    def perplexity(loss: float) -> float:
        values = {"exact_match": 0.0, "token_accuracy": 0.0, "examples": 1, "tokens": 1}
        return Evaluation(loss=loss, **values).perplexity

    assert perplexity(0.0) == 1.0
    assert perplexity(np.log(50)) == pytest.approx(50)
    assert perplexity(1e9) < float("inf")
