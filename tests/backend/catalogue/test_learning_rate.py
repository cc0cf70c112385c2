"""Learning rates that suit a base, and those that cannot work on it."""

import pytest

from backend import requests as rq
from backend.catalogue.learning_rate import rate_warning, usual_rate, why_usual

STARTER, LARGE, HUGE = 3_850_000, 135_000_000, 65_000_000_000


@pytest.mark.parametrize(("parameters", "rate"), [(STARTER, 3e-3), (LARGE, 2e-4), (HUGE, 1e-4)])
def test_the_rate_falls_with_the_size_of_the_base(parameters: int, rate: float) -> None:
    assert usual_rate(parameters) == rate
    assert why_usual(parameters).startswith(f"Learning rate {rate:g}: ")


def test_an_empty_rate_becomes_that_of_the_base_and_a_chosen_one_stays() -> None:
    assert rq.Train(name="x").with_rate(LARGE).rate == 2e-4
    assert rq.Train(name="x", learning_rate=0.5).with_rate(LARGE).rate == 0.5


@pytest.mark.parametrize(
    ("parameters", "rate"), [(STARTER, 1.0), (STARTER, 0.03), (LARGE, 0.01), (LARGE, 1.0)]
)
def test_a_rate_that_breaks_a_model_is_warned_of(parameters: int, rate: float) -> None:
    warning = rate_warning(rate, parameters)

    assert warning is not None
    assert f"At a learning rate of {rate:g} the model is likely to forget" in warning.what
    assert f"Try {usual_rate(parameters):g}" in warning.cure


@pytest.mark.parametrize(("parameters", "rate"), [(STARTER, 1e-6), (LARGE, 1e-7)])
def test_a_rate_that_moves_nothing_is_warned_of(parameters: int, rate: float) -> None:
    warning = rate_warning(rate, parameters)

    assert warning is not None
    assert "hardly change" in warning.what


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [
        (STARTER, 3e-3),
        (STARTER, 1e-2),
        (STARTER, 1e-4),
        (LARGE, 2e-4),
        (LARGE, 3e-3),
        (LARGE, 1e-5),
    ],
)
def test_a_rate_that_may_work_is_not(parameters: int, rate: float) -> None:
    assert rate_warning(rate, parameters) is None
