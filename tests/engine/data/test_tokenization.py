"""Which tokens are learned: the answers with their ends, whatever the base's chat template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from backend.engine.data import dataset, tokenization
from backend.engine.data.dataset import DataSet, Document
from backend.engine.data.statistics import histogram
from backend.errors import DataError
from backend.results import LengthBin
from backend.settings import STARTER

TURNS = [
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(STARTER / "model")


def read(folder: Path, rows: list[Any]) -> DataSet:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return dataset.read(str(file), eval_share=0.0, seed=0)


def learned(document: Document, tokenizer: Any, max_length: int = 512) -> str:
    (encoded,) = tokenization.encode([document], tokenizer, max_length)
    return str(tokenizer.decode(encoded.ids[encoded.learned].tolist()))


def test_only_the_answer_and_its_end_are_learned(tokenizer: Any) -> None:
    assert learned(Document(1, turns=TURNS), tokenizer) == "On the mat.<|end|>"


def test_every_answer_of_a_conversation_is_learned(tokenizer: Any) -> None:
    more = [
        {"role": "system", "content": "Be kind."},
        *TURNS,
        {"role": "user", "content": "On the mat.<no>"},
        {"role": "assistant", "content": "Yes."},
    ]

    assert learned(Document(1, turns=more), tokenizer) == "On the mat.<|end|>Yes.<|end|>"


def test_what_is_learned_is_what_is_asked_for_in_chat(tokenizer: Any) -> None:
    (encoded,) = tokenization.encode([Document(1, turns=TURNS)], tokenizer, 512)
    prompt = tokenizer.apply_chat_template(
        TURNS[:1], add_generation_prompt=True, return_dict=True
    ).input_ids

    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert encoded.learned.tolist() == [False] * len(prompt) + [True] * (len(encoded) - len(prompt))


def test_plain_text_is_learned_whole_with_its_end(tokenizer: Any) -> None:
    assert learned(Document(1, text="The cat."), tokenizer).endswith("The cat.<|end|>")


@pytest.fixture
def other_template(tokenizer: Any) -> Any:
    """The same tokenizer with a template that has no generation marks."""
    copied = AutoTokenizer.from_pretrained(STARTER / "model")
    copied.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    return copied


def test_a_template_without_marks_gives_the_same_answers(other_template: Any) -> None:
    more = [*TURNS, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]

    assert learned(Document(1, turns=more), other_template) == "On the mat.<|end|>Yes.<|end|>"


def test_a_template_that_hides_where_the_answer_begins_is_refused(other_template: Any) -> None:
    other_template.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}!"

    with pytest.raises(DataError) as caught:
        tokenization.encode([Document(7, turns=TURNS)], other_template, 512)

    assert str(caught.value) == (
        "This base's chat template does not show where an answer begins, so the loss "
        "cannot be limited to the answer. Use a base with another chat template, or data in the "
        "text format."
    )


def test_a_template_that_refuses_an_example_is_quoted(other_template: Any) -> None:
    other_template.chat_template = "{{ raise_exception('No system messages, please') }}"

    with pytest.raises(DataError, match="refuses an example: No system messages, please"):
        tokenization.encode([Document(1, turns=TURNS)], other_template, 512)


def test_without_a_template_prompt_and_completion_still_work(other_template: Any) -> None:
    other_template.chat_template = None

    (encoded,) = tokenization.encode([Document(1, turns=TURNS)], other_template, 512)

    text = other_template.decode(encoded.ids.tolist())
    assert text.endswith("Where is the cat?\nOn the mat.<|end|>")
    assert other_template.decode(encoded.ids[encoded.learned].tolist()) == "On the mat.<|end|>"


def test_without_a_template_a_conversation_is_refused(other_template: Any) -> None:
    other_template.chat_template = None

    with pytest.raises(DataError) as caught:
        tokenization.encode([Document(3, turns=TURNS * 2)], other_template, 512)

    assert str(caught.value) == (
        "Row 3 is a conversation, and this base has no chat template. "
        "Choose one in Load, Advanced, Chat template (dialogue fits any base), "
        "or use data with prompt and completion."
    )


def test_what_is_cut_and_what_is_left_out_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "Hello.", "completion": "Good day."},
        {"prompt": "Hello.", "completion": "on and " * 60},
        {"prompt": "on and " * 60, "completion": "Good day."},
        {"prompt": "Hello.", "completion": ""},
    ]
    found = read(tmp_path, rows)

    corpus = tokenization.tokenise(found, tokenizer, max_length=32)

    assert (corpus.stats.rows, corpus.stats.examples) == (4, 2)
    assert (corpus.stats.cut, corpus.stats.dropped) == (1, 2)
    assert corpus.stats.longest == 32
    assert corpus.stats.tokens == sum(map(len, corpus.train))
    assert corpus.stats.learned_tokens == sum(int(t.learned.sum()) for t in corpus.train)


def test_nothing_to_learn_is_an_error_with_its_cure(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "on and " * 60, "completion": "yes"}, {"prompt": "a", "completion": " "}]
    found = read(tmp_path, rows)

    with pytest.raises(DataError) as caught:
        tokenization.tokenise(found, tokenizer, max_length=16)

    assert str(caught.value) == (
        "None of the 2 examples has a token with loss: the answers are empty or start after the "
        "first 16 tokens, the longest example allowed. Add answers to the examples, or raise the "
        "longest example to 128 tokens."
    )


def test_a_conversation_without_an_answer_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[Any] = [{"messages": TURNS}, {"messages": TURNS[:1]}]

    corpus = tokenization.tokenise(read(tmp_path, rows), tokenizer, max_length=512)

    assert (corpus.stats.examples, corpus.stats.dropped) == (1, 1)


def test_a_bundled_set_brings_its_own_held_out_part(tokenizer: Any) -> None:
    found = dataset.read("starter:pirate", eval_share=0.0, seed=0)

    corpus = tokenization.tokenise(found, tokenizer, max_length=512)

    assert corpus.stats.held_out > 0
    assert (corpus.stats.cut, corpus.stats.dropped) == (0, 0)
    assert not {d.key for d in found.train} & {d.key for d in found.held_out}


# -- bad rows ------------------------------------------------------------------------------------

MIXED = [
    {"prompt": "Hello.", "completion": "Good day."},
    {"prompt": "Hello.", "completion": None},
    {"prompt": "Hello.", "completion": " "},
    {"prompt": "Hello.", "completion": "Good day."},
    {"prompt": "on and " * 60, "completion": "Good day."},
    {"prompt": "Hello.", "completion": "on and " * 60},
]


def test_bad_rows_are_left_out_when_somebody_says_so(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path, MIXED)
    with pytest.raises(DataError) as caught:
        tokenization.tokenise(found, tokenizer, max_length=32)

    found.drop_bad_rows = True
    stats = tokenization.tokenise(found, tokenizer, max_length=32).stats

    assert caught.value.droppable
    assert (stats.rows, stats.examples, stats.bad) == (6, 3, 1)


def test_each_kind_of_row_is_counted_and_placed(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path, MIXED)
    found.drop_bad_rows = True

    stats = tokenization.tokenise(found, tokenizer, max_length=32).stats

    assert [(group.kind, group.count, group.places) for group in stats.groups] == [
        ("bad", 1, ("row 2",)),
        ("empty", 1, ("row 3",)),
        ("nothing", 1, ("row 5",)),
        ("cut", 1, ("row 6",)),
        ("duplicate", 1, ("row 4",)),
    ]
    assert (stats.cut, stats.dropped) == (1, 2)


def test_rows_that_hold_special_tokens_are_named(tmp_path: Path, tokenizer: Any) -> None:
    end = tokenizer.eos_token
    found = read(tmp_path, [{"text": "on"}, {"text": f"one{end}two"}, {"text": f"{end[:-1]}"}])

    stats = tokenization.tokenise(found, tokenizer, max_length=32).stats

    assert [(group.kind, group.places) for group in stats.groups] == [("special", ("row 2",))]


def test_a_conversation_that_brings_the_template_with_it_is_named(
    tmp_path: Path, tokenizer: Any
) -> None:
    asked = {"role": "user", "content": "Hello."}
    templated = tokenizer.apply_chat_template([asked], tokenize=False)
    rows = [{"prompt": text, "completion": "Hi."} for text in ("Hello.", templated)]

    stats = tokenization.tokenise(read(tmp_path, rows), tokenizer, max_length=64).stats

    assert [(group.kind, group.places) for group in stats.groups] == [("special", ("row 2",))]


def test_lengths_are_those_before_the_cut(tmp_path: Path, tokenizer: Any) -> None:
    found = read(tmp_path, [{"text": "on and " * count} for count in (1, 1, 5, 40)])
    found.long_examples = "cut"

    stats = tokenization.tokenise(found, tokenizer, max_length=16).stats
    whole = [len(t) for t in tokenization.encode(found.train, tokenizer, 10_000)]

    assert sum(each.examples for each in stats.histogram) == 4
    assert stats.histogram[0].low == min(whole)
    assert stats.histogram[0].examples == 2
    assert stats.histogram[-1].low <= max(whole) <= stats.histogram[-1].high
    assert len(stats.histogram) <= 16


def test_rows_that_only_the_template_refuses_are_bad_rows(
    tmp_path: Path, other_template: Any
) -> None:
    other_template.chat_template = (
        "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not this') }}{% endif %}"
        + other_template.chat_template
    )
    rows = [{"prompt": text, "completion": "yes"} for text in ("a", "no", "b")]
    found = read(tmp_path, rows)

    with pytest.raises(DataError) as caught:
        tokenization.tokenise(found, other_template, max_length=32)

    assert str(caught.value) == (
        "1 of 3 rows cannot be used: row 2: this base's chat template refuses it: not this. "
        "Fix or remove them, or choose to leave bad rows out."
    )
    found.drop_bad_rows = True
    corpus = tokenization.tokenise(found, other_template, max_length=32)
    assert (corpus.stats.examples, corpus.stats.bad) == (2, 1)


def test_a_template_that_shows_no_row_is_said_once(tmp_path: Path, other_template: Any) -> None:
    other_template.chat_template = None
    found = read(tmp_path, [{"messages": TURNS * 2}] * 3)

    with pytest.raises(DataError) as caught:
        tokenization.tokenise(found, other_template, max_length=32)

    assert str(caught.value) == (
        "Row 1 is a conversation, and this base has no chat template. "
        "Choose one in Load, Advanced, Chat template (dialogue fits any base), "
        "or use data with prompt and completion."
    )
    assert not caught.value.droppable


def test_an_answer_without_a_question_needs_a_template(other_template: Any) -> None:
    """A system prompt would be taken for the question."""
    other_template.chat_template = None
    turns = [{"role": "system", "content": "Be kind."}, TURNS[1]]

    with pytest.raises(DataError, match="Row 1 is a conversation, and this base has no chat"):
        tokenization.encode([Document(1, turns=turns)], other_template, 512)


def test_rendering_many_at_once_is_rendering_each(other_template: Any) -> None:
    documents = [Document(n, turns=TURNS * (1 + n % 3)) for n in range(20)]

    together = tokenization.encode(documents, other_template, 512)
    alone = [tokenization.encode([document], other_template, 512)[0] for document in documents]

    assert [t.ids.tolist() for t in together] == [t.ids.tolist() for t in alone]
    assert [t.learned.tolist() for t in together] == [t.learned.tolist() for t in alone]


def test_what_is_held_out_too_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "Hello.", "completion": f"Good day {n}."} for n in range(5)]
    other = tmp_path / "tested.jsonl"
    other.write_text(json.dumps(rows[3]) + "\n", encoding="utf-8")
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    found = dataset.read(str(file), eval_share=0.5, seed=0, held_out=str(other))
    stats = tokenization.tokenise(found, tokenizer, max_length=64).stats

    assert (stats.rows, stats.examples, stats.held_out, stats.overlap) == (6, 4, 1, 1)


def test_data_that_is_all_held_out_leaves_nothing_to_learn(tmp_path: Path, tokenizer: Any) -> None:
    read(tmp_path, MIXED[:1])
    file = str(tmp_path / "data.jsonl")

    found = dataset.read(file, eval_share=0.0, seed=0, held_out=file)

    with pytest.raises(DataError) as caught:
        tokenization.tokenise(found, tokenizer, max_length=64)

    assert str(caught.value) == (
        "Every example is held out, so none is left for training. Choose other held-out data."
    )


def test_one_far_length_does_not_hide_the_others() -> None:
    lengths = np.array([*range(10, 50), 9_000, 12_000])

    bins = histogram(lengths)

    assert bins[-1] == LengthBin(low=9_000, high=12_000, examples=2)
    assert len(bins) <= 16
    assert max(each.examples for each in bins) <= 4
    assert [b.low for b in bins[1:-1]] == [a.high + 1 for a in bins[:-2]]
