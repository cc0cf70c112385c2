"""How a conversation looks to a base, with a chat template and without one."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from backend.engine.data import tokenization
from backend.engine.data.dataset import Document
from backend.engine.inference.prompts import prompt_text
from backend.errors import InvalidRequest
from tests.engine.tiny import write_base

STARTER = Path(__file__).parents[3] / "starter" / "model"


def talk(*contents: str) -> list[rq.Message]:
    roles = ("user", "assistant")
    return [rq.Message(role=roles[n % 2], content=each) for n, each in enumerate(contents)]


@pytest.fixture
def plain() -> Any:
    """A tokenizer without a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = None
    return tokenizer


def test_without_a_template_the_whole_conversation_is_read(plain: Any) -> None:
    messages = talk("My cat is Tom.", "A fine cat!", "What is it called?")

    text = prompt_text(plain, messages)

    assert text == "My cat is Tom.\nA fine cat!\nWhat is it called?\n"


def test_without_a_template_a_single_turn_is_what_training_makes_of_a_prompt(plain: Any) -> None:
    turns = [
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "On the mat."},
    ]
    (learned,) = tokenization.encode([Document(1, turns=turns)], plain, 512)

    asked = plain(prompt_text(plain, talk("Where is the cat?"))).input_ids

    assert learned.ids[: len(asked)].tolist() == asked
    assert learned.learned.tolist() == [n >= len(asked) for n in range(len(learned))]


def test_a_template_that_refuses_is_quoted_and_the_session_goes_on(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('No system messages, please') }}{% endif %}"
        "{{ m.content }}\n{% endfor %}"
    )
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(base))).result(timeout=120)
        refused = [rq.Message(role="system", content="Be kind."), *talk("Hello")]

        with pytest.raises(InvalidRequest) as caught:
            list(service.chat(rq.Chat(messages=refused, max_new_tokens=2)))
        list(service.chat(rq.Chat(messages=talk("Hello"), max_new_tokens=2)))

    assert caught.value.what == (
        "This base's chat template refuses the conversation: No system messages, please."
    )
    assert "without a system message" in caught.value.cure


def test_a_template_that_loops_too_often_is_not_taken_for_one_that_wants_turns(plain: Any) -> None:
    plain.chat_template = "{% for i in range(10**9) %}x{% endfor %}"

    with pytest.raises(InvalidRequest) as caught:
        prompt_text(plain, talk("Hello"))

    assert caught.value.what.startswith("This base's chat template loops too often: Range too big")
    assert caught.value.what.endswith("(100000).")
    assert "in turn" not in caught.value.cure


def test_a_template_that_is_none_is_noted_and_can_be_replaced(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in %}{{ m.content }}{% endfor %}")
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        facts = service.start(rq.LoadModel(source=str(base))).result(timeout=120)
        with pytest.raises(InvalidRequest, match="chat template cannot be read: Expected an") as e:
            list(service.chat(rq.Chat(messages=talk("Hello"), max_new_tokens=2)))
        again = rq.LoadModel(source=str(base), chat_template="dialogue")
        replaced = service.start(again).result(timeout=120)
        list(service.chat(rq.Chat(messages=talk("Hello"), max_new_tokens=2)))

    assert any("Its chat template cannot be read (Expected an" in each for each in facts.notes)
    assert "Chat template (dialogue fits any base)" in e.value.cure
    assert replaced.notes == ()
