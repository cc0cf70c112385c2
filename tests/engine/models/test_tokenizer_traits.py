"""Tokenizers that append marks, lack marks, or know tokens that have no embedding."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.data import tokenization
from backend.engine.data.dataset import Document
from backend.engine.inference import prompts, scoring
from backend.engine.inference.prompts import encode_prompt
from backend.engine.models import loading, model_folder, tokenizer_traits
from backend.engine.models.loading import Base
from backend.errors import DataError, InvalidRequest
from tests.engine.stored_bases import configure
from tests.engine.tiny import STARTER, start_service, write_base

SILENT = Control(0, lambda message: None)
NEW = ("<new-1>", "<new-2>", "<new-3>", "<new-4>")


def tokenizer(**marks: Any) -> Any:
    found = AutoTokenizer.from_pretrained(STARTER)
    found.chat_template = None
    for name, value in marks.items():
        setattr(found, name, value)
    return found


def appending(begin: str = "", end: str = "<|end|>") -> Any:
    """Return a tokenizer whose post-processor puts marks around every text."""
    found = tokenizer()
    marks = [(each, found.convert_tokens_to_ids(each)) for each in (begin, end) if each]
    single = " ".join(filter(None, (begin, "$A", end)))
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=marks
    )
    return found


def load(folder: Path) -> Base:
    return loading.load(rq.LoadModel(source=str(folder), device="cpu"), SILENT)


def prompt(base: Base, text: str) -> list[int]:
    ids: list[int] = encode_prompt(base, [rq.Message(role="user", content=text)])[0].tolist()
    return ids


# -- marks that a tokenizer appends --------------------------------------------------------------


@pytest.mark.parametrize("begin", ["", "<|bos|>"])
def test_a_prompt_has_no_end_mark(tmp_path: Path, begin: str) -> None:
    base = load(write_base(tmp_path / "base", tokenizer=appending(begin)))
    plain = load(write_base(tmp_path / "plain", tokenizer=appending(begin, "")))

    for text in ("Hello!", "Where is the cat? ", "ASSISTANT: ", ""):
        assert prompt(base, text) == prompt(plain, text)
    assert base.facts.notes == (
        "The tokenizer appends <|end|> to every text; prompts are used without it.",
    )
    assert plain.facts.notes == ()
    assert scoring.score_tokens(base.model, base, "Hello!").tokens[-1] == 2  # a contract


@pytest.mark.parametrize("begin", ["", "<|bos|>"])
def test_a_document_ends_once_and_its_answer_has_the_loss(begin: str) -> None:
    documents = [
        Document(0, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]),
        Document(1, text="Only text."),
    ]
    found, plain = (
        tokenization.encode(documents, each, 100)
        for each in (appending(begin), appending(begin, ""))
    )
    for one, other in zip(found, plain, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.learned.tolist() == other.learned.tolist()
        assert one.ids.tolist().count(2) == 1
        assert one.learned[-1]


def test_only_marks_count_as_appended() -> None:
    assert tokenizer_traits.appended(tokenizer()) == []
    assert tokenizer_traits.appended(appending("<|bos|>", "")) == []
    assert tokenizer_traits.appended(appending()) == [2]
    assert tokenizer_traits.appended(appending(), special=False) == []


# -- tokens without an embedding -----------------------------------------------------------------


@pytest.fixture
def beyond(tmp_path: Path) -> Path:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    longer = tokenizer()
    longer.add_tokens(list(NEW))
    longer.save_pretrained(folder)
    return folder


@pytest.fixture
def service(beyond: Path, tmp_path: Path) -> Iterator[Service]:
    with start_service(tmp_path / "workspace", beyond) as service:
        yield service


def test_tokens_without_an_embedding_are_told_at_load(beyond: Path) -> None:
    base = load(beyond)

    assert base.facts.notes == (
        "The tokenizer knows 4 tokens that the model has no embedding for (<new-1>, <new-2>, "
        "<new-3>, ...): texts that contain them cannot be used.",
    )
    assert tokenizer_traits.padding(base.tokenizer) == base.tokenizer.pad_token_id
    base.tokenizer.pad_token = NEW[0]
    assert tokenizer_traits.padding(base.tokenizer) == 0


def test_a_larger_embedding_than_vocabulary_is_usual(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    found = model_folder.read_tokenizer(folder)

    assert tokenizer_traits.embedded(found) is None
    tokenizer_traits.set_embedded(found, len(found) + 64)
    assert tokenizer_traits.embedded(found) is None


@pytest.mark.parametrize(
    "asked",
    [
        rq.Score(texts=["Hello <new-2>"], variants=[[]]),
        rq.NextToken(prompt="Hello <new-2>", variants=[[]]),
        rq.Compare(prompts=["Hi", "Hello <new-2>"], variants=[[]], max_new_tokens=2),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_prompt_with_such_a_token_is_refused_in_a_sentence(service: Service, asked: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"contains <new-2>, a token .* no embedding for"):
        service.start(asked).result(timeout=60)


def test_a_chat_with_such_a_token_is_refused_in_a_sentence(service: Service) -> None:
    asked = rq.Chat(messages=[rq.Message(role="user", content="<new-4>")], variant=[])
    with pytest.raises(InvalidRequest, match="contains <new-4>"):
        list(service.chat(asked))


def test_rows_with_such_a_token_are_bad_rows(service: Service, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"word {n}"} for n in range(12)]
    rows[3]["completion"] = "a <new-1>"
    rows[7]["prompt"] = "<new-2>?"
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train = rq.Train(name="kept", data=str(data), max_steps=1, tokens_per_step=128)

    with pytest.raises(DataError, match=r"it contains <new-1>, a token that the base has no"):
        service.start(train).result(timeout=120)
    dropping = train.model_copy(update={"drop_bad_rows": True})
    run = service.start(dropping).result(timeout=120)

    stats = service.start(rq.Preflight(train=dropping)).result(timeout=120).stats
    assert run.steps == 1
    assert stats is not None
    assert stats.bad == 2


# -- tokenizers that are written in Python -------------------------------------------------------


def test_a_tokenizer_that_gives_no_places_answers_but_is_not_trained_with(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    for file in folder.glob("token*"):
        file.unlink()
    words = {"<unk>": 0, "a</w>": 1, "h": 2, "i</w>": 3, "hi</w>": 4}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nh i</w>\n", encoding="utf-8")
    configure(folder, tokenizer_class="CTRLTokenizer")
    with start_service(tmp_path / "workspace", folder) as service:
        facts = service.snapshot().base
        asked = rq.Compare(prompts=["hi", "hi a"], variants=[[]], max_new_tokens=2)
        answers = service.start(asked).result(timeout=60)
        with pytest.raises(DataError, match="does not tell where a token is in its text"):
            service.start(rq.Train(name="not")).result(timeout=60)

    assert facts is not None
    assert "can be used but not trained" in facts.notes[0]
    assert len(answers.answers[0]) == 2


# -- marks that are missing ----------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_the_models_end_mark_is_that_of_a_tokenizer_without_one(tmp_path: Path, file: str) -> None:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    tokenizer(eos_token=None, bos_token=None, pad_token=None).save_pretrained(folder)
    for each in ("generation_config.json", "config.json"):
        configure(folder, each, eos_token_id=[2, 1] if each == file else None)
    base = load(folder)

    assert base.tokenizer.eos_token == "<|end|>"
    assert prompts.end_tokens(base) == ([2, 1] if file.startswith("gen") else [2])
    assert base.facts.notes == ()


def test_a_base_without_any_end_mark_says_so(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    tokenizer(eos_token=None, bos_token=None, pad_token=None).save_pretrained(folder)
    for each in ("generation_config.json", "config.json"):
        configure(folder, each, eos_token_id=None)
    with start_service(tmp_path / "workspace", folder) as service:
        facts = service.snapshot().base
        assert facts is not None
        assert facts.notes[0].startswith("No file names an end mark")
        train = rq.Train(name="endless", max_steps=2, tokens_per_step=128)
        run = service.start(train).result(timeout=120)
        asked = rq.Compare(prompts=["Hi", "Hello there"], variants=[[]], max_new_tokens=3)
        answers = service.start(asked).result(timeout=60)

    assert run.steps == 2
    assert len(answers.answers[0]) == 2


@pytest.mark.parametrize("pad", [-1, 99_999, 2, None])
def test_a_padding_token_of_any_kind_does_no_harm(tmp_path: Path, pad: int | None) -> None:
    folder = write_base(tmp_path / "base", tokenizer=tokenizer())
    expected = load(folder).facts.fingerprint
    configure(folder, pad_token_id=pad)
    configure(folder, "generation_config.json", pad_token_id=pad)
    base = load(folder)

    assert base.facts.fingerprint == expected
    assert prompt(base, "Hi")
