"""Each layout trains exactly as separate documents, and the fastest one that is proven is used."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.engine.methods import peft_io
from backend.engine.models import loading
from backend.engine.models.linear_layers import linear_layers
from backend.engine.steps import few_lengths, layouts, model_call, packing, rows, step_loss
from backend.errors import VerificationFailed
from backend.results.training_layout import TrainingLayout
from tests.architectures.tiny_models import write_model
from tests.engine.architectures import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
IN_ROWS = {
    "falcon": {"alibi": True},
    "bloom": {},
    "mpt": {},
    "mamba": {},
    "rwkv": {},
    "gpt_oss": {},
}
TARGETS = {"mamba": ["in_proj"]}
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a tiny model of an architecture once."""
    root, known = tmp_path_factory.mktemp("bases"), {}

    def make(kind: str) -> Path:
        if kind not in known:
            known[kind] = write_model(root / kind, kind, **IN_ROWS.get(kind, {}))
        return known[kind]

    return make


@contextmanager
def trained(base: loading.Base, kind: str) -> Iterator[PeftModel]:
    """Put a trainable adapter on a base that does something, as in the middle of a run."""
    adapter = rq.Lora(rank=1, targets=TARGETS.get(kind, "all-linear"))
    config = peft_io.configure(adapter, linear_layers(base.model), base.model.name_or_path)
    config.init_lora_weights = False
    torch.manual_seed(0)
    peft = peft_io.apply(base.model, None, config, "ad_test")
    peft.set_adapter("ad_test")
    try:
        yield peft.eval()
    finally:
        peft.unload()


def documents(*lengths: int) -> list[Tokens]:
    generator = np.random.default_rng(0)
    return [
        Tokens(generator.integers(10, 90, n).astype(np.int32), generator.random(n) < 0.7)
        for n in lengths
    ]


def plain_loss(model: PeftModel, docs: list[Tokens]) -> torch.Tensor:
    """Return the summed loss of documents, each in a plain call of its own."""
    total = torch.zeros(())
    for each in docs:
        ids = torch.from_numpy(each.ids.astype(np.int64))[None]
        chances = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        found = chances.gather(1, ids[0, 1:, None])[:, 0]
        total = total - found[torch.from_numpy(each.learned[1:])].sum()
    return total


def loss(model: PeftModel, docs: list[Tokens], layout: TrainingLayout) -> torch.Tensor:
    return step_loss.loss_sum(model, packing.laid_out(docs, layout), nullcontext())


def gradient(model: PeftModel, value: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["rows", "single"])
@pytest.mark.parametrize("kind", [*IN_ROWS, "llama", "opt", "bert"])
def test_loss_and_gradients_equal_those_of_separate_documents(
    folder: Write, kind: str, layout: TrainingLayout
) -> None:
    base, docs = load(folder(kind)), documents(7, 23, 2, 40, 3)

    with trained(base, kind) as peft, step_loss.step_mode(base, layout=layout):
        separate, ours = plain_loss(peft, docs), loss(peft, docs, layout)
        expected, found = gradient(peft, separate), gradient(peft, ours)

    assert ours.item() == pytest.approx(separate.item(), rel=1e-5)
    assert expected.norm() > 0
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("kind", IN_ROWS)
def test_models_whose_packs_leak_get_rows(folder: Write, kind: str) -> None:
    base = load(folder(kind))

    layouts.note(base)
    with trained(base, kind) as peft, step_loss.step_mode(base) as mode:
        proven = layouts.prove(base, peft, "fp32", mode)

    assert base.facts.layout == proven.layout == "rows"
    assert "would influence each other in this model" in base.facts.layout_reason
    assert base.facts.training_blocker == ""


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "qwen3_moe"])
def test_packs_stay_where_they_are_proven(folder: Write, kind: str) -> None:
    base = load(folder(kind))

    layouts.note(base)

    assert (base.facts.layout, base.facts.layout_reason) == ("packed", "")


