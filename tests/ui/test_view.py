import json

import pytest

from backend import Event
from backend import results as rs
from tests.ui.fake_service import FACTS, STATS, evaluation
from ui.adapters.adapter_table import adapter_table
from ui.app.session_bar import bar
from ui.charts import curve_findings
from ui.components.blockers import engaged
from ui.components.feedback import Failure
from ui.runs import run_table
from ui.train import readiness, run_progress
from ui.train.readiness import Check


def snapshot(**changes: object) -> rs.Snapshot:
    empty = rs.Snapshot(
        version=1,
        phase="ready",
        base=FACTS,
        active=[],
        adapters=[],
        runs=[],
        job=None,
        notice=None,
        memory_bytes=412 * 1024**2,
        memory_total_bytes=24 * 1024**3,
    )
    return empty.model_copy(update=changes)


def run(**changes: object) -> rs.RunSummary:
    plain = rs.RunSummary(
        id="r1",
        name="pirate",
        adapter_id="ad_1",
        state="finished",
        colour="#E69F00",
        data="starter:pirate",
        base_name="starter",
        method="LoRA",
        rank=8,
        created=0.0,
        begun=0.0,
        step=118,
        total_steps=118,
        loss=0.3,
        tokens_per_second=1020.0,
        seconds=40.0,
    )
    return plain.model_copy(update=changes)


def job(**changes: object) -> rs.JobInfo:
    plain = rs.JobInfo(
        id=1,
        title="Training pirate",
        operation="train",
        run_id="r1",
        text="",
        fraction=0.63,
        seconds_left=25.0,
        stopping=False,
    )
    return plain.model_copy(update=changes)


def adapter(**changes: object) -> rs.AdapterInfo:
    plain = rs.AdapterInfo(
        id="ad_1",
        name="pirate",
        colour="#E69F00",
        method="LoRA",
        rank=8,
        parameters=31_744,
        base_name="starter",
        base_fingerprint=FACTS.fingerprint,
        created=0.0,
        run_id="r1",
        evaluation_before=evaluation(4.0, 0.0),
        evaluation=evaluation(0.3, 0.96),
    )
    return plain.model_copy(update=changes)


def report(**changes: object) -> rs.PreflightReport:
    plain = rs.PreflightReport(
        ready=True,
        problems=[],
        notes=[],
        matched_modules=["q"] * 28,
        trainable_parameters=31_744,
        total_parameters=3_500_000,
        stats=STATS,
        steps=118,
        memory_bytes=310 * 1024**2,
        memory_available_bytes=24 * 1024**3,
        seconds=40.0,
        seconds_from="one timed step",
    )
    return plain.model_copy(update=changes)


def words(node: object) -> str:
    """All text of a tree, as somebody would read it."""
    if isinstance(node, str):
        return node
    assert isinstance(node, list)
    return " ".join(" ".join(words(child) for child in node[2]).split())


def checked(**changes: object) -> Check:
    return Check(name="pirate", free_name="pirate", report=report()).model_copy(update=changes)


def test_a_ready_run_says_what_will_happen() -> None:
    ready = readiness.readiness(snapshot(), checked())
    assert ready.can_start
    assert ready.label == "Train pirate, about 40 s"
    assert "28 layers matched, 0.9 % of the model (31,744 parameters)" in words(ready.card)


@pytest.mark.parametrize(
    ("changes", "check", "reason"),
    [
        ({"base": None, "phase": "loading", "job": job(title="Loading starter")}, {}, "loading"),
        ({"base": None, "phase": "empty"}, {}, "No base model is loaded"),
        ({"base": None, "phase": "down"}, {}, "Start again"),
        ({"job": job(title="Answering", run_id=None)}, {}, "Answering is in progress"),
        ({"job": job()}, {"free_name": "pirate 2"}, "already an adapter called pirate"),
        ({}, {"checking": True}, "Checking"),
        ({}, {"report": None}, "Checking"),
        ({}, {"free_name": "pirate 2"}, "already an adapter called pirate"),
        ({}, {"failure": Failure("Rank: too low.", "Try 8.")}, "Rank: too low. Try 8."),
        (
            {},
            {"report": report(ready=False, problems=[rs.Problem(what="Nothing matches.")])},
            "Nothing matches.",
        ),
    ],
)
def test_what_keeps_a_run_from_starting_is_said(
    changes: dict[str, object], check: dict[str, object], reason: str
) -> None:
    ready = readiness.readiness(snapshot(**changes), checked(**check))
    assert not ready.can_start
    assert reason in words(ready.card)


