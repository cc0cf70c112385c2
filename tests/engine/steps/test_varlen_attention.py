"""Variable-length attention: used only where it is right. A stand-in computes what the kernel does.

The kernel itself needs a GPU, so here the stand-in has its signature and runs on a processor.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from backend.engine.methods import peft_io
from backend.engine.models import loading
from backend.engine.models.linear_layers import linear_layers
from backend.engine.steps import isolation, packed_attention, step_loss
from backend.errors import VerificationFailed
from backend.requests import Lora
from tests.engine.architectures import load, write
from tests.engine.steps.test_packing import documents, gradient, loss

REAL = varlen.varlen_attn
Attend = Callable[..., torch.Tensor]


def by_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute what `varlen_attn` documents; query, key, value: (tokens, heads, head_dim)."""
    assert cu_seq_q.dtype == torch.int32
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    starts = cu_seq_q.tolist()
    assert starts[0] == 0
    assert starts[-1] == len(query) == len(key)
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == max(b - a for a, b in pairwise(starts))
    parts = []
    for start, end in pairwise(starts):
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        repeat = len(q) // len(k)
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
    return torch.cat(parts, dim=1).transpose(0, 1)


def in_one(*inputs: Any, **options: Any) -> torch.Tensor:
    """Leak: compute all documents as one."""
    query, key, value = inputs[:3]
    whole = torch.tensor([0, len(query)], dtype=torch.int32)
    return by_documents(query, key, value, whole, whole, len(query), len(query), **options)


def in_one_unless_tried(*inputs: Any, **options: Any) -> torch.Tensor:
    """Leak, but not in the trial."""
    tried = len(inputs[0]) == sum(packed_attention.TRIAL_LENGTHS)
    return (by_documents if tried else in_one)(*inputs, **options)


def refuses(*inputs: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Attend], list[int]]]:
    """Let a stand-in be torch's kernel, in fp32 on a processor; returns the tokens of each call."""
    calls: list[int] = []

    def install(attend: Attend) -> list[int]:
        def counted(*inputs: Any, scale: Any, window_size: Any, enable_gqa: Any) -> torch.Tensor:
            calls.append(len(inputs[0]))
            return attend(
                *inputs, scale=scale, window_size=window_size, enable_gqa=enable_gqa
            )  # fmt: skip

        monkeypatch.setattr(varlen, "varlen_attn", counted)
        return calls

    monkeypatch.setattr(packed_attention, "VARLEN_DEVICES", ("cpu",))
    monkeypatch.setattr(packed_attention, "VARLEN_AGREES", {torch.float32: 1e-5})
    monkeypatch.setattr(packed_attention, "_works", {})
    packed_attention.varlen_kernel.cache_clear()
    yield install
    packed_attention.varlen_kernel.cache_clear()


@contextmanager
def trained(base: loading.Base) -> Iterator[PeftModel]:
    config = peft_io.configure(Lora(rank=2), linear_layers(base.model), base.model.name_or_path)
    config.init_lora_weights = False
    peft = peft_io.apply(base.model, None, config, "ad_test")
    peft.set_adapter("ad_test")
    try:
        yield peft
    finally:
        peft.unload()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> loading.Base:
    """A model whose heads share keys and values."""
    found = load(write(tmp_path_factory.mktemp("bases") / "llama", "llama"))
    config = found.model.config
    assert config.num_key_value_heads < config.num_attention_heads
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_equal_those_of_the_separate_documents(
    base: loading.Base, pretend: Callable[[Attend], list[int]], checkpointing: bool
) -> None:
    calls = pretend(by_documents)
    docs = documents(40, 7, 23, 2, 41)
    with trained(base) as peft:
        separate_loss = sum(loss(peft, [each]) for each in docs)
        separate = gradient(peft, [[each] for each in docs])
        with step_loss.step_mode(base, checkpointing=checkpointing):
            calls.clear()
            packed_loss, packed = loss(peft, docs), gradient(peft, [docs])

    assert set(calls) == {sum(map(len, docs))}
    assert packed_loss == pytest.approx(separate_loss, rel=1e-6)
    assert (packed - separate).norm() / separate.norm() < 1e-5


