"""Blends against plain PEFT in a fresh model, the exact weighted sum, and what must be refused."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.engine.adapters import saving
from backend.engine.methods import low_rank
from backend.engine.methods.low_rank import Factor
from backend.errors import InvalidRequest, NotFound, Unsupported, VerificationFailed
from tests.engine import made_adapters as made
from tests.engine.upstream.still import assert_still

METHODS = get_args(rq.BlendMethod)
EXACT = ("cat", "svd")
TEXTS = ["Where is the cat?", "The cat is on the mat.", "Hello!"]
MIX = [("pirate", 0.7), ("polite", 0.3)]
numbers = iter(range(1000))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with made.tiny_service(tmp_path_factory.mktemp("combine")) as service:
        made.make_adapter(service, "pirate", seed=1)
        made.make_adapter(service, "polite", seed=2)
        wide = {"r": 6, "lora_alpha": 3, "target_modules": ["v_proj", "down_proj"]}
        made.make_adapter(service, "wide", seed=3, **wide)
        made.make_adapter(service, "rs", method="rsLoRA", seed=4, use_rslora=True)
        patterns = {
            "rank_pattern": {"layers.1.mlp.down_proj": 2, "q_proj": 3},
            "alpha_pattern": {"layers.0.mlp.down_proj": 5, "q_proj": 1},
        }
        made.make_adapter(service, "patterned", seed=5, **patterns)
        made.make_adapter(service, "patterned too", seed=6, **patterns)
        first_layer = {"target_modules": ["layers.0.self_attn.q_proj", "up_proj"]}
        made.make_adapter(service, "first layer", seed=7, **first_layer)
        made.make_adapter(service, "dora", method="DoRA", use_dora=True)
        yield service


def combine(service: Service, sources: list[tuple[str, float]], **fields: Any) -> rs.Blend:
    request = rq.Combine(name=f"blend {next(numbers)}", sources=sources, **fields)
    blend: rs.Blend = service.start(request).result(timeout=120)
    return blend


def scores(service: Service, variant: rq.Variant) -> list[float]:
    request = rq.Score(texts=TEXTS, variants=[variant])
    values: list[float] = service.start(request).result(timeout=60).scores[0]
    return values


def reloaded(service: Service, blend: rs.Blend) -> dict[str, torch.Tensor]:
    """Return what the blend changes once plain PEFT has read it."""
    return made.changes(made.fresh_peft(service, blend.adapter.name), blend.adapter.id)


def exact(service: Service, sources: list[tuple[str, float]]) -> dict[str, torch.Tensor]:
    model = made.fresh_peft(service, *(name for name, _ in sources))
    return made.exact_sum(model, [(service.library.get(n).id, w) for n, w in sources])


def by_peft(
    service: Service, sources: list[tuple[str, float]], method: str, *, seed: int = 42, **more: Any
) -> dict[str, torch.Tensor]:
    model = made.fresh_peft(service, *(name for name, _ in sources))
    ids = [service.library.get(name).id for name, _ in sources]
    torch.manual_seed(seed)
    weights = [weight for _, weight in sources]
    model.base_model.add_weighted_adapter(ids, weights, "ad_peft", method, **more)
    return made.changes(model, "ad_peft")


# -- the same as PEFT ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.3, -0.6)], ids=["plus", "minus"])
@pytest.mark.parametrize("method", METHODS)
def test_a_blend_is_what_peft_makes(
    service: Service, method: rq.BlendMethod, weights: tuple[float, float]
) -> None:
    sources = list(zip(("pirate", "polite"), weights, strict=True))

    blend = combine(service, sources, method=method, density=0.4, seed=7)

    expected = by_peft(service, sources, method, density=0.4, seed=7)
    assert made.distance(reloaded(service, blend), expected) < 1e-5


@pytest.mark.parametrize("method", [m for m in METHODS if m.endswith("svd") or m == "cat"])
def test_unequal_ranks_and_targets_are_blended_as_peft_does(
    service: Service, method: rq.BlendMethod
) -> None:
    sources = [("pirate", 0.8), ("wide", -0.5)]

    blend = combine(service, sources, method=method)

    expected = by_peft(service, sources, method, density=0.5)
    assert made.distance(reloaded(service, blend), expected) < 1e-5


@pytest.mark.parametrize("method", ["ties", "dare_ties", "ties_svd", "dare_ties_svd"])
def test_the_majority_can_be_counted(service: Service, method: rq.BlendMethod) -> None:
    sources = [*MIX, ("patterned", 0.5)] if method.endswith("svd") else MIX
    settings = {"density": 0.6, "majority_sign": "frequency"}

    blend = combine(service, sources, method=method, **settings)

    expected = by_peft(service, sources, method, density=0.6, majority_sign_method="frequency")
    assert made.distance(reloaded(service, blend), expected) < 1e-5
    other = combine(service, sources, method=method, density=0.6, majority_sign="total")
    assert made.distance(reloaded(service, other), expected) > 1e-3


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_svd_reaches_the_rank_that_is_asked_for(service: Service, rank: int) -> None:
    blend = combine(service, MIX, method="svd", rank=rank)

    assert blend.rank == rank
    assert made.distance(reloaded(service, blend), by_peft(service, MIX, "svd", svd_rank=rank)) < (
        1e-5
    )


def test_svd_of_tied_singular_values_is_as_close_as_peft(service: Service) -> None:
    info = made.make_adapter(service, "tied", seed=9, r=4, lora_alpha=4)
    folder = service.library.folder(info.id)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    for key, tensor in weights.items():
        weights[key] = torch.linalg.qr(tensor.T if "lora_A" in key else tensor).Q
        weights[key] = (weights[key].T if "lora_A" in key else weights[key]).contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    blend = combine(service, [("tied", 1.0)], method="svd", rank=2)

    assert blend.relative_error == pytest.approx(0.5**0.5, rel=1e-5)


# -- the exact weighted sum ----------------------------------------------------------------------

DIFFERENT = [
    [("rs", 1.0), ("pirate", 0.5)],
    [("pirate", 0.5), ("rs", 1.0)],
    [("patterned", 0.9), ("wide", 0.4), ("first layer", -0.3)],
    [("first layer", 1.5)],
    [("patterned", -1.0)],
]


@pytest.mark.parametrize("sources", DIFFERENT, ids=["rs+", "+rs", "patterns", "one", "negative"])
@pytest.mark.parametrize("method", EXACT)
def test_any_sources_are_summed_exactly(
    service: Service, sources: list[tuple[str, float]], method: rq.BlendMethod
) -> None:
    blend = combine(service, sources, method=method, rank=64)

    assert made.distance(reloaded(service, blend), exact(service, sources)) < 1e-5
    assert blend.relative_error < 1e-6
    assert scores(service, [(blend.adapter.name, 1.0)]) == pytest.approx(
        scores(service, sources), rel=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_one_ingredient_is_copied_times_its_weight(
    service: Service, method: rq.BlendMethod
) -> None:
    blend = combine(service, [("patterned", -0.5)], method=method)

    assert made.distance(reloaded(service, blend), exact(service, [("patterned", -0.5)])) < 1e-5


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune"])
def test_equal_patterns_are_mixed_layer_by_layer(service: Service, method: rq.BlendMethod) -> None:
    blend = combine(service, [("patterned", 0.5), ("patterned too", 0.5)], method=method)

    config = made.fresh_peft(service, blend.adapter.name).peft_config[blend.adapter.id]
    assert not config.use_rslora
    assert set(config.rank_pattern.values()) <= {2, 3}
    sizes = {layer: torch.linalg.matrix_rank(d) for layer, d in reloaded(service, blend).items()}
    assert sizes["model.layers.1.mlp.down_proj"] == 2
    assert sizes["model.layers.0.self_attn.q_proj"] == 3


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("dare")])
def test_what_is_said_of_the_distance_is_true(service: Service, method: rq.BlendMethod) -> None:
    blend = combine(service, MIX, method=method)

    made_of, wanted = reloaded(service, blend), exact(service, MIX)
    assert blend.relative_error == pytest.approx(made.distance(made_of, wanted), abs=1e-5)
    for layer, error in blend.relative_error_per_layer.items():
        one = made.distance({layer: made_of[layer]}, {layer: wanted[layer]})
        assert error == pytest.approx(one, abs=1e-5)


def test_weights_of_zero_change_nothing(service: Service) -> None:
    for method in ("cat", "svd", "linear", "dare_ties_svd"):
        blend = combine(service, [("pirate", 0.0), ("polite", 0.0)], method=method)
        assert scores(service, [(blend.adapter.name, 1.0)]) == scores(service, [])
        assert blend.relative_error == 0
        assert "changes nothing" in " ".join(blend.notes)


def test_a_rank_beyond_a_layer_is_capped_and_told(service: Service) -> None:
    blend = combine(service, MIX, method="ties_svd", rank=1000, density=0.5)

    assert blend.rank == 64  # the smallest side of the tiny model's layers
    assert "Rank 1000 is more than the layers can use" in blend.notes[0]
    assert made.distance(reloaded(service, blend), by_peft_at_full_rank(service)) < 1e-5


def by_peft_at_full_rank(service: Service) -> dict[str, torch.Tensor]:
    return by_peft(service, MIX, "ties_svd", density=0.5, svd_rank=64)


def test_many_ranks_that_add_up_beyond_a_layer_stay_exact(service: Service) -> None:
    for number in range(3):
        name = f"thick {number}"
        made.make_adapter(service, name, seed=20 + number, r=32, target_modules=["q_proj"])
    sources = [(f"thick {number}", 0.4) for number in range(3)]

    blend = combine(service, sources, method="cat")

    assert blend.rank == 64
    assert made.distance(reloaded(service, blend), exact(service, sources)) < 1e-5


def test_a_sum_that_no_model_can_compute_with_is_refused() -> None:
    """Weights have a bound; what foreign adapters bring has none."""
    huge = Factor(torch.full((1, 4), 1e20), torch.full((4, 1), 1e20), 1.0)

    with pytest.raises(InvalidRequest, match=r"overflows in q_proj\. Use smaller"):
        low_rank.require_usable({"q_proj": huge})


# -- whole, or not at all ------------------------------------------------------------------------


def test_a_blend_is_in_the_library_and_not_active(service: Service) -> None:
    service.start(rq.SetActive(adapters=[("polite", 0.5)])).result(timeout=60)
    before, colour = scores(service, [("polite", 0.5)]), service.library.next_colour()

    blend = combine(service, [("pirate", 0.7), ("polite", -0.3)], method="ties_svd", rank=5)

    info = service.library.get(blend.adapter.name)
    assert info == blend.adapter
    assert info.origin == "blend"
    assert (
        info.recipe
        == "0.7 pirate - 0.3 polite (ties_svd, rank 5, density 0.5, majority sign total)"
    )
    assert info.colour == colour
    assert info.targets == ("down_proj", "q_proj")
    assert blend.max_difference == 0.0
    assert service.snapshot().active == [("polite", 0.5)]
    assert scores(service, [("polite", 0.5)]) == before
    card = (service.library.folder(info.id) / "README.md").read_text()
    assert info.recipe in card


def test_the_same_seed_leaves_out_the_same_numbers(service: Service) -> None:
    torch.manual_seed(1)
    first = combine(service, MIX, method="dare_linear", seed=3)
    torch.manual_seed(2)
    again = combine(service, MIX, method="dare_linear", seed=3)
    other = combine(service, MIX, method="dare_linear", seed=4)

    assert made.distance(reloaded(service, again), reloaded(service, first)) == 0
    assert made.distance(reloaded(service, other), reloaded(service, first)) > 0.1
    assert first.seed == 3


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sources": [("dora", 1.0), ("pirate", 1.0)]}, Unsupported, "'dora' is a DoRA.*Convert"),
    ({"sources": [("pirate", 1.0), ("pirate", 0.5)]}, Unsupported, "named twice"),
    ({"sources": [("pirate", 1.0), ("nobody", 0.5)]}, NotFound, "no adapter called 'nobody'"),
    ({"sources": MIX, "name": "polite"}, InvalidRequest, "already an adapter called 'polite'"),
    (
        {"sources": [("pirate", 1.0), ("wide", 1.0)], "method": "dare_ties"},
        Unsupported,
        "equal rank, but their ranks are 4 and 6. Use dare_ties_svd or cat",
    ),
    (
        {"sources": [("pirate", 1.0), ("patterned", 1.0)], "method": "linear"},
        Unsupported,
        r"their ranks in model.layers.0.self_attn.q_proj are 3 and 4. Use cat",
    ),
    (
        {"sources": [("pirate", 1e38), ("polite", 1.0)]},
        InvalidRequest,
        "must be at most 10,000,000",
    ),
]


@pytest.mark.parametrize(("fields", "error", "sentence"), REFUSED)
def test_what_cannot_be_blended_is_refused_and_nothing_changes(
    service: Service, fields: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    before = service.library.all()

    with pytest.raises(error, match=sentence):
        service.start(rq.Combine(**{"name": "not to be", **fields})).result(timeout=60)

    assert service.library.all() == before


KEPT: list[tuple[str, dict[str, Any], str]] = [
    ("olora", {"init_lora_weights": "olora"}, "initialised with 'olora'.*Convert"),
    ("biased", {"bias": "lora_only"}, "contains biases"),
    ("saver", {"modules_to_save": ["lm_head"]}, "contains whole modules"),
    ("tokens", {"trainable_token_indices": [1, 2]}, "contains trained tokens"),
]


@pytest.mark.parametrize(("name", "config", "sentence"), KEPT, ids=[each[0] for each in KEPT])
def test_what_is_more_than_two_factors_is_refused(
    service: Service, name: str, config: dict[str, Any], sentence: str
) -> None:
    made.make_adapter(service, name, **config)

    with pytest.raises(Unsupported, match=sentence):
        combine(service, [(name, 1.0), ("pirate", 1.0)])


@pytest.mark.parametrize("density", [0.0, 1.5, None])
def test_a_density_that_cannot_be_is_refused_at_once(density: float | None) -> None:
    with pytest.raises(InvalidRequest, match="Density"):
        rq.Combine(name="x", sources=MIX, method="ties", density=density)


def test_adapters_of_another_base_are_refused(service: Service) -> None:
    info = made.make_adapter(service, "foreign")
    other = info.model_copy(update={"base_fingerprint": "else", "base_name": "another"})
    service.library.write_sidecar(service.library.folder(info.id), other)

    with pytest.raises(Unsupported, match="different bases"):
        combine(service, [("foreign", 1.0), ("pirate", 1.0)])
    with pytest.raises(Unsupported, match="Load 'another' to blend it"):
        combine(service, [("foreign", 1.0)])


def test_a_failed_blend_leaves_nothing_and_its_name_free(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(service, MIX), service.library.all()
    request = rq.Combine(name="phoenix", sources=MIX)
    with monkeypatch.context() as broken:

        def fail(*_: Any) -> float:
            raise VerificationFailed("It is not the same.")

        broken.setattr(saving, "verify", fail)
        with pytest.raises(VerificationFailed):
            service.start(request).result(timeout=60)

    assert (scores(service, MIX), service.library.all()) == before
    assert not list(service.library.root.glob(".*"))
    assert service.start(request).result(timeout=60).adapter.name == "phoenix"


# -- what upstream still does --------------------------------------------------------------------


def test_peft_still_scales_a_blend_of_rslora_too_far(service: Service) -> None:
    """Once it is mended, rsLoRA can join the oracle's rows."""
    sources = [("rs", 1.0), ("pirate", 0.5)]

    expected = exact(service, sources)
    found = by_peft(service, sources, "cat")

    wrong = made.distance(found, expected) == pytest.approx(8**0.5 - 1, rel=1e-3)
    assert_still(wrong, "blends of rsLoRA (issue 3761)", "scaling.py (scaling_of)")
