"""Sentences for invalid values: what is wrong, the value, and what to do instead.

Pydantic's own messages are for programmers and do not use the labels on the screen, so each of its
error types has a sentence here. Knows fields, but nothing of what requests mean.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SHOWN_LENGTH = 60
MOST_SENTENCES = 5
PAIR = ("the name", "the strength")
"""The entries of a tuple in a request. The only kind is an adapter with its strength."""


class Place(NamedTuple):
    """Where in a request an error is: its label on the screen, and its field if it has one."""

    label: str
    field: FieldInfo | None
    part: bool
    """Whether it is only a part of the field, such as one entry of a list."""


def refusal(kind: type[BaseModel], items: Sequence[Any]) -> tuple[str, str]:
    """Turn pydantic's errors about a request into a sentence and a hint."""
    found: dict[str, tuple[str, str]] = {}
    for item in items:
        if item["type"] == "literal_error" and isinstance(item["input"], list) and len(items) > 1:
            continue  # a choice or a list of names: the error about the list says more
        place = _place(kind, item["loc"])
        found.setdefault(place.label, _sentence(kind, place, item))  # a union gives two errors
    if len(found) == 1:
        return next(iter(found.values()))
    sentences = dict.fromkeys(f"{what} {cure}".strip() for what, cure in found.values())
    more = len(sentences) - MOST_SENTENCES
    told = " ".join(list(sentences)[:MOST_SENTENCES])
    return (f"{told} And {more} more." if more > 0 else told), ""


