"""A base is computed from its weights only where that gives what its modules give."""

from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend.engine.inference import prompts, ways
from backend.engine.inference.direct_model import DirectModel, Segment
from backend.engine.models import loading
from tests.architectures import tiny_models
from tests.engine.architectures import load
from tests.engine.inference.test_ways import TOKENS, base_of, expected

RIGHT: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}
OTHERS = ("gpt2", "gemma", "gemma2", "olmo2", "phi3", "cohere", "mixtral", "mamba")
QUESTION = "What does a fox eat in winter, and where does it sleep?"


@pytest.mark.parametrize("kind", RIGHT)
def test_models_built_like_a_llama_score_as_their_modules_do(kind: str, tmp_path: Path) -> None:
    base = load(tiny_models.write_model(tmp_path / kind, kind, **RIGHT[kind]))
    model = ways.direct(base)
    assert model is not None
    ids = prompts.encode_prompt(base, [rq.Message(role="user", content=QUESTION)])
    with torch.inference_mode():
        whole = base.model(ids).logits[0].float()
        cache = model.cache(2)
        found = model.scores([Segment(cache, {}, ids[0, :5].tolist())])
        torch.testing.assert_close(found[0], whole[4], rtol=1e-5, atol=1e-5)
        for place in range(5, ids.shape[1]):
            found = model.scores([Segment(cache, {}, ids[0, place : place + 1].tolist())])
            torch.testing.assert_close(found[0], whole[place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_left_to_their_modules(kind: str, tmp_path: Path) -> None:
    base = strong(base_of(tmp_path, kind))
    assert ways.direct(base) is None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"embedding_multiplier": 3.0}),
        ("granite", {"logits_scaling": 2.0}),
        ("smollm3", {"no_rope_layer_interval": 2}),
    ],
)
def test_a_model_of_the_same_parts_that_computes_in_another_way_is_found_out(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Granite has numbers of its own between the parts, SmolLM3 layers without positions."""
    folder = tiny_models.write_model(tmp_path / kind, kind, **changes)
    assert ways.direct(strong(load(folder))) is None


def strong(base: loading.Base) -> loading.Base:
    """Make weights larger, so that each part of a random model shows in its scores."""
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return base


def test_a_window_is_left_to_the_modules_where_it_counts(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path / "mistral", "mistral", sliding_window=16)
    base = load(folder)
    model = DirectModel(base)
    assert model.longest == 16
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(folder))).result(timeout=60)
        request = rq.Compare(prompts=["Hi", QUESTION], variants=[[]], max_new_tokens=TOKENS)
        answers = service.start(request).result(timeout=60).answers
    assert answers == [[expected(base, "Hi"), expected(base, QUESTION)]]


def test_bits_do_not_depend_on_company_where_that_is_said(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter", precision="bf16")).result(timeout=120)
        base = service.engine._runtime._engine.session.base  # type: ignore[union-attr]
        model = ways.direct(base)
        assert model is not None
        texts = [list(range(5, 12 + 3 * number)) for number in range(5)]
        caches = [model.cache(30) for _ in texts]
        with torch.inference_mode():
            alone = []
            for text, cache in zip(texts, caches, strict=True):
                model.scores([Segment(cache, {}, text)])
                alone.append(model.scores([Segment(cache, {}, [7])])[0])
                cache.crop(len(text))
            together = model.scores([Segment(cache, {}, [7]) for cache in caches])
        if ways.is_exact(model):
            assert torch.equal(together, torch.stack(alone))
        for one, other in zip(together, alone, strict=True):
            assert (one - other).abs().mean() <= ways.DIRECT_MEAN * other.abs().max()


def test_a_pass_that_fails_leaves_the_cache_as_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    base = base_of(tmp_path, "llama")
    model = DirectModel(base)
    cache = model.cache(4)
    with torch.inference_mode():
        expected_scores = model.scores([Segment(model.cache(4), {}, [5, 6, 7])])
        with monkeypatch.context() as patch:
            patch.setattr(DirectModel, "_mlp", None)
            with pytest.raises(TypeError):
                model.scores([Segment(cache, {}, [9, 9])])
        assert len(cache) == 0
        assert torch.equal(model.scores([Segment(cache, {}, [5, 6, 7])]), expected_scores)


def test_weights_are_where_products_read_them_fast(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter", precision="bf16")).result(timeout=120)
        base = service.engine._runtime._engine.session.base  # type: ignore[union-attr]
        assert all(each.data_ptr() % 64 == 0 for each in base.model.parameters())
