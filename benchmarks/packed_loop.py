"""A peer: the packed training loop that somebody who knows PyTorch would write by hand.

Same adapter, packs, optimiser, schedule, clipping and precision as ours; documents are kept apart
by position ids, which Transformers turns into a mask for PyTorch's attention.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, get_scheduler

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from benchmarks.speed import Speed, StepLog


@dataclass(frozen=True)
class Pack:
    """One step's input, laid out before the clock starts."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    keep: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Pack":
        """Return it on a device."""
        return Pack(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def read_in_full(folder: Path) -> Any:
    """Read the base in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train_by_hand(
    model_folder: Path,
    train: rq.Train,
    packs: list[list[Tokens]],
    precision: str,
    *,
    read: Callable[[Path], Any] = read_in_full,
) -> Speed:
    """Train once and tell how fast it went; `read` decides about the base and its device."""
    model = adapted_model(read(model_folder), train)
    ready = [lay_out(pack).to(model.device) for pack in packs]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=train.rate, weight_decay=train.weight_decay, fused=True
    )
    schedule = get_scheduler(
        train.scheduler, optimizer, round(train.warmup * len(ready)), len(ready)
    )
    log = StepLog.empty(precision)
    for pack in ready:
        started = time.perf_counter()
        loss = pack_loss(model, pack, precision)
        loss.backward()
        clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.losses.append(loss.item())
        log.ended.append(time.perf_counter())
        log.seconds.append(log.ended[-1] - started)
        log.tokens.append(pack.input_ids.numel())
    return log.speed()


def adapted_model(model: Any, train: rq.Train) -> PeftModel:
    """Put the adapter on a base, initialised as ours is."""
    if train.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    config = LoraConfig(
        r=train.adapter.rank,
        lora_alpha=int(train.adapter.effective_alpha),
        lora_dropout=train.adapter.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(train.seed)
    return get_peft_model(model, config).train()


def pack_loss(model: PeftModel, pack: Pack, precision: str) -> torch.Tensor:
    """Return the mean loss over learned tokens; logits only where one is predicted."""
    with autocast(pack.input_ids.device, precision):
        output = model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            logits_to_keep=pack.keep,
            use_cache=False,
        )
    return cross_entropy(output.logits[0].float(), pack.labels)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Open the precision to compute in."""
    half = precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext()


def lay_out(documents: list[Tokens]) -> Pack:
    """Lay documents side by side; each one's first token is predicted by nothing."""
    ids = np.concatenate([d.ids for d in documents]).astype(np.int64)
    positions = np.concatenate([np.arange(len(d)) for d in documents])
    learned = np.concatenate([d.learned for d in documents]) & (positions > 0)
    targets = np.flatnonzero(learned)
    return Pack(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        keep=torch.from_numpy(targets - 1),
        labels=torch.from_numpy(ids[targets]),
    )
