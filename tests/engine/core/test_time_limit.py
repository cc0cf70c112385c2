"""A limit of time for Python code: it ends loops, and never touches what comes after."""

import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import pytest

from backend.engine.core.time_limit import within
from backend.engine.data import encoding
from backend.engine.data.dataset import Document
from backend.engine.inference import prompts
from backend.engine.templates.rendering import ChatTemplate, Conversation, Unrenderable
from backend.errors import InvalidRequest, ModelError
from backend.files import read_limits
from backend.requests import Message
from backend.settings import PROJECT


def too_slow() -> ModelError:
    return ModelError("It takes too long.")


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(Exception):  # what is raised from outside must not end here
            len("x")


def test_a_loop_without_an_end_is_ended() -> None:
    started = time.monotonic()

    with pytest.raises(ModelError, match="too long"):
        within(0.05, lambda: spin(60), error=too_slow)

    assert time.monotonic() - started < 30


def test_what_ends_in_time_is_left_alone_and_so_is_what_follows() -> None:
    for _ in range(300):
        with suppress(ModelError):  # a busy machine may take longer
            within(0.002, lambda: 7, error=too_slow)
    assert within(60, lambda: 7, error=too_slow) == 7
    spin(0.1)  # nothing is raised afterwards


def test_an_end_at_the_very_moment_of_the_limit_harms_nothing() -> None:
    ended = 0
    for _ in range(100):
        try:
            within(0.002, lambda: spin(0.002), error=too_slow)
        except ModelError:
            ended += 1
        spin(0.001)
    assert 0 <= ended <= 100


def test_an_error_inside_passes_as_it_is() -> None:
    with pytest.raises(KeyError):
        within(10, lambda: {}["x"], error=too_slow)


def test_a_limit_leaves_nothing_behind_in_the_interpreter() -> None:
    """In Python 3.11 a cancelled exception that was never set makes a profiler run forever."""
    code = (
        "import cProfile; from backend.engine.core.time_limit import within\n"
        "cProfile.run('within(60, lambda: 7, error=RuntimeError); sum(map(abs, range(9)))')"
    )

    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120, check=True)


class Tokenizer:
    """A tokenizer whose template does what it is told."""

    chat_template = "x"
    bos_token = ""

    def __init__(self, render: Any) -> None:
        self._render = render

    def apply_chat_template(self, conversations: Any, **options: Any) -> Any:
        return self._render(conversations)

    def get_chat_template(self, chosen: Any, tools: Any) -> str:
        return self.chat_template


TALK = [Message(role="user", content="Hello")]
ASKED = Conversation([{"role": "user", "content": "Hello"}])


def test_a_template_without_an_end_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_limits, "PROMPT_SECONDS", 0.05)
    monkeypatch.setattr(read_limits, "TEMPLATE_SECONDS", 0.05)
    endless = Tokenizer(lambda turns: spin(60))

    with pytest.raises(ModelError, match="did not finish within"):
        prompts.prompt_text(endless, TALK)
    with pytest.raises(ModelError, match="did not finish within"):
        ChatTemplate(endless).text(ASKED, asks=True)


def test_a_template_that_makes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_limits, "RENDERED_CHARACTERS", 100)
    wordy = Tokenizer(lambda turns: ["x" * 101])

    with pytest.raises(InvalidRequest, match="turns the conversation into 101 characters"):
        prompts.prompt_text(wordy, TALK)
    with pytest.raises(Unrenderable, match="turns it into 101 characters"):
        ChatTemplate(wordy).text(ASKED, asks=False)


def test_long_examples_are_rendered_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_limits, "BATCH_CHARACTERS", 25)
    documents = [Document(row=row, text="x" * 10) for row in range(1, 8)]

    batches = list(encoding._batches(iter(documents)))

    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [document.row for batch in batches for document in batch] == list(range(1, 8))
