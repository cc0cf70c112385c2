"""A base without a chat template is given one by name: it learns answers, talks, and is merged."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from backend import CHAT_TEMPLATES, Service, Settings
from backend import requests as rq
from backend.engine.data import tokenization
from backend.engine.data.dataset import Document
from backend.engine.inference.prompts import prompt_text
from backend.errors import Unsupported
from tests.engine.tiny import STARTER, start_service, write_base

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
    {"role": "user", "content": "And the dog?"},
    {"role": "assistant", "content": "Under the table."},
]
NAMES = sorted(CHAT_TEMPLATES)


def without_template(folder: Path) -> Path:
    """Write a base that brings no chat template."""
    base = write_base(folder)
    (base / "chat_template.jinja").unlink()
    assert "chat_template" not in (base / "tokenizer_config.json").read_text(encoding="utf-8")
    return base


@pytest.fixture(params=NAMES)
def given(request: pytest.FixtureRequest) -> Any:
    """The starter's tokenizer with a template of the catalogue."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = CHAT_TEMPLATES[request.param].jinja
    return tokenizer


def test_the_answers_alone_are_learned_up_to_the_end(given: Any) -> None:
    (encoded,) = tokenization.encode([Document(1, turns=TURNS)], given, 512)

    learned = given.decode(encoded.ids[encoded.learned].tolist())
    mark = "<|im_end|>" if "im_end" in given.chat_template else ""
    assert learned == f"On the mat.{mark}<|end|>Under the table.{mark}<|end|>"


def test_a_prompt_is_the_beginning_of_what_was_learned(given: Any) -> None:
    (encoded,) = tokenization.encode([Document(1, turns=TURNS[:3])], given, 512)
    asked = prompt_text(given, [rq.Message(**turn) for turn in TURNS[:2]])

    ids = given(asked, add_special_tokens=False).input_ids

    assert encoded.ids[: len(ids)].tolist() == ids
    assert encoded.learned.tolist()[: len(ids) + 1] == [False] * len(ids) + [True]


def test_a_base_with_its_own_template_keeps_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    with start_service(tmp_path / "w", base) as service, pytest.raises(Unsupported) as caught:
        load(service, base, "chatml")

    assert caught.value.what == "base has its own chat template, which it was trained with."
    assert caught.value.cure == "Set Chat template to own."


def load(service: Service, base: Path, template: str) -> Any:
    request = rq.LoadModel(source=str(base), chat_template=template)
    return service.start(request).result(timeout=120)


@pytest.mark.slow
def test_conversations_train_and_merge_under_a_given_template(tmp_path: Path) -> None:
    base = without_template(tmp_path / "base")
    data = tmp_path / "talk.jsonl"
    data.write_text((json.dumps({"messages": TURNS}) + "\n") * 8, encoding="utf-8")
    train = rq.Train(name="talker", data=str(data), max_steps=2, eval_share=0.0)
    with start_service(tmp_path / "w", base) as service:
        refused = service.start(rq.Preflight(train=train)).result(timeout=120)
        facts = load(service, base, "dialogue")
        report = service.start(rq.Preflight(train=train)).result(timeout=120)
        service.start(train).result(timeout=120)
        merge = rq.Merge(variant=[("talker", 1.0)], destination=str(tmp_path / "merged"))
        merged = service.start(merge).result(timeout=120)
        talker = service.library.get("talker")
        copy = tmp_path / "copy"
        service.start(rq.SaveAdapter(name="talker", destination=str(copy))).result(timeout=120)
        service.start(rq.PrepareHotswap(adapters=["talker"], compile=False)).result(timeout=120)
        slotted = tmp_path / "slotted"
        service.start(rq.SaveAdapter(name="talker", destination=str(slotted))).result(timeout=120)
        service.start(rq.EndHotswap()).result(timeout=120)
        load(service, base, "alpaca")
        elsewhere = service.start(rq.InspectAdapter(source=str(copy))).result(timeout=120)
        load(service, base, "dialogue")
        at_home = service.start(rq.InspectAdapter(source=str(copy))).result(timeout=120)
        again = service.start(rq.LoadAdapter(source=str(copy), name="again")).result(timeout=120)

    template = CHAT_TEMPLATES["dialogue"].jinja
    assert talker.chat_template == again.adapter.chat_template == "dialogue"
    for folder in (copy, slotted):
        assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert "chat_template.jinja" in (copy / "README.md").read_text(encoding="utf-8")
    assert (elsewhere.verdict, at_home.verdict) == ("warning", "fits")
    assert "in the chat template Dialogue" in elsewhere.reasons[0].what
    assert "Choose one in Load, Advanced, Chat template" in refused.problems[0].cure
    assert (facts.chat_template, facts.given_template) == (True, "dialogue")
    assert report.problems == []
    tokenizer = AutoTokenizer.from_pretrained(merged.path)
    assert tokenizer.chat_template == CHAT_TEMPLATES["dialogue"].jinja


def test_a_rebuilt_session_gives_it_again(tmp_path: Path) -> None:
    base = without_template(tmp_path / "base")
    with start_service(tmp_path / "w", base) as service:
        load(service, base, "alpaca")
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        job = service.restore()
        assert job is not None
        job.result(timeout=120)
        restored = service.snapshot().base

    assert restored is not None
    assert restored.given_template == "alpaca"


def test_an_answer_that_opens_the_conversation_is_learned_without_its_head() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    turns = [{"role": "assistant", "content": "Ahoy."}, {"role": "user", "content": "Hi."}]

    (encoded,) = tokenization.encode([Document(1, turns=turns)], tokenizer, 512)

    assert tokenizer.decode(encoded.ids[encoded.learned].tolist()) == "Ahoy.<|end|>"