def test_a_taken_name_offers_the_free_one() -> None:
    ready = readiness.readiness(snapshot(), checked(free_name="pirate 2"))
    assert "Call it pirate 2" in words(ready.card)


def test_a_finished_run_shows_its_evidence() -> None:
    said = words(run_progress.stage(run(), None, adapter(max_difference=0.0)))
    assert "Held-out exact match: base 0 %, now 96 % of 50 answers." in said
    assert "when it is loaded again (largest difference 0)" in said
    assert "Try it in Chat" in said
    assert "Train longer" in said
    launched = run_progress.stage(run(launched=True), None, adapter(max_difference=0.0))
    assert "Train longer" not in words(launched)  # it cannot be extended yet
    changed = run_progress.stage(run(not_extendable="it was changed"), None, adapter())
    assert "Train longer" not in words(changed)


@pytest.mark.parametrize(
    ("changes", "diverged_at", "offer"),
    [
        ({"state": "stopped", "resumable": True}, None, "Resume"),
        ({"state": "interrupted", "resumable": True}, None, "Resume"),
        ({"state": "interrupted"}, None, "Try again"),
        ({"state": "failed", "resumable": True}, 0.004, "Try with learning rate 0.001"),
    ],
)
def test_a_run_that_ended_early_offers_what_mends_it(
    changes: dict[str, object], diverged_at: float | None, offer: str
) -> None:
    ended = run(**changes, message="It broke off.", cure="Do this.")
    said = words(run_progress.stage(ended, None, None, diverged_at=diverged_at))
    assert "It broke off. Do this." in said
    assert offer in said


def test_a_running_run_shows_step_speed_and_time_left() -> None:
    events = [
        Event(seq=1, time=0, type="step", step=73, loss=1.0),
        Event(
            seq=2, time=0, type="step", step=74, loss=0.9, tokens_per_second=1020, seconds_left=25
        ),
    ]
    running = run(state="running")
    said = words(run_progress.stage(running, run_progress.live_numbers(running, events), None))
    assert "Step 74 of 118" in said
    assert "1,020 tokens/s" in said
    assert "25 s" in said


@pytest.mark.parametrize(
    ("first", "last", "running", "title"),
    [
        (4.1, 0.31, False, "Loss fell from 4.1 to 0.31 in 118 steps"),
        (0.3, 4.1, False, "Loss rose from 0.30 to 4.1 in 118 steps"),
        (4.1, 0.31, True, "Loss has fallen from 4.1 to 0.31 in 118 steps"),
        (4.1, 4.1, False, "Loss is at 4.1 after 118 steps"),
        (None, None, True, "Waiting for the first step"),
    ],
)
def test_the_chart_title_states_the_finding(
    first: float | None, last: float | None, running: bool, title: str
) -> None:
    assert curve_findings.finding(first, last, 118, running) == title


@pytest.mark.parametrize(
    ("losses", "running", "title"),
    [
        ([3.0, 0.8, 2.5], False, "Held-out loss fell to 0.80 by step 10, then rose to 2.5"),
        ([3.0, 0.8, 2.5], True, "Held-out loss fell to 0.80 by step 10, then has risen to 2.5"),
        ([1.0, 2.0, 3.0], False, "Held-out loss rose from 1.0 to 3.0"),
        ([3.0, 0.8, 0.85], False, "Loss fell from 4.1 to 0.31 in 20 steps"),
        ([3.0, 0.8, 0.4], False, "Loss fell from 4.1 to 0.31 in 20 steps"),
        ([], False, "Loss fell from 4.1 to 0.31 in 20 steps"),
    ],
)
def test_the_title_of_a_run_that_got_worse_says_so(
    losses: list[float], running: bool, title: str
) -> None:
    low = curve_findings.lowest([0, 10, 20][: len(losses)], losses)
    assert curve_findings.finding(4.1, 0.31, 20, running, low) == title


def test_the_bar_shows_progress_and_how_to_stop() -> None:
    said = words(bar(snapshot(phase="training", job=job())))
    assert "Training pirate" in said
    assert "63 % 25 s left Pause Save now Stop" in said
    assert "412 MB of 24 GB" in said


