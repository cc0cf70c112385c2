"""Packed documents are proven apart exactly, in any precision; a leak of any size is noticed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from backend import requests as rq
from backend.engine.core import dtypes
from backend.engine.methods import peft_io
from backend.engine.models import loading, quantization
from backend.engine.models.linear_layers import linear_layers
from backend.engine.steps import isolation, packed_attention, packing, step_loss
from backend.errors import ModelError, VerificationFailed
from tests.engine import quantised_bases
from tests.engine.architectures import load, write

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
LEAKING = "test_leaking"
EXAMPLES = 3
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a tiny model of an architecture once."""
    root, known = tmp_path_factory.mktemp("bases"), {}

    def make(kind: str, **changes: Any) -> Path:
        key = f"{kind}-{len(changes)}"
        if key not in known:
            known[key] = write(root / key, kind, **changes)
        return known[key]

    return make


def in_precision(base: loading.Base, precision: str) -> loading.Base:
    """Give a base the weights and facts of a half precision."""
    base.model.to(dtypes.DTYPES[precision])
    base.facts = base.facts.model_copy(update={"precision": precision})
    return base


@contextmanager
def trained(base: loading.Base) -> Iterator[PeftModel]:
    """Put an adapter on a base that does something, as in the middle of a run."""
    config = peft_io.configure(rq.Lora(rank=1), linear_layers(base.model), base.model.name_or_path)
    config.init_lora_weights = False
    peft = peft_io.apply(base.model, None, config, "ad_test")
    try:
        yield peft
    finally:
        peft.unload()


def prove(base: loading.Base, precision: str = "", *, checkpointing: bool = False) -> str:
    """Prove the isolation as a run does; returns which attention was used."""
    norms = quantization.prepared(base.model)
    with norms, trained(base) as peft, step_loss.step_mode(base, checkpointing=checkpointing):
        used = str(base.model.config._attn_implementation)
        isolation.require_isolation(base, peft, precision or base.facts.precision)
    return used


DENSE = (
    "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "phi", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "codegen", "opt",
)  # fmt: skip
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", DENSE + EXPERTS)
def test_models_that_keep_documents_apart_are_proven_right(
    folder: Write, kind: str, precision: str
) -> None:
    base = in_precision(load(folder(kind)), precision)

    for checkpointing in (False, True):
        prove(base, checkpointing=checkpointing)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "rwkv", "falcon", "lfm2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_that_cannot_keep_documents_apart_are_refused(
    folder: Write, kind: str, precision: str
) -> None:
    base = in_precision(load(folder(kind)), precision)

    with pytest.raises(VerificationFailed, match=r"influence each other|give other results"):
        prove(base)


