"""Catalogue of blend methods, and why one is not possible for some adapters. Knows no tensors.

Page and engine ask the same functions, so that what the page offers is what the engine does.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from backend.catalogue import init_methods
from backend.results import AdapterInfo, Problem

BlendMethod = Literal[
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
BlendField = Literal["rank", "density", "majority_sign", "seed"]
PLAIN = frozenset({"lora", "rslora"})
"""Methods whose weight change is nothing but scaling x B x A on the untouched base."""
CONVERTIBLE = frozenset({"dora", *init_methods.REPEATABLE})
"""Methods that `ConvertAdapter` makes plain LoRA of."""
CHANGES_THE_BASE = init_methods.CHANGING


class Recipe(BaseModel):
    """One way to blend. `works_on`: the factors B and A apart, or the weight change itself."""

    model_config = ConfigDict(frozen=True)

    id: BlendMethod
    title: str
    summary: str
    fields: tuple[BlendField, ...]
    works_on: Literal["factors", "change"]
    exactness: Literal["exact", "best of its rank", "rough", "by intention"]

    @property
    def needs_equal_ranks(self) -> bool:
        return self.works_on == "factors" and self.id != "cat"

    @property
    def way_out(self) -> BlendMethod:
        """The method that does the same where ranks differ."""
        ways: dict[str, BlendMethod] = {
            "linear": "cat",
            "ties": "ties_svd",
            "dare_linear": "dare_linear_svd",
            "dare_ties": "dare_ties_svd",
            "magnitude_prune": "magnitude_prune_svd",
        }
        return ways.get(self.id, self.id)


def _recipe(
    id: BlendMethod,
    title: str,
    summary: str,
    *fields: BlendField,
    exactness: Literal["exact", "best of its rank", "rough", "by intention"] = "by intention",
) -> Recipe:
    works_on: Literal["factors", "change"] = "change" if id.endswith("svd") else "factors"
    return Recipe(
        id=id, title=title, summary=summary, fields=fields, works_on=works_on, exactness=exactness
    )


BLENDS: dict[BlendMethod, Recipe] = {
    recipe.id: recipe
    for recipe in (
        _recipe(
            "cat",
            "Exact sum (cat)",
            "Exactly the weighted sum, at the price of size: the ranks add up. Start here.",
            exactness="exact",
        ),
        _recipe(
            "svd",
            "Exact sum, made smaller (svd)",
            "The closest adapter of the rank that you choose; exact once the rank is large enough.",
            "rank",
            exactness="best of its rank",
        ),
        _recipe(
            "linear",
            "Mix of factors (linear)",
            "Mixes the two halves of each adapter apart: small and quick, but far from the sum "
            "unless the adapters are relatives, such as two stages of one run.",
            exactness="rough",
        ),
        _recipe(
            "ties_svd",
            "Settle conflicts (ties_svd)",
            "Keeps each adapter's largest changes and drops those that pull against the majority: "
            "for adapters that get in each other's way.",
            "rank",
            "density",
            "majority_sign",
        ),
        _recipe(
            "dare_linear_svd",
            "Thin out at random (dare_linear_svd)",
            "Leaves changes out at random and scales up the rest: for many adapters at once.",
            "rank",
            "density",
            "seed",
        ),
        _recipe(
            "dare_ties_svd",
            "Thin out, then settle conflicts (dare_ties_svd)",
            "Leaves changes out at random, then drops those that pull against the majority.",
            "rank",
            "density",
            "majority_sign",
            "seed",
        ),
        _recipe(
            "magnitude_prune_svd",
            "Keep the largest (magnitude_prune_svd)",
            "Keeps only each adapter's largest changes and adds them up: for a leaner blend.",
            "rank",
            "density",
        ),
        _recipe(
            "ties",
            "Settle conflicts in the factors (ties)",
            "As ties_svd, but on the two halves of each adapter apart: quicker and rougher.",
            "density",
            "majority_sign",
        ),
        _recipe(
            "dare_linear",
            "Thin out the factors (dare_linear)",
            "As dare_linear_svd, but on the two halves of each adapter apart: quicker and rougher.",
            "density",
            "seed",
        ),
        _recipe(
            "dare_ties",
            "Thin out and settle the factors (dare_ties)",
            "As dare_ties_svd, but on the two halves of each adapter apart: quicker and rougher.",
            "density",
            "majority_sign",
            "seed",
        ),
        _recipe(
            "magnitude_prune",
            "Keep the largest of the factors (magnitude_prune)",
            "As magnitude_prune_svd, but on the two halves apart: quicker and rougher.",
            "density",
        ),
    )
}


def unfit(info: AdapterInfo) -> Problem | None:
    """Say why an adapter cannot be an ingredient at all; None where it can."""
    kind = info.method.casefold()
    if kind in PLAIN and info.strength == "any":
        return None
    if kind in CHANGES_THE_BASE:
        return Problem(
            what=f"{info.name!r} is a {info.method} adapter: it is right only on the base that it "
            "changed, so its weight change alone cannot be blended.",
            cure=_before_blending(info),
        )
    return Problem(
        what=f"{info.name!r} is a {info.method} adapter: its effect is not only the product of "
        "two factors, and a blend would silently lose the rest.",
        cure=_before_blending(info),
    )


def is_convertible(info: AdapterInfo) -> bool:
    """Tell whether there is a way to plain LoRA for an adapter."""
    return info.method.casefold() in CONVERTIBLE


def _before_blending(info: AdapterInfo) -> str:
    if is_convertible(info):
        return f"Convert {info.name!r} to plain LoRA first."
    return "Use it alone, or train it again as plain LoRA."


def unblendable(sources: Sequence[AdapterInfo]) -> Problem | None:
    """Say why these adapters cannot be blended by any method; None where they can."""
    if not sources:
        return Problem(what="There are no ingredients yet.", cure="Pick the adapters to blend.")
    for info in sources:
        problem = unfit(info)
        if problem is not None:
            return problem
    if len({info.id for info in sources}) < len(sources):
        twice = next(info.name for info in sources if [s.id for s in sources].count(info.id) > 1)
        return Problem(
            what=f"{twice!r} is named twice.", cure="Name it once and add its weights up."
        )
    bases = {info.base_fingerprint: info.base_name for info in sources}
    if len(bases) > 1:
        return Problem(
            what=f"These adapters were made for different bases ({', '.join(bases.values())}).",
            cure="Blend adapters of one base.",
        )
    return None


def obstacle(method: BlendMethod, sources: Sequence[AdapterInfo]) -> Problem | None:
    """Say why a method is not possible for these adapters, and the way out; None where it is."""
    problem = unblendable(sources)
    if problem is not None:
        return problem
    ranks = sorted({info.rank for info in sources})
    if BLENDS[method].needs_equal_ranks and len(ranks) > 1:
        return unequal_ranks(method, ranks)
    return None


def unequal_ranks(method: BlendMethod, ranks: Sequence[int], where: str = "") -> Problem:
    """Say that a method needs equal ranks, and what to take instead."""
    way_out = BLENDS[method].way_out
    cure = "cat, which works" if way_out == "cat" else f"{way_out} or cat, which work"
    place = f" in {where}" if where else ""
    found = " and ".join(map(str, ranks))
    return Problem(
        what=f"{method} needs ingredients of equal rank, and theirs{place} are {found}.",
        cure=f"Take {cure} with any ranks.",
    )


def recipe_text(
    sources: Sequence[tuple[str, float]],
    method: BlendMethod,
    *,
    rank: int | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int | None = None,
) -> str:
    """Write down how a blend was made: "0.7 pirate + 0.3 polite (cat)"."""
    known = {"rank": rank, "density": density, "majority_sign": majority_sign, "seed": seed}
    given = [
        f"{name.replace('_', ' ')} {known[name]}"
        for name in BLENDS[method].fields
        if known[name] is not None
    ]
    return f"{_sum_text(sources)} ({', '.join([method, *given])})"


def _sum_text(sources: Sequence[tuple[str, float]]) -> str:
    words = ""
    for number, (name, weight) in enumerate(sources):
        sign = "-" if weight < 0 else "+"
        joint = f" {sign} " if number else ("-" if weight < 0 else "")
        words += f"{joint}{abs(weight):g} {name}"
    return words
