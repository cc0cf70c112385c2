"""How much memory a base and a run on it take, computed from a model's config.json alone.

peak = weights + adapter + gradients + optimiser + activations + logits + overhead, in bytes:

- weights: see `model_size`.
- adapter, gradients: 4 bytes for each trainable parameter; optimiser: 8 (Adam's two moments), or
  2 and a scale for each block of 256.
- activations: what the backward pass keeps, per token and layer. With w the width, a the width of
  all heads together and i the inner width, a layer with a gated MLP keeps 4w + 5a + 4i numbers in
  fp32 (two residuals, two shared inputs of adapters, query, key, value, attention twice, four in
  the MLP). In half precision it keeps 12w + 10a + 8i bytes: residuals in fp32, all else in half
  precision; 18a where attention stays in fp32, 18w where each adapter casts its own input (layers
  that are not `lean_layers`: quantised ones and DoRA), 14i where 4-bit weights are unpacked to
  fp32. An MLP without a gate keeps half as many of i. DoRA keeps two more outputs per layer, and an
  identity matrix. Checkpointing keeps a layer's input only, and the whole of one layer while it is
  recomputed. `tests/engine/training/test_kept_for_backward.py` compares all this with autograd.
  In rows, tokens include padding, and attention that is not fused keeps 4 or 6 bytes for each head,
  each token, and each token of its row.
- logits: those of one part of the tokens with loss (`chunked_loss`), with their log-probabilities
  and gradients 12 bytes each, or 16 in half precision; and the input of the head with its gradient.
- on a processor, activations and logits count 1.05 times with the allocator of
  `backend.service.allocator` (1.55 where a quantised base unpacks its weights again as layers are
  recomputed); without it 2.3 times unless allocation is exact (see
  `memory.exact_allocation`), which it is with checkpointing and where the run would otherwise take
  more than half of what is free (`settle`).
- overhead: the temporary tensors of one layer's backward pass, weights cast to half precision, one
  unpacked weight of a quantised base, and a fixed sum for the libraries; in bf16 on a processor
  also for compiled kernels.

The constants were calibrated against the measured peaks of our own training path
(`benchmarks/memory_estimate.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

from peft import LoraConfig
from transformers.modeling_utils import PreTrainedModel

from backend.catalogue.precisions import BYTES
from backend.engine.core import memory
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.models.linear_layers import Target
from backend.engine.models.model_size import Shape, Storage, weight_bytes
from backend.engine.steps import chunked_loss, layouts, packed_attention, step_loss
from backend.engine.steps.packing import Packs
from backend.requests import Train
from backend.results import ModelFacts

ADAM_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256}
LOGIT_BYTES = 12
LIBRARIES, LIBRARIES_ON_GPU = 40_000_000, 60_000_000
LIBRARIES_REUSING = 40_000_000
FRAGMENTED, FRAGMENTED_EXACT, FRAGMENTED_ON_GPU = 2.3, 1.05, 1.05
FRAGMENTED_REUSING, FRAGMENTED_UNPACKING = 1.05, 1.55
TIGHT_SHARE = 0.5
COMPILED, MOST_COMPILED = 10_000_000, 220_000_000
"""Kernels that oneDNN compiles on a processor in bf16 for each length, and keeps (torch 2.13);
`few_lengths` limits their number. A later run in the same process has them already, and they count
as part of that run (`run_memory`)."""
SMALLEST_BUDGET = 64
PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "overhead")


@dataclass(frozen=True)
class Setup(Storage):
    """How a model is stored, and a run on it."""

    computed: str = "fp32"
    device: str = "cpu"
    targets: tuple[Target, ...] = ()
    trainable: int = 0
    optimizer: str = "adamw"
    uses_dora: bool = False
    tokens: int = 512
    """Of the largest batch, padding included."""
    row: int = 0
    """The tokens that each of them attends to at most, its own row; 0 where it is all tokens."""
    lengths: int = 16
    """How many lengths packs or rows have, as they are computed."""
    learned_share: float = 1.0
    checkpointing: bool = False
    can_checkpoint: bool = True
    attention_apart: bool = True
    scored_heads: int = 0
    """Heads of a layer whose attention weights are kept for the backward pass, in fp32."""
    casts_scores: bool = False
    """Whether they are kept in half precision, too."""
    exact: bool = False
    """Whether a processor allocates exactly, see `memory.exact_allocation`."""
    reuses_blocks: bool = memory.REUSES_BLOCKS

    @property
    def unpacks_to_fp32(self) -> bool:
        """Whether layers give fp32 under autocast: 4-bit weights are unpacked to it on a CPU."""
        return self.device == "cpu" and self.quantization in ("nf4", "fp4")

    @property
    def is_lean(self) -> bool:
        """Whether layers are those of `lean_layers`."""
        return not self.uses_dora and self.quantization == "none"

    @property
    def casts_weights(self) -> bool:
        """Whether weights in fp32 are computed in half precision."""
        return self.computed != "fp32" and self.stored == "fp32"

    @classmethod
    def of_run(
        cls,
        train: Train,
        facts: ModelFacts,
        *,
        config: LoraConfig,
        layers: list[Target],
        learned_share: float,
        computed: str,
        layout: dict[str, Any],
    ) -> "Setup":
        """Describe a run on a loaded base."""
        targets = matched(config, layers)
        return cls(
            stored=facts.precision,
            quantization=facts.quantization,
            double_quant=facts.double_quant,
            computed=computed,
            device=facts.device.split(":")[0],
            targets=tuple(targets),
            trainable=count_trainable(config, targets),
            optimizer=train.optimizer,
            uses_dora=bool(config.use_dora),
            learned_share=learned_share,
            checkpointing=train.gradient_checkpointing,
            **layout,
        )


@dataclass(frozen=True)
class Estimate:
    """Bytes by part. `run` is what a run takes beyond the loaded base."""

    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)

    @property
    def run(self) -> int:
        return sum(size for name, size in self.parts if name != "weights")

    @property
    def largest(self) -> tuple[str, int]:
        """The largest part of the run itself."""
        return max((part for part in self.parts if part[0] != "weights"), key=lambda part: part[1])


def layout_of(model: PreTrainedModel, packs: Packs, *, rounded: bool) -> dict[str, Any]:
    """Return the fields of a setup that depend on how a model computes such packs.

    `rounded` is with the padding of `few_lengths`.
    """
    config = model.config.get_text_config()
    packed = packs.used_layout == "packed"
    eager = not packed and model.config._attn_implementation == "eager"
    # PyTorch 2.13 has no fused attention with ALiBi's biases.
    scored = eager or (not packed and layouts.uses_alibi(config.to_dict()))
    shapes = [packs.shape(index, rounded=rounded) for index in range(len(packs))]
    tokens = max((rows * length for rows, length in shapes), default=0)
    pairs = max((rows * length**2 for rows, length in shapes), default=0)
    longest = max(packs.lengths, default=0)
    return {
        "tokens": tokens,
        "row": longest if packs.used_layout == "single" else -(-pairs // max(tokens, 1)),
        "lengths": len(set(shapes)),
        "attention_apart": packed and packed_attention.could_use(model),
        "scored_heads": int(getattr(config, "num_attention_heads", 0) or 0) if scored else 0,
        "casts_scores": eager,
        "can_checkpoint": step_loss.can_checkpoint(model),
    }


def estimate(shape: Shape, setup: Setup) -> Estimate:
    """Return what a model and a run on it take; see the module's docstring for the formula."""
    sizes = {
        "weights": weight_bytes(shape, setup),
        "adapter": 4 * setup.trainable,
        "gradients": 4 * setup.trainable,
        "optimiser": round(ADAM_BYTES[setup.optimizer] * setup.trainable),
        "activations": kept_activations(shape, setup),
        "logits": _logits(shape, setup),
        "overhead": _overhead(shape, setup),
    }
    if setup.checkpointing:  # the logits are freed before a layer is recomputed
        overlap = min(sizes["logits"], _layer_activations(shape, setup))
        sizes["activations"] -= overlap
    for name in ("activations", "logits"):
        sizes[name] = round(sizes[name] * _fragmentation(setup))
    return Estimate(tuple((name, sizes[name]) for name in PARTS))


