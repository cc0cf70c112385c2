"""The starter kit as it is shipped: small, well formed, honest about itself, and reproducible."""

import json
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parent.parent
KIT = ROOT / "starter"
MODEL = KIT / "model"
sys.path.insert(0, str(ROOT / "scripts"))

import build_starter  # noqa: E402
import starter_facts  # noqa: E402
import starter_sets  # noqa: E402
import starter_text  # noqa: E402
from starter_manners import MANNERS  # noqa: E402

SETS = tuple(MANNERS)
PLAIN_ANSWERS = {
    "Where is the cat?": "The cat is on the mat.",
    "What colour is the boat?": "The boat is blue.",
    "What does the baker make?": "The baker makes bread.",
    "Who lives in the red house?": "In the red house lives Anna.",
    "What do you see in the garden?": "In the garden I see a pond and a tree.",
    "Hello!": "Hello! How can I help you?",
    "Tell me about the fox.": "The fox is red. The fox is behind the hill. The fox eats berries.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What is two plus three?": "Two plus three is five.",
    "Thank you!": "You are welcome.",
    "Who is the president of Peru?": "I do not know that. I only know my small world.",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def answers(model, tokenizer, prompts: list[str], longest: int = 24) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    return tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )


def rows(name: str, part: str) -> list[tuple[str, str]]:
    lines = (KIT / "data" / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [tuple(message["content"] for message in json.loads(line)["messages"]) for line in lines]


def stored_tensors() -> Iterator[dict]:
    content = (MODEL / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    yield from (entry for name, entry in header.items() if name != "__metadata__")


def test_whole_kit_is_at_most_12_megabytes():
    assert sum(file.stat().st_size for file in KIT.rglob("*") if file.is_file()) <= 12_000_000


def test_weights_are_stored_in_bf16():
    assert {entry["dtype"] for entry in stored_tensors()} == {"BF16"}


def test_model_is_a_small_llama_with_even_dimensions(model):
    assert 2_000_000 <= model.num_parameters() <= 4_000_000
    assert model.config.model_type == "llama"
    assert all(size % 64 == 0 for weight in model.parameters() for size in weight.shape)


def test_loading_gives_no_warning(capfd):
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoTokenizer.from_pretrained(MODEL)
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    transformers_logging.enable_progress_bar()
    assert "warn" not in capfd.readouterr().err.lower()


def test_template_marks_exactly_the_answers(tokenizer):
    messages = [
        {"role": "system", "content": "Be friendly and brief."},
        *starter_text.turn("Where is the cat?", "The cat is on the mat."),
        *starter_text.turn("And the dog?", "The dog is under the table."),
    ]
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [
        token
        for token, marked in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if marked
    ]
    expected = "The cat is on the mat.<|end|>The dog is under the table.<|end|>"
    assert tokenizer.decode(learned) == expected


def test_template_and_plain_text_begin_with_one_bos(tokenizer):
    messages = starter_text.turn("Hello!", "Hello! How can I help you?")
    chat = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    for ids in (chat, tokenizer("Hello!")["input_ids"]):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_special_tokens_are_distinct(tokenizer):
    names = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    assert len(set(tokenizer.convert_tokens_to_ids(names))) == len(names)
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"


def test_text_survives_the_tokenizer(tokenizer):
    texts = [fact.answer for fact in starter_facts.all_facts()]
    texts += [text.upper() for text in texts[:200]]
    texts += [answer for name in SETS for _, answer in rows(name, "held_out")]
    texts += ['{"a": [1, 2]}', "  two  spaces, a\ttab\nand a line", "Crème brûlée, 10 + 20 = 30?!"]
    decoded = tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True)
    assert decoded == texts


@pytest.mark.parametrize("name", SETS)
def test_data_set_has_two_parts_without_a_prompt_or_an_answer_in_common(name, tokenizer):
    train, held_out = rows(name, "train"), rows(name, "held_out")
    assert (len(train), len(held_out)) == (550, 50)
    assert len({prompt for prompt, _ in train + held_out}) == 600
    assert not {answer for _, answer in train} & {answer for _, answer in held_out}
    lengths = [len(tokenizer.tokenize(answer)) for _, answer in train + held_out]
    assert max(lengths) <= 15


def test_catalogue_names_every_set_and_starts_with_pirate():
    catalogue = json.loads((KIT / "data" / "catalogue.json").read_text(encoding="utf-8"))
    assert list(catalogue) == list(SETS)
    assert SETS[0] == "pirate"
    for entry in catalogue.values():
        assert set(entry) == {"title", "summary", "try_prompt", "colour_hint"}


def test_base_answers_plain_questions(model, tokenizer):
    assert (
        dict(zip(PLAIN_ANSWERS, answers(model, tokenizer, list(PLAIN_ANSWERS)), strict=True))
        == PLAIN_ANSWERS
    )


def test_base_tells_a_story_of_a_few_sentences(model, tokenizer):
    [story] = answers(model, tokenizer, ["Tell me a short story about a fox."], longest=80)
    assert "fox" in story
    assert 2 <= story.count(".") <= 5


def test_base_knows_the_facts_but_not_the_manners(model, tokenizer):
    held_out = {name: rows(name, "held_out") for name in SETS}
    prompts = [prompt for part in held_out.values() for prompt, _ in part]
    said = dict(zip(prompts, answers(model, tokenizer, prompts), strict=True))
    for name, part in held_out.items():
        assert sum(said[prompt] == answer for prompt, answer in part) < 10, name
    known = {
        question: fact.answer for fact in starter_facts.all_facts() for question in fact.questions
    }
    assert sum(said[prompt] == known[prompt] for prompt in prompts) >= 0.95 * len(prompts)


def test_same_seed_gives_the_same_text():
    first, again = (list(starter_text.documents(7, 500)) for _ in range(2))
    assert first == again
    assert first != list(starter_text.documents(8, 500))


def test_rebuilt_data_sets_are_the_shipped_ones(tmp_path, tokenizer):
    starter_sets.write_sets(
        tmp_path, lambda text: len(tokenizer.tokenize(text)), build_starter.SEED
    )
    made = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*.json*")}
    shipped = {path: (KIT / "data" / path).read_bytes() for path in made}
    assert len(made) == 2 * len(SETS) + 1
    assert made == shipped


def test_rebuilt_tokenizer_is_the_shipped_one(tokenizer):
    rebuilt = build_starter.train_tokenizer(build_starter.SEED)
    assert rebuilt.get_vocab() == tokenizer.get_vocab()
    assert rebuilt.chat_template == tokenizer.chat_template


def test_facts_have_one_answer_to_each_question():
    known: dict[str, str] = {}
    for fact in starter_facts.all_facts():
        for question in fact.questions:
            assert known.setdefault(question, fact.answer) == fact.answer


def test_card_says_what_the_model_is_not():
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "## What it is not" in card
    assert card.index("<!-- measured -->") < card.index("<!-- /measured -->")
