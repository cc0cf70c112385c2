"""End marks: the part of the text after an answer that ends it, and the tokens that stop one."""

import pytest

from backend.engine.templates import end_marks
from tests.engine.templates.traits import TEMPLATES, tokenizer_with

TOKENIZER = tokenizer_with(TEMPLATES["chatml"])


@pytest.mark.parametrize(
    ("tail", "mark"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        (" <|end|>", " <|end|>"),
        ("<|over|><|end|><|user|>", "<|over|><|end|>"),
        ("<|stop|><|assistant|>\n", "<|stop|>"),
        ("<|im_end|>\n<|end|>", "<|im_end|>"),
        ("</turn><|end|>", "</turn><|end|>"),
        ("\n\n", ""),
        ("\n### Instruction:\n<|end|>", ""),
        ("", ""),
    ],
)
def test_the_mark_is_the_first_token_after_an_answer(tail: str, mark: str) -> None:
    assert tail[: end_marks.length_in(tail, TOKENIZER)] == mark


def test_end_of_text_always_ends_an_answer() -> None:
    for template in TEMPLATES.values():
        tokenizer = tokenizer_with(template)
        assert tokenizer.eos_token_id in end_marks.end_tokens(tokenizer)
    tokenizer.chat_template = None
    assert end_marks.end_tokens(tokenizer) == [tokenizer.eos_token_id]


def test_a_template_that_raises_leaves_end_of_text() -> None:
    tokenizer = tokenizer_with("{{ raise_exception('no') }}")

    assert end_marks.end_tokens(tokenizer) == [tokenizer.eos_token_id]