def settle(shape: Shape, setup: Setup, free: int) -> Setup:
    """Choose the memory settings of a run where memory is tight; both cost speed.

    Exact allocation, where the run takes much of the free memory. On a GPU or a quantised base,
    which is chosen to save memory, also gradient checkpointing, where the run would not fit
    without it.
    """
    if needs_checkpointing(shape, setup, free):
        setup = replace(setup, checkpointing=True)
    tight = estimate(shape, replace(setup, exact=False)).run > TIGHT_SHARE * free
    return replace(setup, exact=setup.checkpointing or tight)


def needs_checkpointing(shape: Shape, setup: Setup, free: int) -> bool:
    """Tell whether a run on a GPU or a quantised base would only fit with checkpointing."""
    chosen_here = setup.quantization != "none" or setup.device != "cpu"
    if not chosen_here or setup.checkpointing or not setup.can_checkpoint:
        return False
    return estimate(shape, replace(setup, exact=True)).run > free


def largest_budget(shape: Shape, setup: Setup, free: int) -> int:
    """Return the most tokens per batch whose run fits into `free` bytes; 0 where none does."""
    low, high = 0, 1 << 20
    while high - low > SMALLEST_BUDGET:
        middle = (low + high) // 2 // SMALLEST_BUDGET * SMALLEST_BUDGET
        if middle <= low:
            break
        fits = estimate(shape, replace(setup, tokens=middle, exact=True)).run <= free
        low, high = (middle, high) if fits else (low, middle)
    return low


