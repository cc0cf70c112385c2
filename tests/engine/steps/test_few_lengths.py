"""Packs of few lengths: the same loss and gradients, and far fewer lengths to compile for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from backend import requests as rq
from backend.engine.data.token_arrays import Tokens
from backend.engine.methods import peft_io
from backend.engine.models import loading
from backend.engine.models.linear_layers import linear_layers
from backend.engine.steps import few_lengths, packing, step_loss
from tests.engine.architectures import load, write

CPU = torch.device("cpu")


def trained(base: loading.Base) -> PeftModel:
    config = peft_io.configure(rq.Lora(rank=2), linear_layers(base.model), base.model.name_or_path)
    config.init_lora_weights = False
    torch.manual_seed(0)
    return peft_io.apply(base.model, None, config, "ad_few")


def pack(base: loading.Base) -> dict[str, Any]:
    documents = step_loss.probe_documents(base)
    return packing.collate([Tokens(each.ids, each.learned) for each in documents])


def gradients(base: loading.Base, peft: PeftModel, precision: str) -> tuple[float, torch.Tensor]:
    with step_loss.step_mode(base):
        loss = step_loss.loss_sum(peft, pack(base), step_loss.autocast(CPU, precision))
        loss.backward()
    found = torch.cat([p.grad.reshape(-1) for p in peft.parameters() if p.grad is not None])
    peft.zero_grad(set_to_none=True)
    return loss.item(), found


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mixtral"])
def test_what_fills_a_pack_up_changes_neither_loss_nor_gradients(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(write(tmp_path / kind, kind))
    peft = trained(base)
    plain, before = gradients(base, peft, "fp32")
    monkeypatch.setattr(few_lengths, "wanted", lambda *_: True)

    filled, after = gradients(base, peft, "fp32")

    assert filled == pytest.approx(plain, rel=1e-5)
    # Rounding differs by processor, most where large terms cancel, so the whole is compared too.
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)
    assert (after - before).norm() <= 1e-5 * before.norm()


def test_only_half_precision_on_a_processor_fills_packs_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(write(tmp_path / "llama", "llama"))
    peft = trained(base)
    lengths: list[int] = []
    hook = base.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0].shape[1])
    )

    gradients(base, peft, "fp32")
    gradients(base, peft, "bf16")
    hook.remove()

    tokens = pack(base)["input_ids"].shape[1]
    assert (lengths[-2], lengths[-1]) == (tokens, few_lengths.round_up(tokens))
    assert not few_lengths.wanted(base.model, torch.device("cuda"))


def test_there_are_few_lengths_and_little_is_added() -> None:
    rounded = [few_lengths.round_up(length) for length in range(1, 8193)]

    assert len(set(rounded)) < 90
    assert all(
        0 <= more - length < max(32, length / 16 + 1) for length, more in enumerate(rounded, 1)
    )
    assert few_lengths.round_up(0) == 0
    assert [few_lengths.round_up(each) for each in (1, 32, 33, 600, 8192)] == [
        32,
        32,
        64,
        608,
        8192,
    ]
