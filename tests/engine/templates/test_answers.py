"""What has a loss, for a template of each trait: the answers and their end marks, to the letter."""

from typing import Any

import pytest

from backend.engine.data import tokenization
from backend.engine.data.chat_rendering import Unrenderable, render
from backend.engine.data.dataset import ALL, Document, Learning
from backend.engine.data.turns import read_turns, with_thought
from backend.engine.templates.answers import Remark, prompt_in_training
from backend.engine.templates.end_marks import end_tokens
from backend.engine.templates.rendering import ChatTemplate, Conversation
from tests.engine.templates.traits import TEMPLATES, tokenizer_with

TALK = [
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "Under it."},
]
WITH_SYSTEM = [{"role": "system", "content": "Be kind."}, *TALK[:2]]
THOUGHT = "<think>\n\n</think>\n\n"
LEARNED = {
    "chatml": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "the last answer gets a thought": [
        [f"{THOUGHT}On the mat.<|im_end|>"], [f"{THOUGHT}Under it.<|im_end|>"],
    ],
    "the prompt opens a thought": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "the prompt opens a thought that the text closes": [
        ["</think>On the mat.<|stop|>", "</think>Under it.<|stop|>"],
    ],
    "a channel": [["final<|say|>On the mat.<|return|>"], ["final<|say|>Under it.<|return|>"]],
    "no end mark": [["On the mat.<|end|>"], ["Under it.<|end|>"]],
    "a prompt that ends in a blank": [[" On the mat.<|end|>", " Under it.<|end|>"]],
    "a blank before the words": [[" On the mat. <|end|>", " Under it. <|end|>"]],
    "the next header at the end": [["On the mat.<|stop|>", "Under it.<|stop|>"]],
    "an end of text at the end": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "two end marks": [["On the mat.<|over|><|end|>", "Under it.<|over|><|end|>"]],
    "the system prompt before the last question": [[" On the mat.<|end|>", " Under it.<|end|>"]],
    "parts alone": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "generation marks": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "trims": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "thoughts are stripped": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
    "a date": [["On the mat.<|im_end|>", "Under it.<|im_end|>"]],
}  # fmt: skip


def learned(tokenizer: Any, turns: list[Any], learning: Learning = ALL) -> list[list[str]]:
    """Return the text with loss, in pieces, of each text that a conversation becomes."""
    document = Document(1, turns=read_turns(turns, "messages"))
    return [
        [tokenizer.decode(run) for run in runs(each)]
        for each in tokenization.encode([document], tokenizer, 4096, learning)
    ]


def runs(tokens: tokenization.Tokens) -> list[list[int]]:
    found: list[list[int]] = []
    before = False
    for id, flag in zip(tokens.ids.tolist(), tokens.learned.tolist(), strict=True):
        if flag and not before:
            found.append([])
        if flag:
            found[-1].append(id)
        before = flag
    return found


def shown(tokenizer: Any, turns: list[Any], learning: Learning = ALL) -> Any:
    (found,) = render([Document(1, turns=read_turns(turns, "messages"))], tokenizer, learning)
    return found


def test_each_trait_has_its_learned_text() -> None:
    assert LEARNED.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("trait", TEMPLATES)
def test_answers_and_end_marks_have_a_loss(trait: str) -> None:
    assert learned(tokenizer_with(TEMPLATES[trait]), TALK) == LEARNED[trait]


@pytest.mark.parametrize("trait", TEMPLATES)
def test_what_is_learned_last_ends_an_answer(trait: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[trait])
    for pieces in learned(tokenizer, TALK):
        for piece in pieces:
            last = tokenizer(piece, add_special_tokens=False).input_ids[-1]
            assert last in end_tokens(tokenizer)


@pytest.mark.parametrize("trait", TEMPLATES)
def test_texts_and_tokens_are_those_of_the_template(trait: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[trait])
    turns = TALK
    if trait == "parts alone":
        turns = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in TALK]
    texts = [tokenizer.apply_chat_template(turns[:n], tokenize=False) for n in (2, 4)]
    if trait == "no end mark":
        texts = [text + tokenizer.eos_token for text in texts]
    found = shown(tokenizer, TALK)
    document = Document(1, turns=read_turns(TALK, "messages"))
    encoded = tokenization.encode([document], tokenizer, 4096)

    assert [each.text for each in found] == texts[-len(found) :]
    for each, text in zip(encoded, texts[-len(found) :], strict=True):
        assert each.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("trait", TEMPLATES)
