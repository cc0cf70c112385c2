"""Answers and scores: streamed, repeatable, independent of company, right to plain Transformers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.errors import InvalidRequest, NotFound, Unsupported

STARTER = Path(__file__).parents[3] / "starter" / "model"


def ask(text: str) -> list[rq.Message]:
    return [rq.Message(role="user", content=text)]


def answer(service: Service, text: str, variant: rq.Variant, **settings: object) -> str:
    request = rq.Chat(messages=ask(text), variant=variant, **settings)
    return "".join(service.chat(request))


def score(service: Service, text: str, variant: rq.Variant) -> float:
    value: float = (
        service.start(rq.Score(texts=[text], variants=[variant])).result(timeout=60).scores[0][0]
    )
    return value


@pytest.fixture(scope="module")
def adapted(starter_service: Service) -> Iterator[Service]:
    """The shared service with a LoRA and a DoRA adapter that do something."""
    for name, adapter in (("manner", rq.Lora()), ("heavy", rq.Lora(use_dora=True))):
        request = rq.Train(
            name=name, adapter=adapter, max_steps=10, tokens_per_step=256, precision="fp32"
        )
        starter_service.start(request).result(timeout=300)
    return starter_service


def test_pieces_add_up_to_the_whole_answer(adapted: Service) -> None:
    job = adapted.start(rq.Chat(messages=ask("Where is the cat?")))

    pieces = list(job.pieces())

    assert len(pieces) > 1
    assert "".join(pieces).strip() == job.result().text
    assert job.result().tokens > 3


def test_a_temperature_of_zero_always_answers_the_same(adapted: Service) -> None:
    first = answer(adapted, "Where is the cat?", [], seed=1)
    assert first == answer(adapted, "Where is the cat?", [], seed=2)


def test_a_seed_repeats_a_varied_answer(adapted: Service) -> None:
    texts = [answer(adapted, "Tell me a story.", [], temperature=1.5, seed=s) for s in (1, 1, 2)]

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_closing_the_stream_stops_the_answer(adapted: Service) -> None:
    stream = adapted.chat(rq.Chat(messages=ask("Tell me a story."), max_new_tokens=400))
    next(stream)
    stream.close()

    assert answer(adapted, "Hello!", []) == answer(adapted, "Hello!", [])  # the lock is free


def test_an_answer_is_the_same_alone_and_in_company(adapted: Service) -> None:
    prompts = ["Where is the cat?", "Hello!"]
    variants: list[rq.Variant] = [[], [("manner", 1.0)]]
    request = rq.Compare(prompts=prompts, variants=variants, temperature=0.8, seed=7)

    together = adapted.start(request).result(timeout=120).answers

    for variant, answers in zip(variants, together, strict=True):
        alone = [answer(adapted, p, variant, temperature=0.8, seed=7).strip() for p in prompts]
        assert answers == alone


def test_a_score_is_that_of_plain_transformers(base_only: Service) -> None:
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    text = "The cat is on the mat."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = -model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)

    assert score(base_only, text, []) == pytest.approx(expected, rel=1e-5)


def test_a_text_of_one_token_scores_zero(base_only: Service) -> None:
    result = base_only.start(rq.Score(texts=[""], variants=[[]])).result(timeout=60)

    assert result.scores == [[0.0]]


def test_a_variant_leaves_the_active_set_alone(adapted: Service) -> None:
    adapted.start(rq.SetActive(adapters=[("manner", 1.0)])).result(timeout=60)

    base = score(adapted, "Hello!", [])

    assert adapted.snapshot().active == [("manner", 1.0)]
    assert base != score(adapted, "Hello!", [("manner", 1.0)])


def test_strength_scales_from_the_base_to_the_adapter(adapted: Service) -> None:
    text = "Arr, the cat be on the mat!"
    base, full = score(adapted, text, []), score(adapted, text, [("manner", 1.0)])

    assert score(adapted, text, [("manner", 0.0)]) == pytest.approx(base, abs=1e-5)
    assert min(base, full) < score(adapted, text, [("manner", 0.5)])
    assert score(adapted, text, [("manner", 1.0)]) == full  # half strength left no trace


def test_dora_answers_at_full_strength_only(adapted: Service) -> None:
    before = score(adapted, "Hello!", [("heavy", 1.0)])

    with pytest.raises(Unsupported, match="works at strength 1 only"):
        score(adapted, "Hello!", [("heavy", 0.5)])

    assert score(adapted, "Hello!", [("heavy", 1.0)]) == before


def test_an_unknown_adapter_is_named(adapted: Service) -> None:
    with pytest.raises(NotFound, match="no adapter called 'nobody'") as caught:
        answer(adapted, "Hello!", [("nobody", 1.0)])

    assert "manner" in caught.value.cure


def test_a_conversation_longer_than_the_model_reads_is_refused(base_only: Service) -> None:
    with pytest.raises(InvalidRequest, match="the model reads at most") as caught:
        answer(base_only, "cat " * 3000, [])

    assert "Shorten it" in caught.value.cure


def test_the_model_sees_earlier_turns(base_only: Service) -> None:
    turns = [*ask("Hello!"), rq.Message(role="assistant", content="Hi."), *ask("Where is the cat?")]

    text = "".join(base_only.chat(rq.Chat(messages=turns)))

    assert text.strip()