def smallest_change(
    shape: Shape, setup: Setup, free: int, *, longest: int
) -> dict[str, int | bool] | None:
    """Return the smallest change of a run's settings that makes it fit; None where none does.

    Slightly fewer tokens per batch cost nothing; checkpointing costs a third of the speed; both
    together come last. Tokens per batch never go below the longest example, which would be cut.
    """
    shortest = max(min(longest, setup.tokens), SMALLEST_BUDGET)
    checkpointed = replace(setup, checkpointing=True)
    plain, lean = (largest_budget(shape, each, free) for each in (setup, checkpointed))
    if plain >= max(setup.tokens // 2, shortest):
        return {"tokens_per_step": min(plain, setup.tokens)}
    if not setup.can_checkpoint:
        return {"tokens_per_step": plain} if plain >= shortest else None
    if not setup.checkpointing and lean >= setup.tokens:
        return {"gradient_checkpointing": True}
    if plain >= shortest:
        return {"tokens_per_step": plain}
    if lean >= shortest:
        return {"tokens_per_step": lean, "gradient_checkpointing": True}
    return None


def words(change: dict[str, int | bool]) -> str:
    """Return a change of settings in words."""
    parts = []
    if "gradient_checkpointing" in change:
        parts.append("gradient checkpointing")
    if "tokens_per_step" in change:
        parts.append(f"{change['tokens_per_step']:,} tokens per batch")
    return " and ".join(parts)


def _fragmentation(setup: Setup) -> float:
    if setup.device != "cpu":
        return FRAGMENTED_ON_GPU
    if setup.reuses_blocks:
        unpacks = setup.checkpointing and setup.quantization != "none"
        return FRAGMENTED_UNPACKING if unpacks else FRAGMENTED_REUSING
    return FRAGMENTED_EXACT if setup.exact else FRAGMENTED


def kept_activations(shape: Shape, setup: Setup) -> int:
    """Return the bytes that the backward pass needs of a forward pass, the loss apart."""
    layer = _layer_activations(shape, setup)
    if not setup.checkpointing:
        kept = shape.layers * layer
    else:
        size = 4 if setup.quantization != "none" else BYTES[setup.stored]
        kept = shape.layers * size * shape.width * setup.tokens + layer
    mask = 0 if setup.attention_apart else 4 * setup.tokens * _row(setup)
    mask *= max(setup.scored_heads, 1)
    return kept + mask + _adapted_parameters(shape, setup)


def _adapted_parameters(shape: Shape, setup: Setup) -> int:
    """Return the bytes of adapted parameters, of experts above all, during a step.

    PEFT 0.21.2 adds the change of an adapted parameter to a copy of it, which is kept until the
    backward pass; with gradient checkpointing only those of one layer are there at once. The
    gradient of such a copy has its size, too.
    """
    sizes = [BYTES[setup.stored] * each.numbers for each in setup.targets if each.kind != "layer"]
    in_one_layer = 2 * sum(sizes) // max(shape.layers, 1)
    return in_one_layer if setup.checkpointing else sum(sizes) + in_one_layer


def _layer_activations(shape: Shape, setup: Setup) -> int:
    """Return the bytes that one layer keeps for its backward pass."""
    width, heads, inner = shape.width, shape.heads_width, 2 * shape.gates * shape.inner
    if setup.computed == "fp32":
        numbers = 4 * (4 * width + 5 * heads + inner)
    else:
        inputs = 4 if setup.is_lean else 10  # one cast for layers that share an input, or each
        numbers = (8 + inputs) * width + _half_attention(setup) * heads + 2 * inner
        if setup.unpacks_to_fp32:
            numbers += 2 * (inner - shape.inner)
    each = 6 if setup.casts_scores and setup.computed != "fp32" else 4
    scores = each * setup.scored_heads * _row(setup)
    return setup.tokens * (numbers + scores) + _dora(shape, setup)


def _half_attention(setup: Setup) -> int:
    """Return the bytes of attention's inputs and outputs in half precision, per number of a head.

    On a processor it is computed in fp32 where our own attention is used (`packed_attention`) or
    where weights are kept.
    """
    if setup.device == "cpu" and setup.attention_apart:
        return 18
    return 14 if setup.device == "cpu" and setup.scored_heads else 10


def _dora(shape: Shape, setup: Setup) -> int:
    """Return what DoRA keeps in one layer: two outputs, and a product with an identity matrix."""
    if not setup.uses_dora:
        return 0
    adapted = setup.targets or tuple(shape.adaptable)
    numbers = sum(2 * setup.tokens * each.outputs + each.inputs**2 for each in adapted)
    return BYTES[setup.computed] * numbers // max(shape.layers, 1)


def _row(setup: Setup) -> int:
    """Return the tokens that each token attends to at most."""
    return min(setup.row, setup.tokens) or setup.tokens


def _logits(shape: Shape, setup: Setup) -> int:
    """Return the bytes of the head's input, and of the loss over a part of it (`chunked_loss`)."""
    learned = round(setup.tokens * setup.learned_share)
    half = setup.computed != "fp32"
    part = min(learned, chunked_loss.rows(shape.vocabulary))
    size = LOGIT_BYTES + 4 * half
    return part * shape.vocabulary * size + 2 * learned * shape.width * BYTES[setup.computed]


def _cast_weights(shape: Shape, setup: Setup) -> int:
    """Return the bytes of weights that are cast to half precision: all of them, or the largest."""
    if not setup.casts_weights:
        return 0
    head = shape.width * shape.vocabulary
    if setup.checkpointing:
        return 2 * max(head, shape.largest)
    return 2 * (head + (shape.linear_numbers if setup.is_lean else 0))


def _overhead(shape: Shape, setup: Setup) -> int:
    size = BYTES[setup.computed]
    unpacked = 0 if setup.quantization == "none" else shape.largest * (4 if size == 4 else 6)
    moment = setup.tokens * size * (2 * shape.inner + 2 * shape.width)
    compiled = 0
    if (setup.device, setup.computed) == ("cpu", "bf16"):
        compiled = min(COMPILED * setup.lengths, MOST_COMPILED)
    libraries = LIBRARIES_REUSING if setup.reuses_blocks else LIBRARIES
    if setup.device != "cpu":
        libraries = LIBRARIES_ON_GPU
    return libraries + compiled + unpacked + moment + _cast_weights(shape, setup)
