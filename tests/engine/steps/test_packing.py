"""Packing: packed documents train exactly as if each stood alone."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.data.tokenization import Tokens
from backend.engine.methods import peft_io
from backend.engine.models import loading
from backend.engine.models.linear_layers import linear_layers
from backend.engine.steps import isolation, packed_attention, packing, step_loss
from backend.errors import VerificationFailed


@pytest.fixture(scope="module")
def base() -> loading.Base:
    return loading.load(rq.LoadModel(source="starter"), Control(0, print))


@pytest.fixture(scope="module")
def peft(base: loading.Base) -> Iterator[PeftModel]:
    layers = linear_layers(base.model)
    config = peft_io.configure(rq.Lora(rank=4), layers, base.model.name_or_path)
    config.init_lora_weights = False  # a fresh adapter does nothing; this one does
    model = peft_io.apply(base.model, None, config, "ad_test")
    yield model
    model.unload()


def documents(*lengths: int) -> list[Tokens]:
    random = np.random.default_rng(0)
    return [
        Tokens(random.integers(10, 1000, n).astype(np.int32), random.random(n) < 0.7)
        for n in lengths
    ]


def loss(model: torch.nn.Module, docs: list[Tokens]) -> float:
    with torch.no_grad():
        return step_loss.loss_sum(model, packing.collate(docs), nullcontext()).item()


def gradient(model: torch.nn.Module, packs: list[list[Tokens]]) -> torch.Tensor:
    model.zero_grad()
    for docs in packs:
        step_loss.loss_sum(model, packing.collate(docs), nullcontext()).backward()
    found = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return torch.cat(found)


@pytest.mark.parametrize("way", ["mask", "documents"])
def test_packed_loss_equals_the_separate_documents(
    base: loading.Base, peft: PeftModel, way: str
) -> None:
    docs = documents(40, 7, 23, 2, 90, 41, 3)
    apart = packed_attention.documents_apart(base.model) if way == "documents" else nullcontext()

    separate = sum(loss(peft, [document]) for document in docs)
    with apart:
        packed = loss(peft, docs)

    assert packed == pytest.approx(separate, rel=1e-5)


def test_packed_gradients_equal_the_separate_documents(base: loading.Base, peft: PeftModel) -> None:
    docs = documents(40, 7, 23, 90)
    peft.set_adapter("ad_test")

    separate = gradient(peft, [[document] for document in docs])
    with packed_attention.documents_apart(base.model):
        packed = gradient(peft, [docs])

    assert separate.norm() > 0
    assert (packed - separate).norm() / separate.norm() < 1e-5


def test_packed_attention_handles_grouped_heads_without_grouping() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=1000, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    docs = documents(30, 5, 12)

    separate = sum(loss(model, [document]) for document in docs)
    with packed_attention.documents_apart(model):
        packed = loss(model, docs)

    assert packed == pytest.approx(separate, rel=1e-5)


def test_models_with_windowed_attention_keep_their_own() -> None:
    config = LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=100)
    config.sliding_window = 16
    assert not packed_attention.could_use(LlamaForCausalLM(config))


def test_step_mode_leaves_the_model_as_it_was(base: loading.Base) -> None:
    before = (base.model.config._attn_implementation, base.model.config.use_cache)

    with step_loss.step_mode(base):
        inside = base.model.config._attn_implementation

    assert inside == packed_attention.NAME
    assert (base.model.config._attn_implementation, base.model.config.use_cache) == before


def test_documents_that_see_each_other_are_noticed(
    base: loading.Base, peft: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolation.require_isolation(base, peft, "fp32")  # isolated: nothing to say

    def leaking(docs: list[Tokens]) -> step_loss.Batch:
        batch = original(docs)
        length = batch["input_ids"].shape[1]
        return {**batch, "position_ids": torch.arange(length)[None]}

    original = packing.collate
    monkeypatch.setattr(packing, "collate", leaking)
    with pytest.raises(VerificationFailed, match="influence each other"):
        isolation.require_isolation(base, peft, "fp32")


def test_exact_match_is_what_greedy_decoding_would_answer(base: loading.Base) -> None:
    """Teacher-forced argmax against a real greedy continuation of the same prompt."""
    prompt = base.tokenizer("The cat", return_tensors="pt").input_ids
    answer = base.model.generate(prompt, max_new_tokens=8, do_sample=False)[0]
    learned = np.arange(len(answer)) >= prompt.shape[1]
    right = Tokens(answer.numpy().astype(np.int32), learned)
    wrong = Tokens(right.ids.copy(), learned)
    wrong.ids[-3] = (wrong.ids[-3] + 1) % 1000
    packs = packing.Packs([right, wrong], [[0, 1]])

    result = step_loss.evaluate(base.model, packs, base.device, "fp32")

    assert result.examples == 2
    assert result.exact_match == 0.5


def test_every_document_is_seen_once_an_epoch_within_the_budget() -> None:
    lengths = [5, 100, 30, 64, 2, 50, 99]

    plan = packing.plan(lengths, budget=100, epochs=2, seed=1)

    assert all(sum(lengths[n] for n in pack) <= 100 for pack in plan)
    assert sorted(n for pack in plan for n in pack) == sorted([*range(7), *range(7)])
    assert plan == packing.plan(lengths, budget=100, epochs=2, seed=1)
    assert plan != packing.plan(lengths, budget=100, epochs=2, seed=2)


def test_half_an_epoch_sees_half_of_the_documents() -> None:
    plan = packing.plan([10] * 20, budget=50, epochs=1.5, seed=0)

    assert sum(len(pack) for pack in plan) == 30


def test_nothing_is_padded() -> None:
    batch = packing.collate(documents(5, 9, 3))

    assert batch["input_ids"].shape == (1, 17)
    assert batch["position_ids"].tolist()[0] == [*range(9), *range(5), *range(3)]
