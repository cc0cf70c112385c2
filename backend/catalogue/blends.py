"""Catalogue of blend methods, and which adapters each method can blend. Knows no tensors.

The page and the engine use the same checks, so the page offers only what the engine can do.
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
"""Methods whose weight change is exactly scaling x B x A on the unchanged base."""
CONVERTIBLE = frozenset({"dora", *init_methods.REPEATABLE})
"""Methods that `ConvertAdapter` can convert to plain LoRA."""
CHANGES_THE_BASE = init_methods.CHANGING


class Recipe(BaseModel):
    """One way to blend. `works_on`: the factors B and A separately, or the weight change itself."""

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
        """The equivalent method for adapters of different rank."""
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
            "Exact weighted sum. The result is larger because ranks add up. Recommended.",
            exactness="exact",
        ),
        _recipe(
            "svd",
            "Exact sum, made smaller (svd)",
            "The closest adapter of the chosen rank. Exact if the rank is large enough.",
            "rank",
            exactness="best of its rank",
        ),
        _recipe(
            "linear",
            "Mix of factors (linear)",
            "Mixes the factors A and B separately: small and quick, but far from the sum unless "
            "the adapters are closely related, such as two stages of one run.",
            exactness="rough",
        ),
        _recipe(
            "ties_svd",
            "Settle conflicts (ties_svd)",
            "Keeps each adapter's largest changes and drops those whose sign differs from the "
            "majority. For adapters that conflict.",
            "rank",
            "density",
            "majority_sign",
        ),
        _recipe(
            "dare_linear_svd",
            "Thin out at random (dare_linear_svd)",
            "Drops changes at random and scales up the rest. For many adapters at once.",
            "rank",
            "density",
            "seed",
        ),
        _recipe(
            "dare_ties_svd",
            "Thin out, then settle conflicts (dare_ties_svd)",
            "Drops changes at random, then those whose sign differs from the majority.",
            "rank",
            "density",
            "majority_sign",
            "seed",
        ),
        _recipe(
            "magnitude_prune_svd",
            "Keep the largest (magnitude_prune_svd)",
            "Keeps only each adapter's largest changes and adds them up.",
            "rank",
            "density",
        ),
        _recipe(
            "ties",
            "Settle conflicts in the factors (ties)",
            "Like ties_svd, but on the factors A and B separately: quicker and less exact.",
            "density",
            "majority_sign",
        ),
        _recipe(
            "dare_linear",
            "Thin out the factors (dare_linear)",
            "Like dare_linear_svd, but on the factors A and B separately: quicker and less exact.",
            "density",
            "seed",
        ),
        _recipe(
            "dare_ties",
            "Thin out and settle the factors (dare_ties)",
            "Like dare_ties_svd, but on the factors A and B separately: quicker and less exact.",
            "density",
            "majority_sign",
            "seed",
        ),
        _recipe(
            "magnitude_prune",
            "Keep the largest of the factors (magnitude_prune)",
            "Like magnitude_prune_svd, but on the factors A and B separately: quicker and less "
            "exact.",
            "density",
        ),
    )
}


def unfit(info: AdapterInfo) -> Problem | None:
    """Return why an adapter cannot be blended at all; None if it can."""
    kind = info.method.casefold()
    if info.by_parameter:
        return Problem(
            what=f"{info.name!r} changes parameters of experts, which PEFT cannot blend.",
            cure="Use it alone, or train it again without its experts.",
        )
    if kind in PLAIN and info.strength == "any":
        return None
    if kind in CHANGES_THE_BASE:
        return Problem(
            what=f"{info.name!r} is a {info.method} adapter. It works only on the base that it "
            "changed, so its weight change alone cannot be blended.",
            cure=_before_blending(info),
        )
    return Problem(
        what=f"{info.name!r} is a {info.method} adapter. Its effect is more than the product of "
        "two factors, and a blend would silently lose the rest.",
        cure=_before_blending(info),
    )


def is_convertible(info: AdapterInfo) -> bool:
    """Return whether an adapter can be converted to plain LoRA."""
    return info.method.casefold() in CONVERTIBLE and not info.by_parameter


def _before_blending(info: AdapterInfo) -> str:
    if is_convertible(info):
        return f"Convert {info.name!r} to plain LoRA first."
    return "Use it alone, or train it again as plain LoRA."


def unblendable(sources: Sequence[AdapterInfo]) -> Problem | None:
    """Return why these adapters cannot be blended by any method; None if they can."""
    if not sources:
        return Problem(what="There are no ingredients yet.", cure="Choose the adapters to blend.")
    for info in sources:
        problem = unfit(info)
        if problem is not None:
            return problem
    if len({info.id for info in sources}) < len(sources):
        twice = next(info.name for info in sources if [s.id for s in sources].count(info.id) > 1)
        return Problem(
            what=f"{twice!r} is named twice.", cure="Name it once and add up its weights."
        )
    bases = {info.base_fingerprint: info.base_name for info in sources}
    if len(bases) > 1:
        return Problem(
            what=f"These adapters were made for different bases ({', '.join(bases.values())}).",
            cure="Blend only adapters of the same base.",
        )
    return None


def obstacle(method: BlendMethod, sources: Sequence[AdapterInfo]) -> Problem | None:
    """Return why a method cannot blend these adapters, with a hint; None if it can."""
    problem = unblendable(sources)
    if problem is not None:
        return problem
    ranks = sorted({info.rank for info in sources})
    if BLENDS[method].needs_equal_ranks and len(ranks) > 1:
        return unequal_ranks(method, ranks)
    return None


def unequal_ranks(method: BlendMethod, ranks: Sequence[int], where: str = "") -> Problem:
    """Return that a method needs equal ranks, and which method to use instead."""
    way_out = BLENDS[method].way_out
    cure = "cat, which works" if way_out == "cat" else f"{way_out} or cat, which work"
    place = f" in {where}" if where else ""
    found = " and ".join(map(str, ranks))
    return Problem(
        what=f"{method} needs ingredients of equal rank, but their ranks{place} are {found}.",
        cure=f"Use {cure} with any ranks.",
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
