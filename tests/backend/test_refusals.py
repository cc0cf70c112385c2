"""Whatever is wrong with a value is said in our own words: the field, the value, what to do."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from backend import requests as rq
from backend.errors import InvalidRequest

KINDS: list[type[BaseModel]] = [*rq.BY_NAME.values(), rq.Lora, rq.Message]
FIELDS = [(kind, name) for kind in KINDS for name in kind.model_fields]
WRONG: list[Any] = [
    None, "", "odd", "../odd", "x" * 300_000, b"\xff", "\ud800", -1, 0, 2.5, 10**30, math.nan,
    math.inf, True, [], {}, {"a": 1}, [1], ["x"], [["x"]], [["x", "y"]], [["x", math.inf]], [[]],
    [[["x", "y"]]], [{"role": "nobody"}], ["x"] * 2000, object(),
]  # fmt: skip
FOREIGN = re.compile(
    r"(?i:input should|should be|should have|valid|unable to parse|pydantic|instance|dictionary"
    r"|surrogate|tuple|<|string)|\bNone\b|NoneType",
)


def refusals(kind: type[BaseModel], name: str) -> Iterator[tuple[Any, str]]:
    """Yield each value that the field refuses, with what is said."""
    for value in WRONG:
        try:
            kind(**{name: value})
        except InvalidRequest as error:
            yield value, str(error)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_no_refusal_speaks_pydantic(kind: type[BaseModel], name: str) -> None:
    told = list(refusals(kind, name))

    assert told
    for value, sentence in told:
        assert not FOREIGN.search(sentence), (value, sentence)
        assert sentence[-1] in ".?", (value, sentence)
        assert len(sentence) < 500, (value, sentence)


def numbers(kind: type[BaseModel]) -> Iterator[tuple[str, str, float]]:
    """Yield each bounded number of a request with a value just beyond each bound."""
    beyond = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
    for name, schema in kind.model_json_schema()["properties"].items():
        for part in schema.get("anyOf", [schema]):
            for key in (each for each in beyond if each in part):
                yield name, schema.get("label", name), part[key] + beyond[key]


BOUNDS = [(kind, *each) for kind in KINDS for each in numbers(kind)]


@pytest.mark.parametrize(("kind", "name", "label", "value"), BOUNDS)
def test_a_number_beyond_its_bounds_is_told_with_name_bound_value_and_cure(
    kind: type[BaseModel], name: str, label: str, value: float
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kind(**{name: value})

    sentence = str(caught.value)
    said = re.search(
        rf"{re.escape(label)} must be (at least|at most|more than|less than) \S+, got "
        r"(\S+)\. (Try \S+(, or leave it empty)?|Leave it empty if in doubt)\.",
        sentence,
    )
    assert said, sentence
    assert float(said[2].replace(",", "")) == pytest.approx(value, rel=1e-5)


def test_every_bound_of_training_is_among_those_tried() -> None:
    assert len(BOUNDS) > 50


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: rq.Lora(rank=2.5), "Rank must be a whole number, got 2.5. Try 2 or 3."),
        (lambda: rq.Lora(rank=0.5), "Rank must be a whole number, got 0.5. Try 1."),
        (
            lambda: rq.Lora(alpha=-1),
            "Alpha must be more than 0, got -1. Leave it empty if in doubt.",
        ),
        (
            lambda: rq.Train(name="x", max_steps=0),
            "Maximum steps must be at least 1, got 0. Try 1, or leave it empty.",
        ),
        (
            lambda: rq.Train(name="x", scheduler="steep"),
            "Schedule must be 'linear', 'cosine' or 'constant', got 'steep'. Try cosine.",
        ),
        (
            lambda: rq.Lora(targets=["q_proj", 3]),
            "Target modules, entry 2 must be text, got 3.",
        ),
        (
            lambda: rq.SetActive(adapters=[["x"]]),
            "Active adapters, entry 1, the strength is missing.",
        ),
        (
            lambda: rq.Compare(prompts=[], variants=[[]]),
            "Prompts must not be empty. Give one or more.",
        ),
        (
            lambda: rq.Train(name="x", start_from="y" * 41),
            "Start from must have at most 40 characters, got 41. Shorten it.",
        ),
        (
            lambda: rq.Train(name="x", adapter=3),
            "Adapter must be an object with fields, got 3.",
        ),
        (
            lambda: rq.Resume(run_id="../x"),
            "Run cannot be '../x'. The run's id, from Runs.",
        ),
    ],
)  # fmt: skip
def test_each_kind_of_refusal_has_its_sentence(build: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build()

    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_name_has_one_limit_everywhere(kind: type[BaseModel]) -> None:
    for name, schema in kind.model_json_schema().get("properties", {}).items():
        limits = [p["maxLength"] for p in schema.get("anyOf", [schema]) if "maxLength" in p]
        assert not [limit for limit in limits if 40 < limit < 100], name
