"""Proof that documents in one batch do not influence each other, made before each run.

The gradient of one document's logits with respect to the embeddings of every other document has to
be exactly zero, for documents before and after it, side by side or in rows. A masked attention
weight is exactly zero in any precision, so no tolerance is needed: a leak of any size is found.
Mixtures of experts and int8, whose bits change with their neighbours, still pass. Model, attention,
checkpointing and autocast are those of the run.

Two more checks follow. A leak without a gradient (through rounding or a choice) would change the
bits of other documents, which must not happen in dense, unquantised models. And a document has to
give the same in a batch as alone, which wrong positions or padding would change.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from backend.engine.core import devices, tolerances
from backend.engine.data.token_arrays import Tokens
from backend.engine.models.loading import Base
from backend.engine.training import few_lengths, model_call, packing, rows, step_loss
from backend.errors import VerificationFailed
from backend.results.training_layout import TrainingLayout

LONGEST = 6
"""Tokens of a tested document: few are enough, because a leak shows at any token."""
SCALES = (2.0**12, 1.0)
"""Factors for the logits: the first keeps small fp16 gradients from vanishing, the second is for
models where the first is too large."""
ALONE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
"""How much documents in a batch may differ from the same documents alone: the mean difference of
their tokens' log-probabilities, relative to max(1, |value|). The gradients prove the isolation."""
UNPROVEN = (
    "For this model it cannot be proven that examples in one batch do not influence each other:"
)
CURE = "Choose another base; this architecture cannot be trained correctly here yet."
TOGETHER = {"packed": "packed together", "rows": "in rows of one batch"}
SEVERAL = {"packed": "packed examples", "rows": "examples in rows of one batch"}


def require_isolation(
    base: Base, model: torch.nn.Module, precision: str, layout: TrainingLayout = "packed"
) -> None:
    """Raise VerificationFailed where documents in one batch influence each other, or could.

    `model` is what the run trains, inside `step_loss.step_mode`, in the run's `precision`.
    Raises ModelError where the base computes numbers that are not finite. The mode of the model and
    the random states are restored.
    """
    if layout != "single" and (capacity := _capacity(base)):
        raise _unproven(f"its router drops tokens ({capacity})")
    with _trial(base, model, precision, layout) as batch:
        if layout == "single":
            batch.require_finite()
            return
        model.train()
        batch.require_no_gradient_across(range(batch.documents))
        if _repeats_bits(base):
            batch.require_same_bits()
        model.eval()
        batch.require_same_as_alone(range(batch.documents))


def require_quickly(base: Base, layout: TrainingLayout) -> None:
    """Raise as `require_isolation` does, for the loaded base, in a fifth of its time.

    Only the document in the middle is tried, against one before and one after it.
    """
    if layout != "single" and (capacity := _capacity(base)):
        raise _unproven(f"its router drops tokens ({capacity})")
    with _trial(base, base.model, base.facts.precision, layout) as batch:
        if layout == "single":
            batch.require_finite()
            return
        base.model.train()
        batch.require_no_gradient_across([1])
        base.model.eval()
        batch.require_same_as_alone([1])


@contextmanager
def _trial(
    base: Base, model: torch.nn.Module, precision: str, layout: TrainingLayout
) -> Iterator["_Trial"]:
    """Yield a few documents in one batch; mode and random states are restored afterwards."""
    was_training = model.training
    with devices.same_random_numbers(base.device):
        try:
            yield _Trial(base, model, precision, layout)
        except torch.OutOfMemoryError:
            raise
        except model_call.FAILURES as error:
            raise _unproven((str(error).strip().splitlines() or ["no reason given"])[0]) from error
        finally:
            model.train(was_training)


