"""What changes of a run make of its learning rate and its length."""

from pathlib import Path

import pytest

from backend.runs import adjustments
from backend.runs.adjustments import Adjustment, Plan

PEAK = 0.01


def plan(scheduler: str = "linear", warmup: int = 0, total: int = 100) -> Plan:
    def rate(step: int) -> float:
        if step < warmup:
            return PEAK * step / warmup
        return PEAK * (1 - (step - warmup) / (total - warmup)) if scheduler == "linear" else PEAK

    return Plan(rate, scheduler, PEAK, warmup, total)


def test_without_changes_the_plan_holds() -> None:
    rate = adjustments.rates(plan(), [])

    assert [rate(step) for step in (0, 50, 99)] == [plan().rate(step) for step in (0, 50, 99)]


@pytest.mark.parametrize(
    ("scheduler", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)]
)
def test_a_new_rate_holds_from_the_next_step_and_goes_on_as_the_schedule_does(
    scheduler: str, middle: float
) -> None:
    rate = adjustments.rates(plan(scheduler), [Adjustment(step=40, learning_rate=0.2)])

    assert rate(39) == plan(scheduler).rate(39)
    assert rate(40) == 0.2
    assert rate(70) == pytest.approx(0.2 * middle)
    assert rate(100) == pytest.approx(0.2 if scheduler == "constant" else 0.0)


def test_more_steps_stretch_the_schedule_as_if_planned_so() -> None:
    rate = adjustments.rates(plan(total=100), [Adjustment(step=50, total_steps=200)])

    assert rate(49) == plan(total=100).rate(49)
    assert rate(50) == plan(total=200).rate(50)
    assert rate(199) == pytest.approx(plan(total=200).rate(199))


def test_more_steps_asked_for_at_the_end_are_not_learned_at_rate_zero() -> None:
    rate = adjustments.rates(plan(total=100), [Adjustment(step=100, total_steps=200)])

    assert rate(100) == pytest.approx(0.5 * PEAK)


def test_a_warm_up_goes_on_when_only_the_length_changes() -> None:
    before = plan(warmup=10)
    rate = adjustments.rates(before, [Adjustment(step=5, total_steps=210)])

    assert [rate(step) for step in (5, 9)] == [before.rate(step) for step in (5, 9)]
    assert rate(10) == PEAK
    assert rate(110) == pytest.approx(PEAK / 2)


def test_changes_add_up_and_each_holds_from_its_own_step() -> None:
    changes = [
        Adjustment(step=20, learning_rate=0.04),
        Adjustment(step=30, total_steps=60),
        Adjustment(step=50, learning_rate=0.02, total_steps=70),
    ]
    rate = adjustments.rates(plan(), changes)

    assert rate(29) == pytest.approx(0.04 * (1 - 9 / 80))
    assert rate(30) == pytest.approx(0.04 * (1 - 10 / 40))
    assert rate(50) == 0.02
    assert rate(60) == pytest.approx(0.01)
    assert adjustments.total_steps(100, changes) == 70


def test_a_run_cannot_end_before_the_step_it_is_at() -> None:
    assert adjustments.total_steps(100, [Adjustment(step=40, total_steps=30)]) == 40


def test_changes_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    assert adjustments.read(tmp_path) == []

    adjustments.add(tmp_path, Adjustment(step=5, learning_rate=0.1))
    adjustments.add(tmp_path, Adjustment(step=9, total_steps=20))

    assert adjustments.read(tmp_path) == [
        Adjustment(step=5, learning_rate=0.1),
        Adjustment(step=9, total_steps=20),
    ]


def test_a_change_after_a_resume_makes_later_ones_void(tmp_path: Path) -> None:
    """They were made in steps that a resumed run takes anew."""
    adjustments.add(tmp_path, Adjustment(step=30, learning_rate=0.1))

    kept = adjustments.add(tmp_path, Adjustment(step=20, learning_rate=0.2))

    assert kept == [Adjustment(step=20, learning_rate=0.2)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            Adjustment(step=30, learning_rate=0.001),
            "Learning rate 0.001 from step 31, falling along a cosine to zero at step 120.",
        ),
        (
            Adjustment(step=30, total_steps=120),
            "The run ends at step 120; the schedule is stretched accordingly.",
        ),
    ],
)
def test_what_a_change_does_is_said(change: Adjustment, sentence: str) -> None:
    assert adjustments.words(change, "cosine", 120) == sentence
