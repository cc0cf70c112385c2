"""Proof that packed documents do not influence each other, made before each run.

The gradient of one document's logits with respect to the embeddings of every other document has to
be exactly zero, for documents before and after it. A masked attention weight is exactly zero in any
precision, so no tolerance is needed: a leak of any size is found. Mixtures of experts and int8,
whose bits change with their neighbours, still pass. Model, attention, checkpointing and autocast
are those of the run.

Two more checks follow. A leak without a gradient (through rounding or a choice) would change the
bits of other documents, which must not happen in dense, unquantised models. And a document has to
give the same in a pack as alone, which wrong positions would change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from backend.engine.core import devices, tolerances
from backend.engine.data.token_arrays import Tokens
from backend.engine.models.loading import Base
from backend.engine.training import few_lengths, packing, step_loss
from backend.errors import VerificationFailed

LONGEST = 6
"""Tokens of a tested document: few are enough, because a leak shows at any token."""
SCALES = (2.0**12, 1.0)
"""Factors for the logits: the first keeps small fp16 gradients from vanishing, the second is for
models where the first is too large."""
ALONE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
"""How much documents in a pack may differ from the same documents alone: the mean difference of
their tokens' log-probabilities, relative to max(1, |value|). The gradients prove the isolation."""
CURE = "Choose another base; this architecture cannot be trained correctly here yet."


def require_isolation(base: Base, model: torch.nn.Module, precision: str) -> None:
    """Raise VerificationFailed where packed documents influence each other, or could.

    `model` is what the run trains, inside `step_loss.step_mode`, in the run's `precision`.
    Raises ModelError where the base computes numbers that are not finite. The mode of the model and
    the random states are restored.
    """
    if capacity := _capacity(base):
        raise _unproven(f"its router drops tokens ({capacity})")
    was_training = model.training
    with devices.same_random_numbers(base.device):
        try:
            pack = _Pack(base, model, precision)
            model.train()
            pack.require_no_gradient_across()
            if _repeats_bits(base):
                pack.require_same_bits()
            model.eval()
            pack.require_same_as_alone()
        finally:
            model.train(was_training)