class _Trial:
    """A few short documents in one batch, and the model's outputs for them."""

    def __init__(
        self, base: Base, model: torch.nn.Module, precision: str, layout: TrainingLayout
    ) -> None:
        self._base = base
        self._model = model
        self._precision = precision
        self._layout = layout
        longest = [LONGEST - n if layout == "rows" else LONGEST for n in range(LONGEST)]
        shortened = [
            Tokens(each.ids[:most], each.learned[:most])
            for each, most in zip(step_loss.probe_documents(base), longest, strict=False)
        ]
        self._documents = sorted(shortened, key=len, reverse=True)  # their order in the batch
        self._batch = step_loss.to_device(packing.laid_out(shortened, layout), base.device)
        if layout == "single":
            return
        with step_loss.autocast(base.device, precision):
            if few_lengths.wanted(model, base.device):
                self._batch = few_lengths.rounded(self._batch)
        self._owner = self._owners().to(base.device)
        """The document of each token, shape (rows, tokens); padding is the last document."""
        self._row_owner = self._owner.reshape(-1)[self._batch["keep"]]
        """The document of each row of logits, shape (kept,)."""

    @property
    def documents(self) -> int:
        return len(self._documents)

    def _owners(self) -> torch.Tensor:
        shape = self._batch["input_ids"].shape
        owner = torch.full(shape, self.documents)
        start = 0
        for number, each in enumerate(self._documents):
            row = number if self._layout == "rows" else 0
            owner[row, start : start + len(each)] = number
            start += 0 if self._layout == "rows" else len(each)
        return owner

    def require_finite(self) -> None:
        """Raise ModelError where the base computes numbers that are not finite."""
        with torch.no_grad():
            total = self._logits(self._batch).sum().item()
        tolerances.require_finite([total], "The score of an example")

    def require_no_gradient_across(self, numbers: Iterable[int]) -> None:
        """Raise where a document's logits have a gradient with respect to another document."""
        with _leaves(self._base, self._owner.shape) as leaves, torch.enable_grad():
            logits = self._logits(self._batch)
            tolerances.require_finite([logits.sum().item()], "The score of an example")
            for number in numbers:
                sizes = self._gradient_sizes(logits, leaves, number)
                self._require_apart(sizes.amax(0) > 0, self._owner, number)
                if not bool((sizes[0][self._owner.cpu() == number] > 0).any()):
                    raise _unproven("its logits pass no gradient on to its embeddings")

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

    def require_same_as_alone(self, numbers: Iterable[int]) -> None:
        """Raise where documents give other log-probabilities in the batch than alone."""
        wanted = list(numbers)
        with torch.no_grad():
            together = self._chances(self._logits(self._batch), self._batch)
            alone = torch.cat([self._alone(self._documents[number]) for number in wanted])
        owner = self._row_owner[: len(self._batch["labels"])]
        together = together[torch.isin(owner, torch.tensor(wanted, device=owner.device))]
        difference = ((together - alone).abs() / alone.abs().clamp(min=1.0)).mean().item()
        if not difference <= (allowed := _alone_bound(self._base, self._precision)):
            raise VerificationFailed(
                f"In this model, {SEVERAL[self._layout]} give other results than the same examples "
                f"alone: their log-probabilities differ by {difference:.1e}, more than the allowed "
                f"{allowed:.0e}.",
                cure=CURE,
            )

    def _alone(self, document: Tokens) -> torch.Tensor:
        """Return the log-probabilities of a document by itself, (kept,)."""
        device = self._base.device
        if self._layout == "packed":
            batch = step_loss.to_device(packing.collate([document]), device)
            return self._chances(self._logits(batch), batch)
        batch = step_loss.to_device(rows.collate([document]), device)
        with step_loss.autocast(device, self._precision):
            logits = model_call.every_logit(self._model, batch["input_ids"])
        return self._chances(logits[0, batch["keep"]], batch)

    def _gradient_sizes(
        self, logits: torch.Tensor, leaves: list[torch.Tensor], number: int
    ) -> torch.Tensor:
        """Return the largest gradient of a document's logits for each token of each leaf.

        Shape (leaves, rows, tokens). The logits are summed with random weights, so that nothing
        cancels out.
        """
        own = logits[self._row_owner == number].float()
        random = torch.Generator().manual_seed(number)
        direction = torch.randn(own.shape, generator=random).to(own) / own.shape[-1] ** 0.5
        for scale in SCALES:
            found = torch.autograd.grad(
                (own * direction * scale).sum(), leaves, retain_graph=True, allow_unused=True
            )
            sizes = torch.stack([_by_token(each, self._owner.shape) for each in found])
            if bool(sizes.isfinite().all()):
                return sizes
        raise _unproven("its gradients are not finite numbers")

    def _require_apart(self, reached: torch.Tensor, owner: torch.Tensor, number: int) -> None:
        """Raise where a document's logits depend on a token of another one."""
        owner = owner.to(reached.device)
        others = owner[reached & (owner != number)].unique().tolist()
        if others:
            raise VerificationFailed(
                f"Examples {TOGETHER[self._layout]} influence each other in this model: its logits "
                f"for example {number + 1} depend on example {int(others[0]) + 1} of the same "
                "batch.",
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

    def _chances(self, logits: torch.Tensor, batch: step_loss.Batch) -> torch.Tensor:
        """Return the log-probability of each token with loss, shape (kept,)."""
        labels = batch["labels"][:, None]
        return logits.float().log_softmax(-1)[: len(labels)].gather(1, labels)[:, 0]


@contextmanager
def _leaves(base: Base, shape: torch.Size) -> Iterator[list[torch.Tensor]]:
    """Make the outputs of all embeddings the leaves of the gradients; token embeddings first.

    Some models have more token embeddings, such as Gemma 3n's for each layer, and position
    embeddings. Position embeddings that all rows share hold nothing of a document.
    """
    main = base.model.get_input_embeddings()
    found: list[torch.Tensor] = []

    def become_leaf(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        if output.ndim < 2 or output.shape[-2] != shape[-1]:
            return output
        if shape[0] > 1 and output.shape[:-1] != shape:
            return output
        leaf = output.detach().requires_grad_()
        found.insert(0 if module is main else len(found), leaf)
        return leaf.clone()  # some models scale their embeddings in place

    embeddings = [each for each in base.model.modules() if isinstance(each, torch.nn.Embedding)]
    handles = [each.register_forward_hook(become_leaf) for each in {*embeddings, main}]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _by_token(gradient: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """Return the largest absolute gradient for each token, (rows, tokens); zeros without one."""
    if gradient is None:
        return torch.zeros(shape)
    return gradient.abs().amax(-1).reshape(-1, *shape).amax(0).float().cpu()


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
    """Return how much documents in a batch may differ from the same documents alone."""
    facts = base.facts
    kinds = {precision, facts.precision, facts.quantized_compute or facts.precision}
    return max(
        tolerances.coarseness(facts.quantization, base.device.type),
        *(ALONE[kind] for kind in kinds),
    )


def is_proven_wrong(error: VerificationFailed) -> bool:
    """Tell whether documents were seen to influence each other; else it is only unproven."""
    return not error.what.startswith(UNPROVEN)


def why_unproven(error: VerificationFailed) -> str:
    """Return the reason in an error where nothing could be proven."""
    return error.what.removeprefix(UNPROVEN).removeprefix(" ").removesuffix(".")


def _unproven(reason: str) -> VerificationFailed:
    return VerificationFailed(f"{UNPROVEN} {reason.rstrip('.')}.", cure=CURE)
