"""Frames of chat templates: the same answers as rendering every beginning, or no frame at all."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.engine.data import chat_rendering
from backend.engine.data.dataset import ALL, Document
from backend.engine.templates import answers, template_frames
from backend.engine.templates.rendering import ChatTemplate, Conversation, Unrenderable
from backend.settings import STARTER
from tests.engine.templates.traits import TEMPLATES as TRAITS
from tests.engine.templates.traits import tokenizer_with

OTHERS = {
    "trims": "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "hides thoughts": "{% for m in messages %}<{{ m.role }}>"
    "{{ m.content if loop.last else m.content.split('</think>') | last }}</{{ m.role }}>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "ends at the end": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% else %}<end>{% endif %}",
    "has no mark": "{% for m in messages %}{{ m.content }} {% endfor %}",
}
TEMPLATES = {
    "starter": None,
    **{id: each.jinja for id, each in CHAT_TEMPLATES.items()},
    **OTHERS,
}
WORDS = st.sampled_from(["Hello", " a cat ", "a</think>b", "qz0zq", "", "\n", "<end>", "Aye!"])


@pytest.fixture(scope="module", params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    found = AutoTokenizer.from_pretrained(STARTER / "model")
    found.chat_template = TEMPLATES[request.param] or found.chat_template
    return found


def conversations() -> Any:
    turn = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": WORDS}
    )
    return st.lists(turn, min_size=1, max_size=5)


def comparable(shown: list[Any]) -> list[Any]:
    """Leave out the questions: a text that says the same twice has two places for one."""
    return [
        each.what if isinstance(each, Unrenderable) else [replace(t, question=None) for t in each]
        for each in shown
    ]


def one_by_one(document: Document, tokenizer: Any) -> Any:
    said = [n for n, t in enumerate(document.turns) if chat_rendering._says_something(t)]
    try:
        return answers.place(ChatTemplate(tokenizer), Conversation(document.turns), said)
    except Unrenderable as refusal:
        return refusal


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(talks=st.lists(conversations(), min_size=1, max_size=4))
def test_a_frame_shows_the_answers_that_are_found_one_by_one(tokenizer: Any, talks: Any) -> None:
    documents = [Document(row=n, turns=turns, text="") for n, turns in enumerate(talks, 1)]
    documents = [each for each in documents if chat_rendering.has_answer(each)]

    fast = chat_rendering.render(documents, tokenizer, ALL)
    slow = [one_by_one(document, tokenizer) for document in documents]

    assert comparable(fast) == comparable(slow)


@pytest.mark.parametrize("trait", TRAITS)
def test_templates_of_every_trait_have_a_frame(trait: str) -> None:
    template = ChatTemplate(tokenizer_with(TRAITS[trait]))
    roles = ("user", "assistant", "user", "assistant")
    frame = template_frames.frame_of(template, roles, (1, 3))

    assert frame is not None
    contents = ["Hello", "Aye!", "Why?", "So."]
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    shown = template.texts(frame.beginnings(Conversation(turns)), asks=False)
    assert frame.filled(contents, shown) == answers.place(template, Conversation(turns), (1, 3))
    assert frame.filled(["Hello", "No.", "Why?", "So."], shown) is None


def test_a_template_that_changes_the_words_has_no_frame() -> None:
    template = ChatTemplate(
        tokenizer_with(TRAITS["chatml"].replace("m.content", "m.content | upper"))
    )

    assert template_frames.frame_of(template, ("user", "assistant"), (1,)) is None