def test_padding_after_the_documents_gets_zeros(pretend: Callable[[Attend], list[int]]) -> None:
    calls = pretend(by_documents)
    layout = packed_attention.Layout.of([5, 3])
    query, key, value = (torch.randn(1, heads, 10, 8) for heads in (4, 2, 2))
    expected, _ = packed_attention.document_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout
    )
    assert not calls

    packed_attention.try_varlen(query, key)
    found, _ = packed_attention.document_attention(
        torch.nn.Identity(), query, key, value, None, layout=layout
    )

    assert calls[-1] == 8
    assert not found[:, 8:].any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_isolation_of_documents_is_proven_with_the_kernel(
    base: loading.Base, pretend: Callable[[Attend], list[int]]
) -> None:
    calls = pretend(by_documents)
    with trained(base) as peft, step_loss.step_mode(base):
        calls.clear()
        isolation.require_isolation(base, peft, "fp32")

    assert calls


@pytest.mark.parametrize("attend", [in_one, refuses])
def test_a_kernel_that_fails_its_trial_is_not_used(
    base: loading.Base, pretend: Callable[[Attend], list[int]], attend: Attend
) -> None:
    calls = pretend(attend)
    with trained(base) as peft, step_loss.step_mode(base):
        assert calls == [sum(packed_attention.TRIAL_LENGTHS)]
        isolation.require_isolation(base, peft, "fp32")
        assert base.model.config._attn_implementation == packed_attention.NAME

    assert len(calls) == 1


def test_a_kernel_that_leaks_after_its_trial_is_refused(
    base: loading.Base, pretend: Callable[[Attend], list[int]]
) -> None:
    pretend(in_one_unless_tried)
    with (
        trained(base) as peft,
        step_loss.step_mode(base),
        pytest.raises(VerificationFailed, match="influence each other"),
    ):
        isolation.require_isolation(base, peft, "fp32")


def test_half_precision_is_judged_by_its_own_bound(
    pretend: Callable[[Attend], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
    query, key = torch.zeros(1, 4, 9, 16), torch.zeros(1, 2, 9, 16)

    def nearly(*inputs: Any, **options: Any) -> torch.Tensor:
        return by_documents(*inputs, **{**options, "scale": 0.26})  # in place of 16 ** -0.5

    for attend, right in ((by_documents, True), (nearly, False)):
        pretend(attend)
        packed_attention.varlen_kernel.cache_clear()
        monkeypatch.setattr(packed_attention, "VARLEN_AGREES", halves)
        monkeypatch.setattr(packed_attention, "_works", {})
        packed_attention.try_varlen(query, key)
        assert list(packed_attention._works.values()) == [right, right], attend


def test_no_kernel_is_used_on_a_processor(base: loading.Base, monkeypatch: Any) -> None:
    calls: list[int] = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *inputs, **options: calls.append(1))
    with step_loss.step_mode(base):
        loss(base.model, documents(4, 3))

    assert not calls


def test_the_stand_in_is_called_as_torch_defines_it() -> None:
    real = inspect.signature(REAL).parameters
    ours = inspect.signature(by_documents).parameters

    assert list(real)[:7] == list(ours)[:7]
    for name in list(ours)[7:]:
        assert real[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert real[name].default == ours[name].default


def test_torch_without_what_is_needed_falls_back(
    pretend: Callable[[Attend], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_version(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):  # type: ignore[no-untyped-def]
        raise AssertionError("It has no scale.")

    monkeypatch.setattr(varlen, "varlen_attn", first_version)
    assert packed_attention.varlen_kernel() is None

    packed_attention.varlen_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)  # before torch 2.10
    assert packed_attention.varlen_kernel() is None


def test_an_installed_flash_attention_serves_where_torch_has_no_kernel(
    pretend: Callable[[Attend], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def flash_attn_varlen_func(  # as flash-attn 2.8 names its arguments
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
        softmax_scale=None, causal=False, window_size=(-1, -1),
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        calls.append(len(q))
        assert causal
        return by_documents(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            scale=softmax_scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    there = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", there)
    monkeypatch.setattr(packed_attention, "is_flash_attn_2_available", lambda: True)
    packed_attention.try_varlen(torch.zeros(1, 4, 9, 16), torch.zeros(1, 2, 9, 16))

    assert list(packed_attention._works.values()) == [True]
    assert calls


def test_torchs_own_kernel_takes_what_it_is_given() -> None:
    """Its shapes and its backward pass, without computing anything."""
    packed_attention.varlen_kernel.cache_clear()
    layout = packed_attention.Layout.of([5, 3]).to(torch.device("meta"))
    query, key, value = (
        torch.zeros(heads, 8, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (4, 2, 2)
    )

    (out,) = packed_attention._attend_varlen(query, key, value, layout, 0.1, 0.0)
    out.sum().backward()

    assert out.shape == query.shape
    assert query.grad is not None
    assert key.grad is not None
    assert (query.grad.shape, key.grad.shape) == (query.shape, key.shape)
