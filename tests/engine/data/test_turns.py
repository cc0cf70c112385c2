"""Turns in the shapes that people have: parts, tools, thoughts, weights, names of roles."""

from typing import Any

import pytest

from backend.engine.data.turns import BadRow, read_tools, read_turns, weighs_nothing
from backend.engine.data.unfit_rows import require_no_media

ASKED = {"role": "user", "content": "Hello?"}


def one(turn: dict[str, Any]) -> dict[str, Any]:
    return read_turns([turn], "messages")[0]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Hello"}, {"type": "text", "text": " you"}],
        [{"type": "text", "value": "Hello"}, {"type": "text", "value": " you"}],
        [{"type": "input_text", "text": "Hello you"}],
        ["Hello", " you"],
    ],
)
def test_parts_of_text_are_joined(content: Any) -> None:
    assert one({"role": "user", "content": content})["content"] == "Hello you"


@pytest.mark.parametrize("kind", ["image", "image_url", "video", "audio"])
def test_pictures_and_other_media_are_named(kind: str) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: "x"}]
    with pytest.raises(BadRow, match=f"a turn holds {kind}, and only text is supported"):
        one({"role": "user", "content": content})


@pytest.mark.parametrize(
    ("name", "role"),
    [("developer", "system"), ("human", "user"), ("gpt", "assistant"), ("observation", "tool"),
     ("function", "tool"), ("tool", "tool")],
)  # fmt: skip
def test_roles_have_several_names(name: str, role: str) -> None:
    assert one({"role": name, "content": "x"})["role"] == role
    assert one({"from": name, "value": "x"})["role"] == role


def test_a_thought_beside_the_answer_is_kept_for_the_template() -> None:
    turn = one({"role": "assistant", "content": "Yes.", "thinking": "Hm."})

    assert turn == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "assistant", "tool_calls": '[{"name": "f", "arguments": {}}]'},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "tool_call", "value": '[{"name": "f", "arguments": "{}"}]'},
    ],
)
def test_calls_of_tools_are_read_alike(turn: dict[str, Any]) -> None:
    calls = one(turn)["tool_calls"]

    assert calls == [{"type": "function", "function": {"name": "f", "arguments": {}}}]


def test_a_call_that_is_not_one_is_a_bad_row() -> None:
    for value in ("call me", "[1]", "{}"):
        with pytest.raises(BadRow, match="call"):
            one({"from": "function_call", "value": value})


def test_what_a_tool_answers_may_be_an_object() -> None:
    assert one({"role": "tool", "content": {"rain": True}})["content"] == '{"rain": true}'


@pytest.mark.parametrize("name", ["weight", "loss_weight", "train", "loss"])
def test_weights_of_0_and_1(name: str) -> None:
    assert weighs_nothing({name: 0})
    assert weighs_nothing({name: False})
    assert not weighs_nothing({name: 1})
    assert not weighs_nothing({})
    assert "unlearned" in one({**ASKED, name: 0.0})
    with pytest.raises(BadRow, match="only 0 and 1 are supported"):
        weighs_nothing({name: 0.5})


def test_tools_in_the_shapes_that_people_have() -> None:
    tool = {"name": "f", "parameters": {}}
    whole = [{"type": "function", "function": tool}]

    assert read_tools([tool]) == read_tools(whole) == whole
    assert read_tools('[{"name": "f", "parameters": {}}]') == whole
    assert read_tools(None) is read_tools("") is read_tools([]) is read_tools("[]") is None
    with pytest.raises(BadRow):
        read_tools("no tools")


@pytest.mark.parametrize("weight", ["0", "false", "0.0", " False "])
def test_a_weight_may_be_text(weight: str) -> None:
    assert weighs_nothing({"weight": weight})
    assert not weighs_nothing({"weight": "1"})


@pytest.mark.parametrize("name", ["images", "image", "videos", "audio"])
def test_a_row_with_pictures_or_sounds_is_named(name: str) -> None:
    with pytest.raises(BadRow, match=f"it has {name}, and only text is supported"):
        require_no_media({"prompt": "<image>What?", name: ["a.png"]})
    require_no_media({"prompt": "What?", name: None})
