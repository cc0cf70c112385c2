"""Chat templates applied: on a given day, and where Transformers changes the turns."""

import pytest

from backend.engine.templates.rendering import ChatTemplate, Conversation, Unrenderable
from tests.engine.templates.traits import TEMPLATES, TOOL_TEMPLATES, tokenizer_with

ASKED = [{"role": "user", "content": "Hello?"}]


def test_a_template_tells_the_day_it_is_given() -> None:
    tokenizer = tokenizer_with(TEMPLATES["a date"])
    days = [
        ChatTemplate(tokenizer, date).text(Conversation(ASKED), asks=True)
        for date in ("2025-01-31", "2026-11-30", "2025-01-31")
    ]

    assert ["31 Jan 2025" in days[0], "30 Nov 2026" in days[1]] == [True, True]
    assert days[0] == days[2]


def test_without_a_day_it_tells_today_and_so_does_transformers_afterwards() -> None:
    tokenizer = tokenizer_with(TEMPLATES["a date"])
    dated = ChatTemplate(tokenizer, "2001-02-03").text(Conversation(ASKED), asks=True)
    today = ChatTemplate(tokenizer).text(Conversation(ASKED), asks=True)

    assert "03 Feb 2001" in dated
    assert today == tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)


def test_which_templates_show_a_date() -> None:
    dated = [name for name in TEMPLATES if ChatTemplate(tokenizer_with(TEMPLATES[name])).shows_date]

    assert dated == ["a date"]


def test_a_template_that_needs_parts_gets_them() -> None:
    tokenizer = tokenizer_with(TEMPLATES["parts alone"])

    assert ChatTemplate(tokenizer).text(Conversation(ASKED), asks=False) == (
        "<|im_start|>user\nHello?<|im_end|>\n"
    )


def test_the_reason_of_a_template_that_raises_is_kept() -> None:
    template = ChatTemplate(tokenizer_with("{{ raise_exception('Roles must alternate') }}"))
    with pytest.raises(Unrenderable) as caught:
        template.text(Conversation(ASKED), asks=False)

    assert "Roles must alternate" in caught.value.what


def test_only_templates_with_blocks_mark_answers() -> None:
    marked = [n for n in TEMPLATES if ChatTemplate(tokenizer_with(TEMPLATES[n])).marks_answers]

    assert marked == ["generation marks"]
    assert not ChatTemplate(tokenizer_with(TOOL_TEMPLATES["objects"])).marks_answers