def test_the_last_answer_alone_can_be_learned(trait: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[trait])

    assert learned(tokenizer, TALK, Learning(last_only=True)) == [[LEARNED[trait][-1][-1]]]


@pytest.mark.parametrize("trait", TEMPLATES)
def test_the_question_is_found_without_the_template(trait: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[trait])
    (first, *_) = tokenization.encode(
        [Document(1, turns=read_turns(TALK, "messages"))], tokenizer, 4096
    )

    asked = tokenizer.decode(first.ids[slice(*first.asked)].tolist())
    assert asked.strip() == "Where is the cat?"


def test_rows_that_become_several_texts_are_reported() -> None:
    several = shown(tokenizer_with(TEMPLATES["the last answer gets a thought"]), TALK)
    taught = shown(tokenizer_with(TEMPLATES["no end mark"]), TALK)

    assert all(each.remarks & Remark.SPLIT for each in several)
    assert not any(each.remarks & Remark.TAUGHT_END for each in several)
    assert all(each.remarks & Remark.TAUGHT_END for each in taught)


def test_a_system_prompt_that_is_not_shown_is_reported() -> None:
    tokenizer = tokenizer_with(TEMPLATES["the system prompt before the last question"])
    (found,) = shown(tokenizer, WITH_SYSTEM)

    assert found.text == "[INST] Where is the cat?[/INST] On the mat.<|end|>"
    assert [found.text[a:b] for a, b in found.spans] == [" On the mat.<|end|>"]
    assert found.remarks & Remark.NOT_SHOWN


def test_blanks_around_the_words_are_learned_as_the_template_shows_them() -> None:
    turns = [TALK[0], {"role": "assistant", "content": " On the mat.\n"}]

    assert learned(tokenizer_with(TEMPLATES["chatml"]), turns) == [[" On the mat.\n<|im_end|>"]]
    assert learned(tokenizer_with(TEMPLATES["trims"]), turns) == [["On the mat.<|im_end|>"]]


THINKING = [TALK[0], {**TALK[1], "reasoning_content": "Cats lie."}]


def test_a_thought_beside_the_answer_is_learned_or_only_shown() -> None:
    tokenizer = tokenizer_with(TEMPLATES["the last answer gets a thought"])

    assert learned(tokenizer, THINKING) == [
        ["<think>\nCats lie.\n</think>\n\nOn the mat.<|im_end|>"]
    ]
    assert learned(tokenizer, THINKING, Learning(thoughts=False)) == [
        ["\n</think>\n\nOn the mat.<|im_end|>"]
    ]


@pytest.mark.parametrize("name", ["reasoning", "thinking", "thought"])
def test_thoughts_have_several_names(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES["the last answer gets a thought"])

    assert learned(tokenizer, [TALK[0], {**TALK[1], name: "Cats lie."}]) == learned(
        tokenizer, THINKING
    )


def test_a_thought_that_the_template_leaves_out_is_reported() -> None:
    inline = [TALK[0], {"role": "assistant", "content": "<think>Cats lie.</think>On the mat."}]
    for trait, turns in (("chatml", THINKING), ("thoughts are stripped", inline)):
        (found,) = shown(tokenizer_with(TEMPLATES[trait]), turns)
        assert found.remarks & Remark.NO_THOUGHT
        assert [found.text[a:b] for a, b in found.spans] == ["On the mat.<|im_end|>"]


def test_a_thought_within_the_answer_is_learned_or_only_shown() -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    turns = [TALK[0], {"role": "assistant", "content": "<think>Cats lie.</think>On the mat."}]

    assert learned(tokenizer, turns) == [["<think>Cats lie.</think>On the mat.<|im_end|>"]]
    assert learned(tokenizer, turns, Learning(thoughts=False)) == [
        ["</think>On the mat.<|im_end|>"]
    ]