class _Pack:
    """A few short documents in one pack, and the model's outputs for them."""

    def __init__(self, base: Base, model: torch.nn.Module, precision: str) -> None:
        self._base = base
        self._model = model
        self._precision = precision
        shortened = [
            Tokens(each.ids[:LONGEST], each.learned[:LONGEST])
            for each in step_loss.probe_documents(base)
        ]
        self._documents = sorted(shortened, key=len, reverse=True)  # their order in the pack
        self._batch = step_loss.to_device(packing.collate(shortened), base.device)
        with step_loss.autocast(base.device, precision):
            if few_lengths.wanted(model, base.device):
                self._batch = few_lengths.rounded(self._batch)
        lengths = [len(each) for each in self._documents]
        lengths.append(self._batch["input_ids"].shape[1] - sum(lengths))
        numbers = torch.arange(len(lengths), device=base.device)
        self._owner = numbers.repeat_interleave(torch.tensor(lengths, device=base.device))
        """The document of each token, shape (tokens,); padding is the last document."""
        self._row_owner = self._owner[self._batch["keep"]]
        """The document of each row of logits, shape (kept,)."""

    def require_no_gradient_across(self) -> None:
        """Raise where a document's logits have a gradient with respect to another document."""
        try:
            with _leaves(self._base, len(self._owner)) as leaves, torch.enable_grad():
                logits = self._logits(self._batch)
                tolerances.require_finite([logits.sum().item()], "The score of an example")
                for number in range(len(self._documents)):
                    sizes = self._gradient_sizes(logits, leaves, number)
                    self._require_apart(sizes.max(0).values > 0, self._owner, number)
                    if not bool((sizes[0, self._owner == number] > 0).any()):
                        raise _unproven("its logits pass no gradient on to its embeddings")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise _unproven((str(error).strip().splitlines() or ["no reason given"])[0]) from error

    def require_same_bits(self) -> None:
        """Raise where other tokens in one document change a bit of another one's logits."""
        ids = self._batch["input_ids"]
        logits = self._repeatable_logits(ids)
        if not torch.equal(logits, self._repeatable_logits(ids)):
            return  # kernels that sum in another order each time cannot be compared bit for bit
        for number in range(len(self._documents)):
            changed = torch.where(self._owner == number, ids.flip(-1), ids)
            differs = (self._repeatable_logits(changed) != logits).any(-1)
            for other in self._row_owner[differs].unique().tolist():
                self._require_apart(self._row_owner == number, self._row_owner, int(other))

    def require_same_as_alone(self) -> None:
        """Raise where documents give other log-probabilities in the pack than alone."""
        with torch.no_grad():
            together = self._chances(self._batch)
            alone = torch.cat(
                [
                    self._chances(step_loss.to_device(packing.collate([each]), self._base.device))
                    for each in self._documents
                ]
            )
        difference = ((together - alone).abs() / alone.abs().clamp(min=1.0)).mean().item()
        if not difference <= (allowed := _alone_bound(self._base, self._precision)):
            raise VerificationFailed(
                "In this model, packed examples give other results than the same examples alone: "
                f"their log-probabilities differ by {difference:.1e}, more than the allowed "
                f"{allowed:.0e}.",
                cure=CURE,
            )

    def _gradient_sizes(
        self, logits: torch.Tensor, leaves: list[torch.Tensor], number: int
    ) -> torch.Tensor:
        """Return the largest gradient of a document's logits for each token of each leaf.

        Shape (leaves, tokens). The logits are summed with random weights, so that nothing cancels
        out.
        """
        rows = logits[self._row_owner == number].float()
        random = torch.Generator().manual_seed(number)
        direction = torch.randn(rows.shape, generator=random).to(rows) / rows.shape[-1] ** 0.5
        for scale in SCALES:
            found = torch.autograd.grad(
                (rows * direction * scale).sum(), leaves, retain_graph=True, allow_unused=True
            )
            sizes = torch.stack([_by_token(each, len(self._owner)) for each in found])
            if bool(sizes.isfinite().all()):
                return sizes
        raise _unproven("its gradients are not finite numbers")

    def _require_apart(self, reached: torch.Tensor, owner: torch.Tensor, number: int) -> None:
        """Raise where a document's logits depend on a token of another one."""
        others = owner[reached & (owner != number)].unique().tolist()
        if others:
            raise VerificationFailed(
                "Examples packed together influence each other in this model: its logits for "
                f"example {number + 1} depend on example {int(others[0]) + 1} of the same pack.",
                cure=CURE,
            )

    def _logits(self, batch: step_loss.Batch) -> torch.Tensor:
        """Return the logits that predict tokens with loss, shape (kept, vocabulary)."""
        with step_loss.autocast(self._base.device, self._precision):
            return step_loss.forward(self._model, batch)

    def _repeatable_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits for other tokens, with the same dropout each time."""
        torch.manual_seed(0)
        with torch.no_grad():
            return self._logits({**self._batch, "input_ids": ids})

    def _chances(self, batch: step_loss.Batch) -> torch.Tensor:
        """Return the log-probability of each token with loss, shape (kept,)."""
        chances = self._logits(batch).float().log_softmax(-1)
        labels = batch["labels"][:, None]
        return chances[: len(labels)].gather(1, labels)[:, 0]


@contextmanager
def _leaves(base: Base, tokens: int) -> Iterator[list[torch.Tensor]]:
    """Make the outputs of all embeddings the leaves of the gradients; token embeddings first.

    Some models have more token embeddings, such as Gemma 3n's for each layer, and position
    embeddings.
    """
    main = base.model.get_input_embeddings()
    found: list[torch.Tensor] = []

    def become_leaf(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if output.ndim < 2 or output.shape[-2] != tokens:
            return output
        leaf = output.detach().requires_grad_()
        found.insert(0 if module is main else len(found), leaf)
        return leaf

    embeddings = [each for each in base.model.modules() if isinstance(each, torch.nn.Embedding)]
    handles = [each.register_forward_hook(become_leaf) for each in {*embeddings, main}]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _by_token(gradient: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Return the largest absolute gradient for each token, (tokens,); zeros where there is none."""
    if gradient is None:
        return torch.zeros(tokens)
    return gradient.abs().amax(-1).reshape(-1, tokens).amax(0).float().cpu()


def _capacity(base: Base) -> str:
    """Return the setting that lets a router drop tokens beyond its experts' capacity, if any.

    Which tokens are dropped depends on the other documents, and no gradient shows that.
    """
    if not _has_experts(base):
        return ""
    return next((name for name, value in _settings(base) if "capacity" in name and value), "")


def _repeats_bits(base: Base) -> bool:
    """Tell whether a document's bits must be independent of its neighbours in this model."""
    return base.facts.quantization == "none" and not _has_experts(base)


def _has_experts(base: Base) -> bool:
    return any(
        "expert" in name and isinstance(value, int) and value for name, value in _settings(base)
    )


def _settings(base: Base) -> list[tuple[str, Any]]:
    return list(base.model.config.get_text_config().to_dict().items())


def _alone_bound(base: Base, precision: str) -> float:
    """Return how much documents in a pack may differ from the same documents alone."""
    facts = base.facts
    kinds = {precision, facts.precision, facts.quantized_compute or facts.precision}
    return max(
        tolerances.coarseness(facts.quantization, base.device.type),
        *(ALONE[kind] for kind in kinds),
    )


def _unproven(reason: str) -> VerificationFailed:
    return VerificationFailed(
        "For this model it cannot be proven that packed examples do not influence each other: "
        f"{reason}.",
        cure=CURE,
    )
