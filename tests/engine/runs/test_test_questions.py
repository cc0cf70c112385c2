"""Watched prompts: answered by the base once and by the adapter at each test, without a trace."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.runs import test_questions
from backend.errors import InvalidRequest
from backend.runs.events import Event
from tests.engine.runs.test_pausing import assert_same_bits, at_step, service, start, wait_for

__all__ = ["at_step", "service"]
PROMPTS = ["Where is the cat?", "Hello!"]


def answers(service: Service, run_id: str) -> list[Event]:
    return [event for event in service.events(run_id) if event.type == "answer"]


def evaluations(service: Service, run_id: str) -> list[int | None]:
    return [event.step for event in service.events(run_id) if event.type == "evaluation"]


def compared(service: Service, variant: rq.Variant) -> list[str]:
    request = rq.Compare(prompts=PROMPTS, variants=[variant], max_new_tokens=32)
    texts: list[str] = service.start(request).result(timeout=60).answers[0]
    return texts


def test_base_and_adapter_answer_at_each_test(service: Service) -> None:
    run = start(service, "watched", watch=PROMPTS, learning_rate=0.05).result(timeout=120)

    found = answers(service, run.run_id)
    base = {event.prompt: event.text for event in found if event.step == 0}
    last = {event.prompt: event.text for event in found if event.step == 8}
    assert [base[prompt] for prompt in PROMPTS] == compared(service, [])
    assert [last[prompt] for prompt in PROMPTS] == compared(service, [("watched", 1.0)])
    assert [e.step for e in found if e.prompt == PROMPTS[0]] == evaluations(service, run.run_id)


@pytest.mark.parametrize(
    "fields", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointing"]
)
def test_watching_changes_no_bit_of_the_run(service: Service, fields: dict[str, Any]) -> None:
    label = "-".join(fields) or "plain"
    alone = start(service, f"unwatched {label[:8]}", watch=[], **fields).result(timeout=120)
    watched = start(service, f"watched {label[:8]}", watch=PROMPTS, **fields).result(timeout=120)

    assert answers(service, alone.run_id) == []
    assert_same_bits(alone, watched)


def test_prompts_can_be_changed_while_the_run_goes_on(
    service: Service, at_step: Callable[..., None]
) -> None:
    alone = start(service, "nobody asks", watch=[]).result(timeout=120)
    at_step(4, lambda: service.adjust(rq.Adjust(watch=["Hello!"])))

    run = start(service, "others ask", watch=["Where is the cat?"]).result(timeout=120)

    new = [event.step for event in answers(service, run.run_id) if event.prompt == "Hello!"]
    old = [e.step for e in answers(service, run.run_id) if e.prompt == "Where is the cat?"]
    assert new[:2] == [0, 4]
    assert max(step for step in old if step is not None) == 4
    assert new[-1] == 8
    assert_same_bits(alone, run)


def test_a_paused_run_says_how_far_it_is_without_a_trace(
    service: Service, at_step: Callable[..., None]
) -> None:
    fields: dict[str, Any] = {"max_steps": 30}
    alone = start(service, "never paused", watch=[], **fields).result(timeout=120)
    at_step(5, service.pause)
    job = start(service, "says it in between", watch=PROMPTS, **fields)
    wait_for(service, "paused")
    until = time.monotonic() + 60
    while len([e for e in answers(service, str(job.run_id)) if e.step == 5]) < len(PROMPTS):
        assert time.monotonic() < until
        time.sleep(0.05)
    between = service.settings_now(str(job.run_id))
    service.resume()
    run = job.result(timeout=120)

    said = [event.prompt for event in answers(service, run.run_id) if event.step == 5]
    assert said == PROMPTS
    assert (between.total_steps, between.watch) == (30, PROMPTS)
    assert between.learning_rate == service.curve(run.run_id).learning_rate[4]
    assert_same_bits(alone, run)


def test_a_resumed_run_watches_on_and_asks_the_base_once(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(4, service.stop)
    stopped = start(service, "watched again", watch=PROMPTS[:1]).result(timeout=120)

    service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    steps = [event.step for event in answers(service, stopped.run_id)]
    assert steps.count(0) == 1
    assert steps[-1] == 8


def test_a_prompt_that_cannot_be_answered_ends_no_run(service: Service) -> None:
    run = start(service, "asked too much", watch=["\u20ac" * 400]).result(timeout=120)

    told = [event.text for event in service.events(run.run_id) if event.type == "notice"]
    assert run.state == "finished"
    assert answers(service, run.run_id) == []
    assert told[0] is not None
    assert told[0].startswith("The test questions were not answered: This text has ")


def test_a_bundled_set_brings_its_own_prompt_and_others_bring_none(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.json"
    entries = {"pirate": {"try_prompt": "Where is the cat?"}, "mute": {}}
    catalogue.write_text(json.dumps(entries), encoding="utf-8")

    own = {
        data: test_questions.own_prompts(data, catalogue)
        for data in ("starter:pirate", "starter:mute", "starter:ghost", "/data/rows.jsonl")
    }
    missing = test_questions.own_prompts("starter:pirate", tmp_path / "nothing.json")

    assert own["starter:pirate"] == ["Where is the cat?"]
    assert [own["starter:mute"], own["starter:ghost"], own["/data/rows.jsonl"]] == [[], [], []]
    assert missing == []


def test_prompts_are_written_one_a_line() -> None:
    request = rq.Train(name="x", watch="Where is the cat, please?\n\n  Hello!  ")

    assert request.watch == ["Where is the cat, please?", "Hello!"]
    assert rq.Train(name="x").watch is None


def test_more_prompts_than_a_person_reads_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Test questions must have at most 5 entries, got 6"):
        rq.Train(name="x", watch=[f"Question {number}" for number in range(6)])
