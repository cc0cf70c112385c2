"""The loss in parts: the same as over all logits at once, for every kind of head."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from backend.engine.data.token_arrays import Tokens
from backend.engine.steps import chunked_loss, model_call, packing, rows, step_loss
from tests.architectures import tiny_models

KINDS = ["llama", "gemma2", "cohere", "granite", "gpt_neox", "qwen2"]
"""Nothing after the head, a soft cap, two kinds of factors, a head of another name, a tied one."""


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(chunked_loss, "PART_BYTES", 0)
    monkeypatch.setattr(chunked_loss, "FEWEST", 8)
    made = tiny_models.tiny_model(request.param, **_changes(request.param)).float()
    return made


def _changes(kind: str) -> dict[str, Any]:
    known = {
        "gemma2": {"final_logit_softcapping": 5.0},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 3.0},
    }
    return known.get(kind, {})


def documents() -> list[Tokens]:
    random = np.random.default_rng(0)
    return [
        Tokens(random.integers(5, 90, n).astype(np.int32), random.random(n) < 0.7)
        for n in (23, 17, 9, 2)
    ]


def adapted(model: Any) -> Any:
    config = LoraConfig(r=4, target_modules=_names(model), init_lora_weights=False)
    return get_peft_model(model, config).eval()


def _names(model: Any) -> list[str]:
    names = [name for name, each in model.named_modules() if type(each) is torch.nn.Linear]
    return sorted({name.rsplit(".", 1)[-1] for name in names} - {"lm_head", "embed_out"})


def whole(model: Any, batch: step_loss.Batch) -> torch.Tensor:
    logits = step_loss.forward(model, batch).float()
    return cross_entropy(logits, batch["labels"], reduction="sum")


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([each.reshape(-1) for each in found if each is not None])


@pytest.mark.parametrize("collate", [packing.collate, rows.collate, rows.collate_alone])
def test_losses_and_gradients_are_those_of_all_logits(model: Any, collate: Any) -> None:
    chunked_loss.note(model, torch.arange(5, 17)[None])
    peft, batch = adapted(model), collate(documents())
    assert chunked_loss.of(peft) is not None

    plain = whole(peft, batch)
    ours = step_loss.loss_sum(peft, batch, nullcontext())

    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    expected, found = gradients(peft, plain), gradients(peft, ours)
    assert expected.norm() > 0
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_known_without_gradients(model: Any, mode: Any) -> None:
    chunked_loss.note(model, torch.arange(5, 17)[None])
    batch = packing.collate(documents())

    with mode():
        plain, ours = whole(model, batch), step_loss.loss_sum(model, batch, nullcontext())

    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)


def test_no_part_has_more_logits_than_allowed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chunked_loss.note(model, torch.arange(5, 17)[None])
    seen: list[int] = []
    original = chunked_loss.Head.__call__

    def counted(head: chunked_loss.Head, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return original(head, hidden)

    monkeypatch.setattr(chunked_loss.Head, "__call__", counted)
    batch = packing.collate(documents())
    step_loss.loss_sum(model, batch, nullcontext()).backward()

    assert max(seen) == 8
    assert sum(seen) == len(batch["labels"])


def test_a_trained_head_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "PART_BYTES", 0)
    monkeypatch.setattr(chunked_loss, "FEWEST", 8)
    model = tiny_models.tiny_model("llama", tie_word_embeddings=False).float()
    chunked_loss.note(model, torch.arange(5, 17)[None])
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    peft, batch = get_peft_model(model, config).eval(), packing.collate(documents())

    plain, ours = whole(peft, batch), step_loss.loss_sum(peft, batch, nullcontext())

    expected, found = gradients(peft, plain), gradients(peft, ours)
    assert len(found) == sum(p.numel() for p in peft.parameters() if p.requires_grad)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_head_that_cannot_be_understood_keeps_its_own_logits() -> None:
    model = tiny_models.tiny_model("llama").float()
    own = type(model).forward

    class Strange(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = own(self, *args, **kwargs)
            found.logits = found.logits + found.logits.roll(1, -1)
            return found

    model.__class__ = Strange
    chunked_loss.note(model, torch.arange(5, 17)[None])
    batch = packing.collate(documents())

    assert chunked_loss.of(model) is None
    loss = step_loss.loss_sum(model, batch, nullcontext())
    assert loss.item() == pytest.approx(whole(model, batch).item(), rel=1e-6)


def test_a_pack_without_loss_has_a_loss_of_zero_and_zero_gradients(model: Any) -> None:
    chunked_loss.note(model, torch.arange(5, 17)[None])
    peft = adapted(model)
    nothing = [Tokens(d.ids, np.zeros(len(d), dtype=bool)) for d in documents()]

    loss = step_loss.loss_sum(peft, packing.collate(nothing), nullcontext())

    assert loss.item() == 0.0
    assert gradients(peft, loss).abs().max() == 0.0


def test_the_models_forward_is_as_before(model: Any) -> None:
    ids = torch.arange(5, 17)[None]
    before = model(input_ids=ids).logits
    chunked_loss.note(model, ids)
    model_call.head_input(model, {"input_ids": ids}, torch.arange(4))

    assert torch.equal(model(input_ids=ids).logits, before)