def test_rows_that_influence_each_other_are_computed_alone(folder: Write) -> None:
    base, docs = load(folder("bloom")), documents(5, 9, 4)
    base.model.transformer.word_embeddings_layernorm.register_forward_hook(
        lambda _, __, output: output + 1e-3 * output.roll(1, 0) if len(output) > 1 else output
    )

    layouts.note(base)
    with trained(base, "bloom") as peft, step_loss.step_mode(base, layout="single"):
        alone, separate = loss(peft, docs, "single"), plain_loss(peft, docs)

    assert base.facts.layout == "single"
    assert "examples in rows of one batch would influence" in base.facts.layout_reason
    assert alone.item() == pytest.approx(separate.item(), rel=1e-5)


def test_a_router_that_drops_tokens_gets_its_documents_one_by_one(folder: Write) -> None:
    base = load(folder("qwen3_moe"))
    base.model.config.expert_capacity = 4

    layouts.note(base)

    assert base.facts.layout == "single"
    assert "drops tokens" in base.facts.layout_reason


def test_the_text_of_a_library_is_left_out(folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    base, plain = load(folder("llama")), step_loss.forward

    def broken(model: Any, batch: Any) -> torch.Tensor:
        if len(batch["input_ids"]) == 1:  # packed
            raise RuntimeError("view size is not compatible. Use .reshape(...) instead.")
        return plain(model, batch)

    monkeypatch.setattr(step_loss, "forward", broken)
    layouts.note(base)

    assert base.facts.layout != "packed"
    assert base.facts.layout_reason == (
        "it cannot be proven that packed examples do not influence each other in this model"
    )


def test_a_base_whose_numbers_are_not_finite_cannot_be_trained(folder: Write) -> None:
    base = load(folder("bloom"))
    with torch.no_grad():
        base.model.transformer.ln_f.weight.fill_(torch.nan)

    layouts.note(base)

    assert "not finite" in base.facts.training_blocker


def test_logits_are_computed_only_where_they_are_needed(folder: Write) -> None:
    base, batch = load(folder("bloom")), rows.collate(documents(7, 23, 2))
    seen: list[torch.Size] = []
    head = base.model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, output: seen.append(output.shape))

    logits = step_loss.forward(base.model, batch)

    assert seen == [(1, len(batch["keep"]), logits.shape[-1])]


def test_a_head_that_cannot_be_narrowed_sees_every_position(folder: Write) -> None:
    base, docs = load(folder("bloom")), documents(7, 23, 2)
    original = type(base.model).forward

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, use_cache: Any = None):
        options = {"attention_mask": attention_mask, "use_cache": use_cache}
        output = original(self, input_ids, **options)
        output.logits = output.logits.view(*input_ids.shape, -1)
        return output

    kind = type("Reshaping", (type(base.model),), {"forward": forward})
    base.model.__class__ = kind
    layouts.note(base)

    assert base.facts.layout == "rows"
    assert loss(base.model, docs, "rows").item() == pytest.approx(
        plain_loss(base.model, docs).item(), rel=1e-5
    )


def test_a_failed_trial_leaves_the_head_as_it_was(folder: Write) -> None:
    base = load(folder("bloom"))

    with pytest.raises(VerificationFailed), model_call.wide_head(base.model):
        raise VerificationFailed("It failed.")

    assert model_call.inner(base.model) not in model_call._wide


# -- packs ---------------------------------------------------------------------------------------


