"""One training step: the loss of a pack, its compute precision, and the evaluation of a model.

Training, evaluation, pre-flight and the choice of precision share this code, so that the same
computation is measured and run. Knows nothing of optimisers or runs.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad

from backend.engine.core import devices
from backend.engine.core.dtypes import HALF
from backend.engine.data.token_arrays import Tokens
from backend.engine.models.loading import Base
from backend.engine.training import (
    chunked_loss,
    few_lengths,
    model_call,
    packed_attention,
)
from backend.engine.training.lean_layers import LeanLayers
from backend.engine.training.packing import Packs, collate
from backend.requests import Train
from backend.results import Evaluation
from backend.results.training_layout import TrainingLayout

Batch = dict[str, Any]
SHORTEST = 3
"""Tokens of a test document, so that some of them have a loss."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch (see `packing.collate`) with its tensors on a device."""
    if device.type == "cpu":
        return batch
    by_itself = devices.pins_memory(device)
    return {
        key: [to_device(each, device) for each in value]
        if isinstance(value, list)
        else value.to(device, non_blocking=by_itself)
        for key, value in batch.items()
    }


def forward(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the logits that predict tokens with loss: (kept, vocabulary), in the head's dtype.

    Packed documents come without an attention mask and a cache: only then does Transformers
    isolate them. Rows number their tokens themselves.
    """
    if "singles" in batch:
        return torch.cat([forward(model, each) for each in batch["singles"]])
    count, batch = len(batch["keep"]), _rounded(model, batch)
    return model_call.kept_logits(model, _inputs(model, batch), batch["keep"])[:count]


def _rounded(model: torch.nn.Module, batch: Batch) -> Batch:
    """Pad a batch where its length decides which kernels are compiled."""
    if few_lengths.wanted(model, batch["input_ids"].device):
        return few_lengths.rounded(batch, _longest_row(model))
    return batch


def _inputs(model: torch.nn.Module, batch: Batch) -> Batch:
    """Return what a model is given of a batch."""
    inputs = {"input_ids": batch["input_ids"]}
    if "position_ids" in batch and model_call.passes_on(model, "position_ids"):
        inputs["position_ids"] = batch["position_ids"]
    if "attention_mask" in batch and model_call.passes_on(model, "attention_mask"):
        inputs["attention_mask"] = batch["attention_mask"]
    if packed_attention.in_use(model):
        inputs["layout"] = batch["layout"]
    return inputs


def _longest_row(model: torch.nn.Module) -> int:
    """Return how many tokens of a row a model has positions for, as far as its config says so."""
    config = model_call.inner(model).config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def loss_sum(
    model: torch.nn.Module, batch: Batch, autocast: AbstractContextManager[Any]
) -> torch.Tensor:
    """Return the summed cross-entropy of a pack's tokens with loss: a scalar, fp32, in nats."""
    with autocast:
        losses = [_loss_sum(model, each) for each in batch.get("singles", [batch])]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    head, labels = chunked_loss.of(model), batch["labels"]
    if head is None:
        return cross_entropy(forward(model, batch).float(), labels, reduction="sum")
    return chunked_loss.loss_sum(*_before_head(model, batch), head)


def _before_head(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the head is given for the tokens with loss, (kept, width), and their labels."""
    padded = _rounded(model, batch)
    hidden = model_call.head_input(model, _inputs(model, padded), padded["keep"])
    if hidden is None:
        raise RuntimeError("The model does not call its head as it did in the trial.")
    more = len(hidden) - len(batch["labels"])
    return hidden, pad(batch["labels"], (0, more), value=chunked_loss.IGNORED)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Open the compute precision of a step.

    Trainer's own bf16 switch leaves the model's forward in autocast after a run (Transformers
    5.23), which would change every later score by 6e-3. So the step opens autocast itself.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF[precision])


class StepMode:
    """The mode for training steps: isolated documents, gradient checkpointing where wanted."""

    def __init__(
        self, base: Base, *, checkpointing: bool, layout: TrainingLayout = "packed"
    ) -> None:
        self._base = base
        self._checkpointing = checkpointing and can_checkpoint(base.model)
        self._layout = layout
        self._apart: bool | None = None
        self._lean: LeanLayers | None = None
        self._open = ExitStack()

    def enter(self) -> None:
        """Put the base into the mode."""
        model = self._base.model
        for config in (model.config, model.config.get_text_config()):
            if hasattr(config, "use_cache"):
                self._open.callback(setattr, config, "use_cache", config.use_cache)
        chunked_loss.note(model, _probe_ids(self._base))
        lean = LeanLayers(model, keeps=not self._checkpointing)
        self._lean = lean
        self._open.callback(lean.leave)
        if self._layout == "packed" and self._is_apart():
            self._open.enter_context(packed_attention.documents_apart(model))
        if self._checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            self._open.callback(model.disable_input_require_grads)
            self._open.callback(model.activation_checkpointing_disable)

    def _is_apart(self) -> bool:
        if self._apart is None:
            self._apart = _documents_apart_works(self._base)
        return self._apart

    def free_casts(self) -> None:
        """Free what was computed in a precision that was only tried."""
        if self._lean is not None:
            self._lean.free()

    def change_layout(self, layout: TrainingLayout) -> None:
        """Use another layout from now on."""
        if layout != self._layout:
            self.leave()
            self._layout = layout
            self.enter()

    def leave(self) -> None:
        """Put the base back as it was."""
        self._open.close()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the mode for a while, so that the base can answer in the middle of a run."""
        self.leave()
        try:
            yield
        finally:
            self.enter()


@contextmanager
def step_mode(
    base: Base, *, checkpointing: bool = False, layout: TrainingLayout = "packed"
) -> Iterator[StepMode]:
    """Put the base into the mode for training steps, and restore it afterwards."""
    mode = StepMode(base, checkpointing=checkpointing, layout=layout)
    try:
        mode.enter()
        yield mode
    finally:
        mode.leave()


def evaluate(
    model: torch.nn.Module, packs: Packs, device: torch.device, precision: str
) -> Evaluation:
    """Measure held-out loss (mean per token, in nats), token accuracy and exact match.

    An answer is an exact match if each of its tokens is the most likely one after the tokens
    before it: then greedy decoding gives the same answer. One forward pass shows that for all.
    """
    was_training = model.training
    model.eval()
    total, right, tokens, whole, examples = 0.0, 0, 0, 0, 0
    try:
        with torch.inference_mode():
            for index in range(len(packs)):
                batch = to_device(packs[index], device)
                with autocast(device, precision):
                    loss, hits = _scored(model, batch)
                total += loss
                right, tokens = right + int(hits.sum()), tokens + len(hits)
                for answer in _by_document(hits, batch):
                    whole, examples = whole + int(answer.all()), examples + 1
    finally:
        model.train(was_training)
    return Evaluation(
        loss=total / max(tokens, 1),
        exact_match=whole / max(examples, 1),
        token_accuracy=right / max(tokens, 1),
        examples=examples,
        tokens=tokens,
    )


def _scored(model: torch.nn.Module, batch: Batch) -> tuple[float, torch.Tensor]:
    """Return the summed loss in nats, and whether each token was the likeliest, (kept,), bool."""
    parts = batch.get("singles", [batch])
    found = [_scored_at_once(model, each) for each in parts]
    return sum(each.loss for each in found), torch.cat([each.hits for each in found])


def _scored_at_once(model: torch.nn.Module, batch: Batch) -> chunked_loss.Scored:
    head, labels = chunked_loss.of(model), batch["labels"]
    if head is None:
        logits = forward(model, batch).float()
        loss = cross_entropy(logits, labels, reduction="sum").item()
        return chunked_loss.Scored(loss, logits.argmax(-1) == labels)
    loss, hits = chunked_loss.scored(*_before_head(model, batch), head)
    return chunked_loss.Scored(loss, hits[: len(labels)])


def time_step(model: torch.nn.Module, batch: Batch, device: torch.device, precision: str) -> float:
    """Return the seconds of one forward and backward pass; random state stays as it was.

    A step whose loss is not finite counts as infinitely long.
    """
    batch = to_device(batch, device)
    with devices.same_random_numbers(device):
        started = time.perf_counter()
        loss = loss_sum(model, batch, autocast(device, precision))
        loss.backward()
        devices.synchronize(device)
        seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds if bool(loss.isfinite()) else math.inf


def _by_document(hits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Split hits, (kept,) bool, by document."""
    if "singles" in batch:
        counts = [len(each["labels"]) for each in batch["singles"]]
        return hits.split([count for count in counts if count])
    if "position_ids" in batch:
        starts = torch.nonzero(batch["position_ids"][0] == 0).reshape(-1)
        owner = torch.searchsorted(starts, batch["keep"], right=True)
    else:
        owner = batch["keep"] // batch["input_ids"].shape[1]
    _, counts = torch.unique_consecutive(owner, return_counts=True)
    return hits.split(counts.tolist())


def supported(train: Train, model: torch.nn.Module) -> Train:
    """Return a run's settings without gradient checkpointing where a model does not support it."""
    if train.gradient_checkpointing and not can_checkpoint(model):
        return train.model_copy(update={"gradient_checkpointing": False})
    return train


def can_checkpoint(model: torch.nn.Module) -> bool:
    """Tell whether an architecture supports gradient checkpointing."""
    return bool(getattr(model, "supports_gradient_checkpointing", True))


def _documents_apart_works(base: Base) -> bool:
    """Compare our attention with the model's own on a small pack, before it is used."""
    if not packed_attention.could_use(base.model):
        return False
    batch = to_device(collate(probe_documents(base)), base.device)
    # A base in bf16 may have norms in fp32 here; only autocast makes the dtypes match.
    opened = autocast(base.device, base.facts.precision)
    try:
        with packed_attention.compared(base.model) as differences, torch.inference_mode(), opened:
            forward(base.model, batch)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return bool(differences) and all(each <= packed_attention.AGREES for each in differences)


def _probe_ids(base: Base) -> torch.Tensor:
    """Return the tokens of a short text, (1, tokens), int64, on the base's device."""
    return torch.from_numpy(probe_documents(base)[0].ids.astype(np.int64))[None].to(base.device)


def probe_documents(base: Base) -> list[Tokens]:
    """Return a few short documents to test a model with; all of their tokens have a loss."""
    texts = (
        "The quick brown fox jumps over the lazy dog.",
        "Hello there!",
        "One, two, three, four.",
    )
    found = []
    for text in texts:
        ids = base.tokenizer(text, return_tensors="np").input_ids[0]
        ids = ids[: base.facts.context_length or len(ids)]
        if 0 < len(ids) < SHORTEST:  # nothing predicts the only token of a text
            ids = np.resize(ids, SHORTEST)
        found.append(Tokens(ids, np.ones(len(ids), dtype=bool)))
    return found
