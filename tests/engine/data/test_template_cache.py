"""Frames of chat templates: the same answers as rendering every beginning, or no frame at all."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.engine.data import chat_rendering, template_cache
from backend.engine.data.dataset import Document
from backend.settings import STARTER

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
    return [each.what if isinstance(each, chat_rendering.Unrenderable) else each for each in shown]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(talks=st.lists(conversations(), min_size=1, max_size=4))
def test_a_frame_shows_the_answers_that_all_beginnings_show(tokenizer: Any, talks: Any) -> None:
    documents = [Document(row=n, turns=turns, text="") for n, turns in enumerate(talks, 1)]
    documents = [each for each in documents if chat_rendering.has_answer(each)]

    fast = chat_rendering.render(documents, tokenizer)
    slow = chat_rendering._render_beginnings(documents, tokenizer) if documents else []

    assert comparable(fast) == comparable(slow)


def test_most_templates_have_a_frame_and_one_rendering_is_enough() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    for template in (tokenizer.chat_template, *(t.jinja for t in CHAT_TEMPLATES.values())):
        frame = chat_rendering._frame(tokenizer, template, ("user", "assistant"))
        assert frame is not None
        text = "".join([frame.around[0], "Hello", frame.around[1], "Aye!", frame.around[2]])
        assert frame.spans(["Hello", "Aye!"], text) is not None
        assert frame.spans(["Hello", "Aye"], text) is None


def test_a_template_whose_beginnings_are_others_has_no_frame() -> None:
    def render(turns: Any, asks: bool) -> str:
        return f"{len(turns)} turns: " + " ".join(turn["content"] for turn in turns) + "."

    assert template_cache.learn(["user", "assistant"], render) is None
