"""Calls of tools: in the form that a template takes, with a loss on the calls alone."""

from typing import Any

import pytest

from backend.engine.data import tokenization
from backend.engine.data.chat_rendering import Unrenderable, render
from backend.engine.data.dataset import ALL, Document
from backend.engine.data.turns import read_tools, read_turns
from backend.engine.templates import tool_forms
from backend.engine.templates.answers import Remark
from backend.engine.templates.end_marks import end_tokens
from backend.engine.templates.rendering import ChatTemplate
from backend.engine.templates.tool_families import Family
from backend.engine.templates.tool_forms import Form
from tests.engine.templates.test_answers import runs
from tests.engine.templates.traits import TEMPLATES, TOOL_TEMPLATES, tokenizer_with

TOOLS = [{"name": "weather", "description": "of a city", "parameters": {"type": "object"}}]
FUNCTION = {"name": "weather", "arguments": '{"city": "Oslo"}'}
ASKED = {"role": "user", "content": "Weather?"}
SAID = {"role": "assistant", "content": "Take a coat."}
CALLING = [
    ASKED,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": FUNCTION}]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    SAID,
]
SHAREGPT = [
    {"from": "human", "value": "Weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    {"from": "observation", "value": "rain"},
    {"from": "gpt", "value": "Take a coat."},
]
FORMS = {
    "objects": Form(),
    "text": Form(arguments_as_text=True),
    "null": Form(null_content=True),
    "short ids": Form(short_ids=True),
    "its own end": Form(),
}
CALL = '<tool_call>weather{"city": "Oslo"}</tool_call>'


def document(turns: Any, tools: Any = TOOLS) -> Document:
    return Document(1, turns=read_turns(turns, "messages"), tools=read_tools(tools))


def learned(tokenizer: Any, turns: Any, tools: Any = TOOLS) -> list[str]:
    (tokens,) = tokenization.encode([document(turns, tools)], tokenizer, 4096)
    return [tokenizer.decode(run) for run in runs(tokens)]


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_the_form_of_a_template_is_found(name: str) -> None:
    template = ChatTemplate(tokenizer_with(TOOL_TEMPLATES[name]))

    assert tool_forms.form_of(template) == FORMS[name]
    assert tool_forms.shows_tools(template)


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
@pytest.mark.parametrize("turns", [CALLING, SHAREGPT], ids=["OpenAI", "ShareGPT"])
def test_calls_and_answers_have_a_loss_and_what_a_tool_says_has_none(
    name: str, turns: list[Any]
) -> None:
    tokenizer = tokenizer_with(TOOL_TEMPLATES[name])
    end = "<|call|>" if name == "its own end" else "<|im_end|>"

    assert learned(tokenizer, turns) == [f"{CALL}{end}", "Take a coat.<|im_end|>"]


def test_a_call_ends_an_answer_by_its_own_mark() -> None:
    tokenizer = tokenizer_with(TOOL_TEMPLATES["its own end"])

    ends = tokenizer.convert_ids_to_tokens(end_tokens(tokenizer))
    assert {"<|call|>", "<|im_end|>", tokenizer.eos_token} == set(ends)


def test_several_calls_at_once_are_learned_together() -> None:
    calls = [{"function": FUNCTION}, {"function": {**FUNCTION, "arguments": {"city": "Rome"}}}]
    turns = [ASKED, {"role": "assistant", "tool_calls": calls}]

    assert learned(tokenizer_with(TOOL_TEMPLATES["objects"]), turns) == [
        f"{CALL}{CALL.replace('Oslo', 'Rome')}<|im_end|>"
    ]


def test_the_tools_are_shown_as_they_are_in_the_data() -> None:
    tokenizer = tokenizer_with(TOOL_TEMPLATES["objects"])
    hostile = [{"name": "x", "description": "{{ 7 * 7 }}{% raise %}", "parameters": {}}]
    (shown,) = render([document([ASKED, SAID], hostile)], tokenizer, ALL)

    assert not isinstance(shown, Unrenderable)
    assert "{{ 7 * 7 }}{% raise %}" in shown[0].text


@pytest.mark.parametrize("turns", [CALLING, [ASKED, SAID]], ids=["calls", "tools alone"])
def test_a_template_without_tools_is_named(turns: list[Any]) -> None:
    (shown,) = render([document(turns)], tokenizer_with(TEMPLATES["chatml"]), ALL)

    assert isinstance(shown, Unrenderable)
    assert shown.what == "this base's chat template does not show tools or their calls"


FAMILY_TEMPLATES = {
    "SmolLM2": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are named SmolLM"
    "<|im_end|>\\n' }}{% endif %}" + TEMPLATES["chatml"],
    "Granite 3.0": "{% if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' "
    "+ (tools | tojson) }}{% endif %}{% for m in messages %}{% if m.role != 'tool' %}"
    "{{ '<|user|>' if m.role != 'assistant' else '<|assistant|>' }}{{ m.content + '<|stop|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "Granite 3.1 and later": "{% if tools %}{{ 'You are Granite, developed by IBM. ' "
    "+ (tools | tojson) }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content "
    "+ '<|stop|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_a_known_family_writes_calls_as_its_source_says(name: str) -> None:
    tokenizer = tokenizer_with(FAMILY_TEMPLATES[name])
    form = tool_forms.form_of(ChatTemplate(tokenizer))
    call, answer = learned(tokenizer, CALLING)
    (shown,) = render([document(CALLING)], tokenizer, ALL)

    assert isinstance(form, Family)
    assert form.name == name
    assert form.source.startswith("https://")
    assert '[{"name": "weather", "arguments": {"city": "Oslo"}}]' in call
    assert "_call" in call
    assert "rain" not in call + answer
    assert answer in ("Take a coat.<|im_end|>", "Take a coat.<|stop|>")
    assert not isinstance(shown, Unrenderable)
    assert "of a city" in shown[0].text


def test_the_name_of_a_tool_is_given_to_its_answer() -> None:
    turns = read_turns(CALLING, "messages")

    assert turns[2]["name"] == "weather"
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}


def test_the_end_of_a_call_is_not_the_end_of_an_answer() -> None:
    tokenizer = tokenizer_with(
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content }}{% for c in m.tool_calls or [] %}[INST]{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}[/INST]{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = '[INST]weather{"city": "Oslo"}[/INST]'
    texts = tokenization.encode([document(CALLING)], tokenizer, 4096)

    assert end_tokens(tokenizer) == [tokenizer.eos_token_id]
    assert [tokenizer.decode(run) for text in texts for run in runs(text)] == [
        f"{call}<|end|>", "Take a coat.<|end|>",
    ]  # fmt: skip


def test_a_template_that_shows_one_of_two_calls_is_refused() -> None:
    template = TOOL_TEMPLATES["objects"].replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    calls = [{"function": FUNCTION}, {"function": {**FUNCTION, "arguments": {"city": "Rome"}}}]
    turns = [ASKED, {"role": "assistant", "tool_calls": calls}]
    (shown,) = render([document(turns)], tokenizer_with(template), ALL)

    assert isinstance(shown, Unrenderable)
    assert "does not show an answer as it is in the data" in shown.what


def test_tools_that_are_not_listed_are_reported_though_the_calls_are_shown() -> None:
    template = TOOL_TEMPLATES["objects"].replace("{% if tools %}", "{% if false %}")
    (shown,) = render([document(CALLING)], tokenizer_with(template), ALL)

    assert not isinstance(shown, Unrenderable)
    assert all(each.remarks & Remark.NOT_SHOWN for each in shown)
