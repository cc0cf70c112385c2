"""What Transformers does to a conversation before a chat template sees it."""

import pytest

from backend.engine.templates.rendering import ChatTemplate, Conversation
from tests.engine.templates.traits import TEMPLATES, tokenizer_with

ASKED = [{"role": "user", "content": "Hello?"}]


def test_transformers_still_turns_functions_into_text() -> None:
    """When this fails, the day can be passed as the template's variable `strftime_now`."""
    tokenizer = tokenizer_with(TEMPLATES["a date"])
    with pytest.raises(TypeError):
        tokenizer.apply_chat_template(ASKED, tokenize=False, strftime_now=lambda _: "never")


def test_transformers_still_leaves_out_what_is_null() -> None:
    """When this fails, `ChatTemplate._with_null` is no longer needed."""
    tokenizer = tokenizer_with("{{ 'gone' if messages[0].content is not none else 'null' }}")
    turns = [{"role": "user", "content": None}]

    assert tokenizer.apply_chat_template(turns, tokenize=False) == "gone"
    shown = ChatTemplate(tokenizer).text(Conversation(turns, null_content=True), asks=False)
    assert shown == "null"
