"""The loss over a large vocabulary, a few tokens at a time.

Logits of 2,000 tokens over a vocabulary of 262,144 entries take 2 GB in fp32, and their loss three
times that: more than all else in a step. So a model is called without its head, and the head, the
loss and their gradients are computed for a few tokens at a time, as in Liger Kernel (Hsu et al.
2024, section 3.2): no logits outlive their part. What a model does to its logits after the head is
found by trying. Knows nothing of documents.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import cross_entropy

from backend.engine.steps import model_call

PART_BYTES = 256_000_000
BYTES_AN_ENTRY = 16
"""Of a token's logits: in the precision of the head, in fp32, log-probabilities, gradients."""
FEWEST = 256
"""Tokens of a part: with fewer, reading the head's weights again takes longer than computing."""
IGNORED = -100
AGREES = 1e-5
"""How much logits computed here may differ from the model's own, relative to the largest."""

Change = Callable[[torch.Tensor], torch.Tensor]
"""What a model does to its logits after the head."""
_FOUND: "WeakKeyDictionary[torch.nn.Module, Change | None]" = WeakKeyDictionary()


class Scored(NamedTuple):
    """A summed loss in nats, and whether each token was the likeliest one, (kept,), bool."""

    loss: float
    hits: torch.Tensor


class Head(NamedTuple):
    """Computes logits, (kept, vocabulary), from what a model's head is given, (kept, width)."""

    layer: torch.nn.Module
    change: Change

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.change(self.layer(hidden))

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return [each for each in self.layer.parameters() if each.requires_grad]


def note(model: torch.nn.Module, ids: torch.Tensor) -> None:
    """Find out once how a model's logits come from its head; ids: (1, tokens), int64, of a text."""
    base = model_call.inner(model)
    if base not in _FOUND:
        was_training = base.training
        base.eval()
        try:
            with torch.no_grad():
                _FOUND[base] = _change(base, ids)
        finally:
            base.train(was_training)


def forget(model: torch.nn.Module) -> None:
    """Let a model compute all logits at once again."""
    _FOUND.pop(model_call.inner(model), None)


def of(model: torch.nn.Module) -> Head | None:
    """Return the head of a model, wrapped or not; None where its logits have to be its own."""
    base = model_call.inner(model)
    layer, change = model_call.head_of(base), _FOUND.get(base)
    return Head(layer, change) if layer is not None and change is not None else None


def _change(base: Any, ids: torch.Tensor) -> Change | None:
    """Return the change after which the head's outputs are the model's logits; None where none."""
    keep = torch.arange(1, ids.shape[1], device=ids.device)
    try:
        expected = model_call.kept_logits(base, {"input_ids": ids}, keep).float()
        hidden = model_call.head_input(base, {"input_ids": ids}, keep)
        layer = model_call.head_of(base)
        if hidden is None or layer is None:
            return None
        raw = layer(hidden)
    except torch.OutOfMemoryError:
        raise
    except model_call.FAILURES:
        return None
    for change in _candidates(base.config.get_text_config().to_dict()):
        found = change(raw).float()
        if found.shape == expected.shape and _agree(found, expected):
            return change
    return None


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= AGREES * expected.abs().max())


def _candidates(settings: dict[str, Any]) -> Iterator[Change]:
    """Return what models do: nothing, or a soft cap or a factor that is named in the config."""
    yield _nothing
    for name, value in settings.items():
        known = "logit" in name or "lm_head" in name
        if known and isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield from (partial(each, number=value) for each in (_cap, _times, _divided))


def _nothing(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _cap(logits: torch.Tensor, number: float) -> torch.Tensor:
    return torch.tanh(logits / number) * number


def _times(logits: torch.Tensor, number: float) -> torch.Tensor:
    return logits * number


def _divided(logits: torch.Tensor, number: float) -> torch.Tensor:
    return logits / number


def loss_sum(hidden: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the summed cross-entropy: a scalar, fp32, in nats.

    hidden: (kept, width), what the head is given; labels: (kept,), int64, `IGNORED` where a token
    has no loss. Gradients reach hidden and the head's trainable parameters.
    """
    if not torch.is_grad_enabled():
        parts = _parts(len(hidden), head)
        losses = [_loss(head(hidden[part]).float(), labels[part]) for part in parts]
        return torch.stack(losses).sum() if losses else hidden.new_zeros((), dtype=torch.float32)
    found: torch.Tensor = _Loss.apply(hidden, labels, head, *head.trained)
    return found


def scored(hidden: torch.Tensor, labels: torch.Tensor, head: Head) -> Scored:
    """Return what an evaluation needs; takes what `loss_sum` takes. Computes no gradients."""
    total, hits = 0.0, []
    for part in _parts(len(hidden), head):
        logits = head(hidden[part]).float()
        total += _loss(logits, labels[part]).item()
        hits.append(logits.argmax(-1) == labels[part])
    return Scored(total, torch.cat(hits) if hits else labels.bool())


def rows(vocabulary: int) -> int:
    """Return how many tokens are computed at a time."""
    return max(FEWEST, PART_BYTES // (BYTES_AN_ENTRY * vocabulary) // FEWEST * FEWEST)


def _parts(tokens: int, head: Head) -> Iterator[slice]:
    weight = getattr(head.layer, "weight", None)
    size = rows(max(1, len(weight)) if weight is not None else tokens)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)


class _Loss(torch.autograd.Function):
    """Computes the gradients with the loss, so that the backward pass only has to scale them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, labels: torch.Tensor, head: Head, *trained: torch.Tensor
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.zeros_like(hidden)
        of_trained = [torch.zeros_like(each) for each in trained]
        for part in _parts(len(hidden), head):
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                loss = _loss(head(leaf).float(), labels[part])
                of_hidden[part], *others = torch.autograd.grad(loss, [leaf, *trained])
            total += loss.detach()
            for sum_, more in zip(of_trained, others, strict=True):
                sum_ += more
        ctx.save_for_backward(of_hidden, *of_trained)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        of_hidden, *of_trained = (each * grads[0].to(each.dtype) for each in ctx.saved_tensors)
        return of_hidden, None, None, *of_trained