def test_a_second_stop_ends_at_once() -> None:
    said = words(bar(snapshot(phase="training", job=job(stopping=True))))
    assert "Stop now" in said
    assert "finishing the step, then saving" in said


def test_the_bar_shows_notices_and_what_is_on() -> None:
    notice = rs.Notice(kind="bad", text="The model process is gone.", time=0.0)
    said = words(bar(snapshot(adapters=[adapter()], active=[("pirate", 1.0)], notice=notice)))
    assert "On pirate" in said
    assert "The model process is gone." in said


def test_what_went_wrong_is_said_also_while_it_is_mended() -> None:
    gone = rs.Notice(kind="bad", text="The model process is gone.", time=0.0)
    fine = rs.Notice(kind="info", text="The session is back.", time=0.0)
    loading = {"base": None, "phase": "loading", "job": job(title="Loading starter", run_id=None)}
    assert "The model process is gone." in words(bar(snapshot(**loading, notice=gone)))
    assert "The session is back." not in words(bar(snapshot(**loading, notice=fine)))


def test_adapters_for_another_base_cannot_be_turned_on() -> None:
    table = adapter_table(snapshot(adapters=[adapter(base_fingerprint="other")]))
    assert '"disabled": true' in json.dumps(table)
    assert "starter (not loaded)" in words(table)


@pytest.mark.parametrize(
    ("phase", "paused", "reason"),
    [
        ("training", False, "pirate is training"),
        ("paused", True, "pirate is paused"),
        ("chatting", False, ""),
    ],
)
def test_adapters_cannot_be_switched_while_a_job_holds_the_model(
    phase: str, paused: bool, reason: str
) -> None:
    held = snapshot(adapters=[adapter()], phase=phase, job=job(paused=paused))
    assert engaged(held) == reason
    assert ('"disabled": true' in json.dumps(adapter_table(held))) is bool(reason)
    assert reason in json.dumps(adapter_table(held))


def test_an_adapter_that_learned_in_another_chat_template_says_so() -> None:
    given = FACTS.model_copy(update={"given_template": "alpaca"})
    own = adapter(chat_template="alpaca")
    assert "in Alpaca" in words(adapter_table(snapshot(adapters=[own])))
    assert "in Alpaca" not in words(adapter_table(snapshot(base=given, adapters=[own])))
    assert "in Alpaca" not in words(adapter_table(snapshot(adapters=[adapter()])))


def test_runs_are_filtered_by_words_and_state() -> None:
    runs = [run(), run(id="r2", name="polite", data="starter:polite", state="stopped")]
    assert [r.id for r in run_table.filtered(runs, "POLITE lora", "")] == ["r2"]
    assert [r.id for r in run_table.filtered(runs, "", "finished")] == ["r1"]
    assert run_table.filtered(runs, "nothing", "") == []


def test_hostile_names_stay_text() -> None:
    hostile = "<img src=x onerror=alert(1)>${7*6}{{value}}"
    tree = bar(snapshot(base=FACTS.model_copy(update={"name": hostile})))
    assert "<img" in words(tree)
    tags = json.dumps(tree).count('["img"')
    assert tags == 0


def test_the_card_counts_changed_settings_and_says_the_disk_needed() -> None:
    said = words(readiness.readiness(snapshot(), checked()).card)
    assert "All settings are as proposed." in said
    changed = report(changed_settings=1, disk_bytes=3 * 1024**2, disk_free_bytes=20 * 1024**3)
    said = words(readiness.readiness(snapshot(), checked(report=changed)).card)
    assert "1 setting differs from what is proposed. Disk: 3 MB needed, 20 GB free." in said


def test_behind_a_training_another_may_wait_its_turn() -> None:
    ready = readiness.readiness(snapshot(job=job()), checked())
    assert (ready.label, ready.can_start) == ("Add pirate to the queue", True)
    assert "pirate is training." in words(ready.card)
    bad = checked(failure=Failure("Rank: too low.", "Try 8."))
    assert not readiness.readiness(snapshot(job=job()), bad).can_start


def test_the_same_base_loaded_in_another_way_is_checked_again() -> None:
    quantised = FACTS.model_copy(update={"quantization": "nf4"})
    keys = [readiness.check_key(snapshot(base=base), Check()) for base in (FACTS, quantised)]
    assert keys[0] != keys[1]
