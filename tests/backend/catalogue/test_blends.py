"""The catalogue of blend methods, and why one is not possible."""

from typing import get_args

import pytest

from backend import requests as rq
from backend import results as rs
from backend.catalogue import blends


def adapter(name: str, **fields: object) -> rs.AdapterInfo:
    known = {
        "id": f"ad_{name}", "name": name, "colour": "#E69F00", "method": "LoRA", "rank": 8,
        "parameters": 1, "base_name": "starter", "base_fingerprint": "f", "created": 0.0,
    }  # fmt: skip
    return rs.AdapterInfo.model_validate({**known, **fields})


def test_every_method_has_an_entry_and_names_fields_of_the_request() -> None:
    assert set(blends.BLENDS) == set(get_args(rq.BlendMethod))
    for recipe in blends.BLENDS.values():
        assert set(recipe.fields) <= set(rq.Combine.model_fields)
        assert recipe.summary.endswith(".")


@pytest.mark.parametrize("method", get_args(rq.BlendMethod))
def test_equal_plain_adapters_are_possible_with_every_method(method: rq.BlendMethod) -> None:
    assert blends.obstacle(method, [adapter("a"), adapter("b", method="rsLoRA")]) is None


@pytest.mark.parametrize("method", get_args(rq.BlendMethod))
def test_unequal_ranks_need_a_method_that_works_on_the_change(method: rq.BlendMethod) -> None:
    problem = blends.obstacle(method, [adapter("a"), adapter("b", rank=16)])

    if method == "cat" or method.endswith("svd"):
        assert problem is None
    else:
        assert problem is not None
        assert "8 and 16" in problem.what
        way_out = blends.BLENDS[method].way_out
        assert way_out in problem.cure
        assert blends.obstacle(way_out, [adapter("a"), adapter("b", rank=16)]) is None


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ([], "no ingredients yet"),
        ([adapter("a", method="DoRA", strength="on-off")], "'a' is a DoRA adapter"),
        ([adapter("a", method="PiSSA")], "works only on the base that it changed"),
        ([adapter("a"), adapter("a")], "'a' is named twice"),
        ([adapter("a"), adapter("b", base_fingerprint="g")], "different bases"),
    ],
)
def test_what_no_method_can_do_is_said(sources: list[rs.AdapterInfo], sentence: str) -> None:
    problem = blends.obstacle("cat", sources)

    assert problem is not None
    assert sentence in problem.what
    assert problem.cure


def test_a_recipe_reads_as_a_sum() -> None:
    sources = [("pirate", 0.7), ("polite", -0.3)]

    assert blends.recipe_text(sources, "cat", seed=1) == "0.7 pirate - 0.3 polite (cat)"
    assert blends.recipe_text([("a", -1.0)], "dare_linear", density=0.5, seed=3) == (
        "-1 a (dare_linear, density 0.5, seed 3)"
    )
