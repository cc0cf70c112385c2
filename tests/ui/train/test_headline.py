"""The headline of a result fits its data, and forgetting is said."""

import pytest

from backend import results as rs
from tests.ui.runs.test_tab import summary
from tests.ui.test_view import words
from ui.train.evaluation_view import evaluation_view
from ui.train.headline import headline, neutral_line


def evaluation(exact: float | None, token: float, *, tokens_each: int) -> rs.Evaluation:
    return rs.Evaluation(
        loss=1.0, exact_match=exact, token_accuracy=token, examples=50, tokens=50 * tokens_each
    )


def test_long_answers_that_never_match_are_measured_by_their_tokens() -> None:
    before = evaluation(0.0, 0.54, tokens_each=90)
    after = evaluation(0.02, 0.74, tokens_each=90)

    said = headline(summary(), before, after)

    assert said == "Predicts 74 % of the tokens of unseen answers, before 54 %."


@pytest.mark.parametrize("tokens_each", [5, 90])
def test_plain_text_has_no_answers(tokens_each: int) -> None:
    before = evaluation(None, 0.54, tokens_each=tokens_each)
    after = evaluation(None, 0.74, tokens_each=tokens_each)

    said = headline(summary(), before, after)

    assert said == "Predicts 74 % of the tokens of unseen text, before 54 %."
    assert "Exact match" not in words(evaluation_view(before, after, []))


@pytest.mark.parametrize("tokens_each", [5, 90])
def test_exact_match_is_the_headline_where_it_says_something(tokens_each: int) -> None:
    before = evaluation(0.0, 0.3, tokens_each=tokens_each)
    after = evaluation(0.8, 0.9, tokens_each=tokens_each)

    said = headline(summary(), before, after)

    assert said == "Held-out exact match: base 0 %, now 80 % of 50 answers."


def test_short_answers_keep_exact_match_even_at_zero() -> None:
    nothing = evaluation(0.0, 0.3, tokens_each=4)

    said = headline(summary(), nothing, nothing)

    assert said == "Held-out exact match: base 0 %, now 0 % of 50 answers."


def test_without_held_out_data_the_training_loss_is_said() -> None:
    said = headline(summary(loss=0.42, eval_loss=None), None, None)

    assert said.startswith("Training loss is 0.42 at the end. Nothing was held out")


def test_the_result_of_a_deleted_adapter_does_not_claim_that_nothing_was_held_out() -> None:
    assert "Nothing was held out" not in headline(summary(eval_loss=0.35), None, None)


def neutral(before: float, after: float | None) -> str:
    run = summary(neutral_text=rs.NeutralText(before=before, after=after))
    return words(neutral_line(run))


def test_a_small_change_on_neutral_text_is_one_line() -> None:
    said = neutral(2.4932, 2.5572)

    assert said == "On neutral text its perplexity went from 12.10 to 12.90."


@pytest.mark.parametrize("after", [2.4932 + 0.41, 900.0, None])
def test_a_clear_rise_on_neutral_text_comes_with_a_hint(after: float | None) -> None:
    said = neutral(2.4932, after)

    assert "has forgotten some of what the base knows" in said
    assert "fewer epochs, a lower learning rate or a lower rank" in said


def test_a_run_that_was_not_measured_has_no_line() -> None:
    assert neutral_line(summary()) is None
