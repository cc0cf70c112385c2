"""The settings that the page proposes: they fit the base, the examples and the memory."""

import numpy as np
import pytest

from backend import requests as rq
from backend.engine.planning.proposal import Room, propose
from backend.results import Proposal

SMALL, LARGE = 3_850_000, 135_000_000
TRAIN = rq.Train(name="x", epochs=6)


def proposal(
    lengths: list[int], *, parameters: int = SMALL, context: int = 4096, batch: int = 0,
    checkpointed: int = 0, train: rq.Train = TRAIN,
) -> Proposal:  # fmt: skip
    room = Room(context, batch, checkpointed)
    return propose(train, np.array(lengths, dtype=np.int64), parameters, room)


def steps(found: Proposal, lengths: list[int]) -> float:
    return sum(lengths) * TRAIN.epochs / found.tokens_per_step


def test_a_usual_data_set_gets_the_defaults_with_reasons() -> None:
    found = proposal([60] * 550)

    assert (found.learning_rate, found.max_length, found.tokens_per_step) == (0.003, 512, 512)
    assert found.why == (
        "Learning rate 0.003: a base this small learns well with large updates.",
        "Longest example 512 tokens: 550 examples fit, the longest with 60.",
        "Tokens per batch 512: 550 examples give a good number of optimizer steps.",
    )


def test_the_rate_follows_the_size_of_the_base() -> None:
    assert proposal([60] * 550, parameters=LARGE).learning_rate == 2e-4


@pytest.mark.parametrize("examples", [10, 40, 91])
def test_few_examples_get_small_batches_and_so_enough_steps(examples: int) -> None:
    lengths = [40] * examples

    found = proposal(lengths)

    assert found.tokens_per_step < 512
    assert found.tokens_per_step == 64 or steps(found, lengths) >= 60
    assert f"so that {examples} examples give enough" in found.why[2]


def test_a_batch_holds_the_longest_example_even_if_there_are_few() -> None:
    found = proposal([20, 30, 300])

    assert found.tokens_per_step == 320
    assert "the longest example must fit into a batch" in found.why[2]


def test_very_many_examples_get_larger_batches_within_the_memory() -> None:
    lengths = [200] * 20_000

    assert proposal(lengths).tokens_per_step == 2048
    assert proposal(lengths, batch=1500).tokens_per_step == 1024
    assert proposal(lengths, batch=100).tokens_per_step == 512


def test_long_examples_raise_the_length_and_the_batch() -> None:
    found = proposal([1000] * 300)

    assert (found.max_length, found.tokens_per_step) == (1024, 1024)
    assert found.why[1] == "Longest example 1,024 tokens: 300 examples fit, the longest with 1,000."


def test_a_few_very_long_examples_do_not_decide_for_the_others() -> None:
    found = proposal([100] * 999 + [5000])

    assert found.max_length == 512
    assert "999 of 1,000 examples fit whole" in found.why[1]


@pytest.mark.parametrize(
    ("room", "length", "reason"),
    [
        ({"context": 768}, 768, "the base reads at most 768 at once"),
        ({"checkpointed": 1500}, 1024, "more do not fit into memory"),
        ({"context": 0}, 8192, "longer ones take more time than they are usually worth"),
    ],
)
def test_a_length_that_is_limited_says_by_what(
    room: dict[str, int], length: int, reason: str
) -> None:
    found = proposal([20_000] * 100, **room)

    assert found.max_length == length
    assert reason in found.why[1]


def test_a_base_with_a_short_context_keeps_the_default_and_says_what_is_cut() -> None:
    found = proposal([300] * 100, context=256)

    assert found.max_length == 512
    assert "0 of 100 examples fit whole; the base reads at most 256 at once" in found.why[1]


def test_a_proposal_that_was_taken_over_is_proposed_again() -> None:
    lengths = [1000] * 40
    first = proposal(lengths)

    again = proposal(lengths, train=TRAIN.model_copy(update=first.settings))

    assert again == first