def lengths(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [min(500, int(generator.lognormvariate(4, 0.8)) + 2) for _ in range(count)]


def test_rows_are_planned_within_the_budget_with_little_padding() -> None:
    known = lengths(2000)

    plan = packing.plan(known, budget=512, epochs=2, seed=1, layout="rows")

    sizes = [len(pack) * max(known[number] for number in pack) for pack in plan]
    assert sorted(n for pack in plan for n in pack) == sorted([*range(2000), *range(2000)])
    assert max(sizes) <= 512
    assert 1 - 2 * sum(known) / sum(sizes) < 0.12
    assert plan == packing.plan(known, budget=512, epochs=2, seed=1, layout="rows")
    assert plan != packing.plan(known, budget=512, epochs=2, seed=2, layout="rows")


def test_long_and_short_rows_come_in_random_order() -> None:
    known = lengths(2000)

    plan = packing.plan(known, budget=512, epochs=1, seed=1, layout="rows")

    halves = len(plan) // 2
    means = [
        np.mean([known[n] for pack in part for n in pack])
        for part in (plan[:halves], plan[halves:])
    ]
    assert means[0] == pytest.approx(means[1], rel=0.1)


def test_an_extension_in_rows_sees_what_a_longer_run_would_have_seen() -> None:
    known = lengths(50)

    longer = packing.plan(known, budget=512, epochs=3, seed=3, layout="rows")
    drawn = packing.segments(known, budget=512, epochs=[2, 1], seed=3, layout="rows")

    assert drawn[0] + drawn[1] == longer


def test_padding_and_the_longest_row_are_counted() -> None:
    packs = packing.Packs(documents(4, 10, 6), [[0, 1], [2]], layout="rows")

    assert [packs.tokens(n) for n in range(2)] == [14, 6]
    assert [packs.computed(n) for n in range(2)] == [20, 6]
    assert packs.padding_share == pytest.approx(6 / 26)
    assert [packs.shape(n) for n in range(2)] == [(2, 10), (1, 6)]
    assert packs.shape(0, rounded=True) == (2, 16)


@pytest.mark.parametrize("layout", ["rows", "single"])
def test_a_pack_without_loss_trains_nothing(folder: Write, layout: TrainingLayout) -> None:
    base = load(folder("bloom"))
    packs = packing.Packs(documents(9, 4, 5), [[0, 1], [2], [1]], shared_by=2, layout=layout)

    with trained(base, "bloom") as peft:
        value = step_loss.loss_sum(peft, packs[3], nullcontext())
        found = gradient(peft, value)

    assert value.item() == 0
    assert not found.any()


@pytest.mark.parametrize("layout", ["packed", "rows", "single"])
def test_every_layout_is_evaluated_alike(folder: Write, layout: TrainingLayout) -> None:
    base, docs = load(folder("llama")), documents(9, 14, 5, 30)
    right = base.model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )[0].numpy()
    docs.append(Tokens(right.astype(np.int32), np.arange(len(right)) >= 3))

    packs = packing.evaluation_packs(docs, 40, layout)
    found = step_loss.evaluate(base.model, packs, base.device, "fp32")

    tokens = sum(int(each.learned[1:].sum()) for each in docs)
    assert (found.tokens, found.examples) == (tokens, 5)
    assert found.exact_match == pytest.approx(0.2)
    with torch.no_grad():
        assert found.loss == pytest.approx(plain_loss(base.model, docs).item() / tokens, rel=1e-5)


# -- few lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5), (3, 170), (25, 20), (4, 128), (7, 73), (2, 511)])
def test_rows_are_padded_to_few_lengths(shape: tuple[int, int]) -> None:
    batch = rows.collate(documents(*[shape[1]] * shape[0]))

    filled = few_lengths.rounded(batch)
    height, width = filled["input_ids"].shape
    again = few_lengths.rounded(filled)

    assert height == shape[0]
    assert 0 <= width - shape[1] < max(8, shape[1] / 8)
    assert width % 8 == 0
    assert all(torch.equal(again[name], filled[name]) for name in filled)


def test_no_row_gets_longer_than_the_model_reads() -> None:
    batch = rows.collate(documents(30, 29))

    assert few_lengths.rounded(batch, 30)["input_ids"].shape[1] == 30


@pytest.mark.parametrize("kind", ["bloom", "gpt_oss", "mamba"])
def test_padded_rows_give_the_same_loss_in_bf16(folder: Write, kind: str) -> None:
    base, docs = load(folder(kind)), documents(7, 23, 2, 17)
    batch = rows.collate(docs)

    with torch.no_grad():
        plain = step_loss.loss_sum(base.model, batch, nullcontext()).item()
        half = step_loss.loss_sum(base.model, batch, step_loss.autocast(base.device, "bf16"))

    assert half.item() == pytest.approx(plain, rel=3e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rows_are_proven_in_half_precision(folder: Write, precision: str) -> None:
    base = load(folder("falcon"))

    with trained(base, "falcon") as peft, step_loss.step_mode(base, layout="rows") as mode:
        found = layouts.prove(base, peft, precision, mode, "rows")

    assert found.layout == "rows"