@pytest.mark.parametrize("kind", [*quantised_bases.KINDS, "double"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_quantised_bases_are_proven_right(kind: str, checkpointing: bool) -> None:
    double = {"quantization": "nf4", "double_quant": True}
    base = quantised_bases.base(**(double if kind == "double" else {"quantization": kind}))

    assert prove(base, checkpointing=checkpointing) == packed_attention.NAME


@pytest.mark.parametrize("kind", quantised_bases.KINDS)
def test_a_leak_on_a_quantised_base_is_noticed(kind: str) -> None:
    base = quantised_bases.base(kind)

    with leaking(base, small), pytest.raises(VerificationFailed, match="influence each other"):
        prove(base)


@pytest.mark.parametrize("way", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_each_way_to_attend_is_proven_right(
    folder: Write, monkeypatch: pytest.MonkeyPatch, way: str, compute: str
) -> None:
    base = load(folder("llama"))
    if way != "documents":
        base.model.set_attn_implementation(way)
        monkeypatch.setattr(packed_attention, "could_use", lambda _: False)

    assert prove(base, compute) == (packed_attention.NAME if way == "documents" else way)


# -- leaks ---------------------------------------------------------------------------------------


def everything(own: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """See all tokens of the pack, later ones of other documents, too."""
    return own | (owners(starts)[:, None] != owners(starts)[None])


def later(own: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Let documents see those before them: a leak to later documents only."""
    return own | (owners(starts)[:, None] > owners(starts)[None])


def earlier(own: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Let documents see those after them: a leak to earlier documents only."""
    return own | (owners(starts)[:, None] < owners(starts)[None])


def small(own: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Let the last document see the first token of the pack, hardly: in bf16 this rounds away."""
    bias = torch.zeros(own.shape).masked_fill(~own, -torch.inf)
    end = int((owners(starts) <= EXAMPLES).sum())  # what fills the pack up comes after them
    bias[end - 2, 0] = -9.0  # the last token of all predicts none
    return bias


def owners(starts: torch.Tensor) -> torch.Tensor:
    return starts.long().cumsum(0)


@contextmanager
def leaking(
    base: loading.Base,
    leak: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    layer: int | None = None,
) -> Iterator[None]:
    """Let a model attend through a mask that leaks, in all of its layers or in one."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: Any, *inputs: Any, position_ids: Any = None, **options: Any) -> Any:
        query, key, value, mask = inputs
        if layer in (None, module.layer_idx) and mask is not None:
            starts = ~mask[0, 0].diagonal(-1)  # a token that does not see the one before it
            starts = torch.cat([torch.ones(1, dtype=torch.bool), starts])
            mask = leak(mask[0, 0], starts)[None, None]
            mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        return plain(module, query, key, value, mask, **options)

    AttentionInterface.register(LEAKING, attend)
    AttentionMaskInterface.register(LEAKING, sdpa_mask)
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation(LEAKING)
    try:
        yield
    finally:
        base.model.set_attn_implementation(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("leak", [everything, later, earlier, small])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_leak_is_noticed(folder: Write, kind: str, leak: Any, precision: str) -> None:
    base = in_precision(load(folder(kind)), precision)

    for checkpointing in (False, True):
        with leaking(base, leak), pytest.raises(VerificationFailed, match="influence each other"):
            prove(base, checkpointing=checkpointing)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("computed", ["fp32", "bf16"])
def test_a_small_leak_in_one_layer_is_noticed(folder: Write, layer: int, computed: str) -> None:
    """Its effect on the loss is far below what bf16 rounds away."""
    base = load(folder("llama"))

    with (
        leaking(base, small, layer=layer),
        pytest.raises(VerificationFailed, match="example 3 depend on example 1"),
    ):
        prove(base, computed)


def test_a_leak_of_our_own_attention_is_noticed(
    folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention of the run is what is proven, not another one beside it."""
    base = load(folder("llama"))
    original = packed_attention.Layout.of
    with trained(base) as peft, step_loss.step_mode(base):
        assert base.model.config._attn_implementation == packed_attention.NAME
        as_one = classmethod(lambda cls, lengths: original([sum(lengths)]))
        monkeypatch.setattr(packed_attention.Layout, "of", as_one)
        with pytest.raises(VerificationFailed, match="example 2 depend on example 1"):
            isolation.require_isolation(base, peft, "bf16")


def test_what_has_no_gradient_is_noticed_by_its_bits(folder: Write) -> None:
    base = load(folder("llama"))

    def add_largest(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.01 * output.detach().amax(1, keepdim=True)

    hook = base.model.model.layers[0].mlp.register_forward_hook(add_largest)
    with pytest.raises(VerificationFailed, match="influence each other"):
        prove(base)
    hook.remove()
    prove(base)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_positions_that_go_on_from_document_to_document_are_noticed(
    folder: Write, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """GPT-2 learns what each position means; its mask is right here."""
    base = in_precision(load(folder("gpt2")), precision)
    embed, seen = base.model.transformer.wpe, []

    def go_on(module: Any, inputs: Any) -> Any:
        seen.append(inputs[0].shape)
        return (torch.arange(inputs[0].shape[-1])[None],)

    embed.register_forward_pre_hook(go_on)
    with pytest.raises(VerificationFailed, match="packed examples give other results"):
        prove(base)
    assert seen


# -- where it cannot be proven -------------------------------------------------------------------


def test_a_router_that_drops_tokens_is_refused_with_the_reason(folder: Write) -> None:
    base = load(folder("mixtral"))
    base.model.config.expert_capacity = 8

    with pytest.raises(VerificationFailed, match=r"cannot be proven .* \(expert_capacity\)"):
        prove(base)


@pytest.mark.parametrize("way", ["detached", "raising"])
def test_a_gradient_that_cannot_be_taken_is_refused_with_the_reason(
    folder: Write, way: str
) -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise RuntimeError("This kernel has no backward pass")

    def end(module: Any, inputs: Any) -> Any:
        return (inputs[0].detach() if way == "detached" else Stop.apply(inputs[0]), *inputs[1:])

    base = load(folder("llama"))
    base.model.model.layers[0].register_forward_pre_hook(end)
    reason = "pass no gradient on" if way == "detached" else "has no backward pass"
    with pytest.raises(VerificationFailed, match=f"cannot be proven .* {reason}"):
        prove(base)


def test_a_base_that_computes_no_numbers_is_not_called_a_leak(folder: Write) -> None:
    base = load(folder("llama"))
    base.model.model.norm.weight.data[3] = torch.nan

    with pytest.raises(ModelError, match="not finite"):
        prove(base)


# -- what it leaves behind -----------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_proof_changes_nothing(folder: Write, training: bool) -> None:
    base = load(folder("gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1))
    with trained(base) as peft, step_loss.step_mode(base):
        peft.train(training)
        random = torch.get_rng_state()
        before = {name: p.detach().clone() for name, p in peft.named_parameters()}
        hooks = sum(len(part._forward_hooks) for part in peft.modules())

        isolation.require_isolation(base, peft, "fp32")

        assert torch.equal(torch.get_rng_state(), random)
        assert peft.training is training
        assert all(p.grad is None for p in peft.parameters())
        assert all(torch.equal(p, before[name]) for name, p in peft.named_parameters())
        assert sum(len(part._forward_hooks) for part in peft.modules()) == hooks


def test_a_run_proves_what_it_trains(monkeypatch: pytest.MonkeyPatch, base_only: Any) -> None:
    """With the run's model, precision and attention; a leak ends it before the first step."""
    original, seen = isolation.require_isolation, []

    def noting(base: loading.Base, model: Any, precision: str, *layout: Any) -> None:
        inside = base.model.config._attn_implementation
        seen.append((type(model), precision, inside, base.model.is_gradient_checkpointing))
        original(base, model, precision, *layout)

    monkeypatch.setattr(isolation, "require_isolation", noting)
    request = rq.Train(
        name=base_only.free_name("proven"), data="starter:pirate", max_steps=1,
        tokens_per_step=256, precision="bf16", gradient_checkpointing=True,
    )  # fmt: skip
    base_only.start(request).result(timeout=120)

    assert [each[1:] for each in seen] == [("bf16", packed_attention.NAME, True)]
    assert issubclass(seen[0][0], PeftModel)


# -- our attention beside the model's own --------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("wrong", [None, "scaling", "cap", "bias"])
def test_our_attention_is_used_only_where_it_is_the_models_own(
    folder: Write, monkeypatch: pytest.MonkeyPatch, precision: str, wrong: str | None
) -> None:
    """A wrong one must not pass because bf16 rounds: each layer is compared in fp32."""
    base = in_precision(load(folder("llama")), precision)
    original = packed_attention.document_attention

    def differing(module: Any, query: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        if wrong == "scaling":
            options["scaling"] = 0.999 * options["scaling"]
        if wrong == "cap":
            query = 5 * torch.tanh(query / 5)
        out, weights = original(module, query, *inputs, **options)
        return out + (1e-4 if wrong == "bias" else 0.0), weights

    monkeypatch.setattr(packed_attention, "document_attention", differing)
    with step_loss.step_mode(base):
        used = base.model.config._attn_implementation

    assert (used == packed_attention.NAME) == (wrong is None)


def test_models_whose_attention_is_their_own_keep_it(folder: Write) -> None:
    for kind in ("gemma2", "gemma3_text", "mistral"):
        base = load(folder(kind))
        with step_loss.step_mode(base):
            assert base.model.config._attn_implementation not in (packed_attention.NAME, None)


def test_packing_lays_documents_as_the_proof_expects() -> None:
    """Longest first; the owner of each token follows from that."""
    batch = packing.collate([
        packing.Tokens(torch.arange(n).int().numpy(), torch.ones(n).bool().numpy())
        for n in (3, 6, 5)
    ])  # fmt: skip

    assert batch["position_ids"].tolist()[0] == [*range(6), *range(5), *range(3)]