def shown(value: Any) -> str:
    """Write a value so that it fits into a sentence."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str | bytes):
        text = repr(value)
        return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}...'"
    kinds = ((list, "a list"), (tuple, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def _sentence(kind: type[BaseModel], place: Place, item: Any) -> tuple[str, str]:
    if item["type"] in ("value_error", "assertion_error"):
        return str(item["ctx"]["error"]), ""
    if item["type"] == "extra_forbidden":
        return _unknown(kind, str(item["loc"][-1]))
    if item["type"] == "missing":
        return f"{place.label} is missing.", ""
    what, cure = _SENTENCES.get(item["type"], _cannot_be)(place, item)
    return f"{place.label} {what}.", cure


def _unknown(kind: type[BaseModel], name: str) -> tuple[str, str]:
    close = difflib.get_close_matches(name, kind.model_fields, n=1, cutoff=0.7)
    return f"{name} is not a setting of {kind.__name__}.", (
        f"Did you mean {close[0]}?" if close else ""
    )


# -- one sentence per kind of error ---------------------------------------------------------------


def _bound(words: str, key: str, *, reachable: bool) -> Callable[[Place, Any], tuple[str, str]]:
    def sentence(place: Place, item: Any) -> tuple[str, str]:
        if item["input"] != item["input"]:  # nan is within no bounds
            return "must be a number, got nan", _instead(place)
        bound = item["ctx"][key]
        what = f"must be {words} {_number(bound)}, got {shown(item['input'])}"
        return what, _instead(place, _number(bound) if reachable else "")

    return sentence


def _must_be(words: str, cure: str = "") -> Callable[[Place, Any], tuple[str, str]]:
    def sentence(place: Place, item: Any) -> tuple[str, str]:
        return f"must be {words}, got {shown(item['input'])}", cure or _instead(place)

    return sentence


def _whole(place: Place, item: Any) -> tuple[str, str]:
    value = item["input"]
    what = f"must be a whole number, got {shown(value)}"
    near = sorted({math.floor(value), math.ceil(value)})
    fitting = [_number(number) for number in near if _within(place.field, number)]
    return what, f"Try {' or '.join(fitting)}." if fitting else _instead(place)


def _one_of(place: Place, item: Any) -> tuple[str, str]:
    expected = item["ctx"]["expected"]
    kinds = get_args(place.field.annotation) if place.field else ()
    names = ", or a list of names" if any(get_origin(each) is list for each in kinds) else ""
    return f"must be {expected}{names}, got {shown(item['input'])}", _instead(place)


def _short_text(place: Place, item: Any) -> tuple[str, str]:
    return "must not be empty", _instead(place) or "Enter some text."


def _long_text(place: Place, item: Any) -> tuple[str, str]:
    most, got = item["ctx"]["max_length"], len(item["input"])
    return f"must have at most {_number(most)} characters, got {_number(got)}", "Shorten it."


def _odd_text(place: Place, item: Any) -> tuple[str, str]:
    help = place.field.description if place.field else ""
    return f"cannot be {shown(item['input'])}", help or ""


def _few(place: Place, item: Any) -> tuple[str, str]:
    least, got = item["ctx"]["min_length"], item["ctx"]["actual_length"]
    if got == 0:
        return "must not be empty", f"Give {'one' if least == 1 else _number(least)} or more."
    return f"must have at least {_number(least)} entries, got {_number(got)}", ""


def _many(place: Place, item: Any) -> tuple[str, str]:
    most = item["ctx"]["max_length"]
    got = item["ctx"]["actual_length"] or len(item["input"])
    return f"must have at most {_number(most)} entries, got {_number(got)}", "Leave some out."


def _cannot_be(place: Place, item: Any) -> tuple[str, str]:
    return f"cannot be {shown(item['input'])}", _instead(place)


_whole_number = _must_be("a whole number")
_text = _must_be("text")
_on_or_off = _must_be("on or off", "Use true or false.")
_object = _must_be("an object with fields")
_SENTENCES: dict[str, Callable[[Place, Any], tuple[str, str]]] = {
    "greater_than_equal": _bound("at least", "ge", reachable=True),
    "greater_than": _bound("more than", "gt", reachable=False),
    "less_than_equal": _bound("at most", "le", reachable=True),
    "less_than": _bound("less than", "lt", reachable=False),
    "finite_number": _must_be("a finite number"),
    "float_type": _must_be("a number"),
    "float_parsing": _must_be("a number"),
    "int_type": _whole_number,
    "int_parsing": _whole_number,
    "int_parsing_size": _whole_number,
    "int_from_float": _whole,
    "bool_type": _on_or_off,
    "bool_parsing": _on_or_off,
    "string_type": _text,
    "string_unicode": _text,
    "string_sub_type": _text,
    "string_too_short": _short_text,
    "string_too_long": _long_text,
    "string_pattern_mismatch": _odd_text,
    "literal_error": _one_of,
    "list_type": _must_be("a list"),
    "tuple_type": _must_be("a name and a strength"),
    "too_short": _few,
    "too_long": _many,
    "model_type": _object,
    "model_attributes_type": _object,
    "dict_type": _object,
}


# -- places and values ----------------------------------------------------------------------------


def _place(kind: type[BaseModel], path: Sequence[int | str]) -> Place:
    """Follow an error's path: fields by their labels, entries of lists by their number."""
    label, field, model, annotation = "", None, kind, None
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(PAIR[step] if get_origin(annotation) is tuple else f"entry {step + 1}")
            annotation = next(iter(get_args(_plain(annotation))), None)
            annotation = _plain(annotation)
        elif step in model.model_fields:
            field, parts = model.model_fields[step], []
            label, annotation = _label(step, field), _plain(field.annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    name = ", ".join([label, *parts]) if label else ".".join(str(step) for step in path)
    return Place(name or kind.__name__, field, bool(parts))


def _plain(annotation: Any) -> Any:
    """Return a type without `Annotated` and without `None`."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    kinds = [each for each in get_args(annotation) if each is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) and len(kinds) == 1 else annotation


def _label(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    given = extra.get("label") if isinstance(extra, dict) else None
    return str(given or name.replace("_", " ").capitalize())


def _instead(place: Place, nearest: str = "") -> str:
    """Suggest a valid value: the default, an empty field if that is allowed, or the bound."""
    field = place.field
    if field is None or place.part:
        return f"Try {nearest}." if nearest else ""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, str | int | float) and default != "":
        return f"Try {default if isinstance(default, str) else shown(default)}."
    if default is None and not field.is_required():
        return f"Try {nearest}, or leave it empty." if nearest else "Leave it empty if in doubt."
    return f"Try {nearest}." if nearest else ""


def _within(field: FieldInfo | None, number: int) -> bool:
    """Return whether a number is within a field's bounds."""
    bounds = field.metadata if field else []
    return all(
        number >= getattr(bound, "ge", number)
        and number <= getattr(bound, "le", number)
        and number > getattr(bound, "gt", number - 1)
        and number < getattr(bound, "lt", number + 1)
        for bound in bounds
    )


def _number(value: float) -> str:
    if isinstance(value, float) and (not value.is_integer() or abs(value) >= 1e15):
        return f"{value:g}"
    return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.3g}"