@pytest.mark.parametrize("weight", [{"weight": 0}, {"train": False}, {"loss_weight": 0.0}])
def test_a_turn_without_weight_has_no_loss(weight: dict[str, Any]) -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    turns = [TALK[0], {**TALK[1], **weight}, *TALK[2:]]

    assert learned(tokenizer, turns) == [["Under it.<|im_end|>"]]


def test_a_template_that_raises_says_why() -> None:
    tokenizer = tokenizer_with(
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system, please.') }}"
        "{% endif %}" + TEMPLATES["chatml"]
    )
    found = shown(tokenizer, WITH_SYSTEM)

    assert isinstance(found, Unrenderable)
    assert "No system, please" in found.what


def test_a_template_that_hides_the_answer_is_refused() -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.role }}\n{% endfor %}")

    assert isinstance(shown(tokenizer, TALK), Unrenderable)


def test_a_template_that_shows_an_answer_as_a_question_is_refused() -> None:
    tokenizer = tokenizer_with(
        "{% for m in messages %}{{ bos_token }}Human: {{ m.content }}{{ eos_token }}\n"
        "{% endfor %}Assistant:"
    )

    assert isinstance(shown(tokenizer, TALK), Unrenderable)


def test_named_templates_take_the_default_one() -> None:
    tokenizer = tokenizer_with("")
    tokenizer.chat_template = {"rag": "{{ raise_exception('no') }}", "default": TEMPLATES["chatml"]}

    assert learned(tokenizer, TALK) == LEARNED["chatml"]


@pytest.mark.parametrize("trait", TEMPLATES)
def test_an_adapter_is_asked_as_it_was_trained(trait: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[trait])
    template = ChatTemplate(tokenizer)
    asked = Conversation(TALK[:1])
    prompt = prompt_in_training(template, asked, template.text(asked, asks=True))
    (first, *_) = shown(tokenizer, TALK[:2])

    assert first.text[: first.spans[0][0]].startswith(prompt.rstrip(" "))
    assert first.text.startswith(prompt)


def test_a_prompt_that_opens_a_thought_is_reported() -> None:
    for trait in TEMPLATES:
        (first, *_) = shown(tokenizer_with(TEMPLATES[trait]), TALK)
        opens = trait.startswith("the prompt opens")
        assert bool(first.remarks & Remark.OTHER_PROMPT) == opens


@pytest.mark.parametrize("system", ["", "You are kind.", "<|user|> is not here"])
def test_an_answer_that_opens_the_conversation_is_learned_alone(system: str) -> None:
    preamble = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n' + words + "
    preamble += "'<|im_end|>\\n' }}{% endif %}"
    template = (preamble.replace("words", repr(system)) if system else "") + TEMPLATES["chatml"]
    turns = [{"role": "assistant", "content": "Welcome."}, *TALK[:2]]
    (found,) = shown(tokenizer_with(template), turns)

    pieces = [found.text[a:b] for a, b in found.spans]
    assert pieces == ["Welcome.<|im_end|>", "On the mat.<|im_end|>"]
    assert not found.remarks & (Remark.OTHER_PROMPT | Remark.NEW_RULE)


def test_words_that_a_template_writes_as_json_are_shown() -> None:
    template = TEMPLATES["chatml"].replace("+ m.content +", "+ (m.content | tojson) +", 1)
    asked = {"role": "user", "content": 'Say "yes"\nplease'}
    answer = {"role": "assistant", "content": "Yes."}
    (found,) = shown(tokenizer_with(template), [asked, answer])

    assert not found.remarks & Remark.NOT_SHOWN


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_in_a_column_of_its_own_goes_to_the_last_answer(name: str) -> None:
    turns = read_turns(TALK, "messages")

    given = with_thought(turns, {name: "Cats lie.", "prompt": "x"})
    assert given[-1]["reasoning_content"] == "Cats lie."
    assert given[:-1] == turns[:-1]
    assert with_thought(turns, {"prompt": "x", name: ""}) == turns
