"""What a finished run is worth: figures and examples, the base's beside the adapter's."""

from backend import Event
from backend import results as rs
from tests.ui.runs.test_tab import summary
from tests.ui.test_view import words
from ui.charts.curve_findings import Low
from ui.charts.loss_chart import got_worse
from ui.train import run_progress
from ui.train.evaluation_view import evaluation_view
from ui.train.test_answers import warning


def evaluation(loss: float, exact: float, token: float) -> rs.Evaluation:
    return rs.Evaluation(
        loss=loss, exact_match=exact, token_accuracy=token, examples=50, tokens=600
    )


def sample(step: int, text: str) -> Event:
    return Event(
        seq=step,
        time=0.0,
        type="sample",
        step=step,
        prompt="Where is the dog?",
        reference="Arr, the dog be in the hold!",
        base="The dog is in the garden.",
        text=text,
    )


def said(type: str, text: str | None = None, step: int = 1) -> Event:
    return Event.model_validate({"seq": 1, "time": 0.0, "type": type, "step": step, "text": text})


BEFORE, AFTER = evaluation(4.1, 0.0, 0.25), evaluation(0.35, 0.96, 0.98)


def test_the_figures_of_base_and_adapter_stand_side_by_side() -> None:
    shown = words(evaluation_view(BEFORE, AFTER, []))

    assert "On 50 held-out examples" in shown
    assert "Loss (nats per token) 4.100 0.350" in shown
    assert "Perplexity 60.34 1.42" in shown
    assert "Correct tokens 25 % 98 %" in shown
    assert "Exact match 0 % 96 %" in shown


def test_examples_stand_beside_what_they_should_be() -> None:
    events = [sample(100, "Aye."), sample(150, "Arr, the dog be in the hold!")]

    shown = words(evaluation_view(BEFORE, AFTER, events))

    assert "Where is the dog? Arr, the dog be in the hold! The dog is in the garden. Arr" in shown
    assert "Aye." not in shown  # of an end before the run was resumed


def test_a_perplexity_beyond_telling_stays_short() -> None:
    shown = words(evaluation_view(evaluation(30.0, 0, 0), evaluation(8.0, 0, 0), []))

    assert "Perplexity 1.1e+13 2,981" in shown


def test_without_held_out_examples_there_is_nothing_to_show() -> None:
    assert evaluation_view(None, None, [sample(1, "x")]) is None


def test_a_warning_is_shown_until_the_run_is_taken_up_again() -> None:
    assert "learn by heart" in words(warning([said("warning", "It begins to learn by heart.")]))
    assert warning([said("warning", "It begins to learn by heart."), said("resumed")]) is None
    assert warning([]) is None


def trial(step: int, loss: float) -> Event:
    return Event(seq=step, time=0.0, type="evaluation", step=step, loss=loss)


def test_a_run_that_got_worse_is_found_by_the_tests_that_count() -> None:
    resumed = Event(seq=30, time=0.0, type="resumed", step=10)
    ruined = [trial(0, 3.0), trial(10, 0.8), trial(20, 2.5)]

    assert got_worse(ruined) == Low(0.8, 10, 2.5)
    assert got_worse([*ruined, resumed]) is None
    assert got_worse([*ruined, resumed, trial(20, 0.7)]) is None
    assert got_worse([]) is None


def test_a_run_that_got_worse_is_told_with_what_would_have_helped() -> None:
    later = words(run_progress.worse(summary(name="pirate"), Low(0.8, 10, 2.5), 0.004))
    never = words(run_progress.worse(summary(name="pirate"), Low(1.0, 0, 3.0), 0.004))

    assert "pirate is worse than it was after step 10. Held-out loss was 0.80 then" in later
    assert "Train again and keep the best checkpoint Try with learning rate 0.001" in later
    assert "pirate is worse than the base model." in never
    assert "keep the best" not in never
