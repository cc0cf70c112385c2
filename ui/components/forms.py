"""Turns request fields into form components and back, using each field's label, help and bounds.

A `Form` covers some fields of one request; a nested field is written `adapter.rank`. Values go into
handlers as keyword arguments (`Form.inputs`), so no handler counts positions.
"""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from backend import errors
from backend import requests as rq

NESTED = "__"


class Form:
    """The components for some fields of a request, in order."""

    def __init__(self, model: type[rq.Request]) -> None:
        self.model = model
        self.components: dict[str, Component] = {}

    def add(self, path: str, **overrides: Any) -> Component:
        """Add the component of a field at this place in the layout."""
        component = self.components[path] = _component(field_of(self.model, path), overrides)
        return component

    @property
    def inputs(self) -> dict[str, Component]:
        """The components under names that can be keyword arguments."""
        return {path.replace(".", NESTED): each for path, each in self.components.items()}

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Turn the components' values into data; the request checks the bounds."""
        data: dict[str, Any] = {}
        for path in self.components:
            field = field_of(self.model, path)
            *parents, name = path.split(".")
            inner = data
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[name] = _read(field, values[path.replace(".", NESTED)])
        return data

    def show(self, request: rq.Request) -> dict[Component, Any]:
        """Return the updates that make the components show a request."""
        return {
            component: gr.update(value=_shown(field_of(self.model, path), _get(request, path)))
            for path, component in self.components.items()
        }

    def changed(self, values: Mapping[str, Any]) -> list[str]:
        """Return the fields whose value is not the default."""
        return [
            path
            for path in self.components
            if not _same(
                values[path.replace(".", NESTED)], shown(field_of(self.model, path).get_default())
            )
        ]


def field_of(model: type[rq.Request], path: str) -> FieldInfo:
    """Return a field by its path."""
    *parents, name = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation  # type: ignore[assignment]
    return model.model_fields[name]


def label_of(field: FieldInfo) -> str:
    """Return the label of a field on the screen, with its unit."""
    extra = _extra(field)
    return f"{extra['label']} ({extra['unit']})" if extra.get("unit") else str(extra["label"])


def shown(value: Any) -> Any:
    """Return a request's value as a component shows it."""
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value)
    return "" if value is None else value


def _shown(field: FieldInfo, value: Any) -> Any:
    """Like `shown`, but with one list item per line if the field has several lines."""
    if isinstance(value, list | tuple) and _extra(field).get("lines"):
        return "\n".join(str(each) for each in value)
    return shown(value)


def _component(field: FieldInfo, overrides: dict[str, Any]) -> Component:
    default = None if field.is_required() else field.get_default()
    common = {
        "label": label_of(field),
        "info": field.description,
        "value": shown(default),
        **overrides,
    }
    kinds = _kinds(field)
    if "choices" in common:
        return gr.Dropdown(**common)
    options = [option for kind in kinds for option in get_args(kind) if _is_literal(kind)]
    if options:
        free = any(kind is str or get_origin(kind) is list for kind in kinds)
        return gr.Dropdown(choices=options, allow_custom_value=free, **common)
    if bool in kinds:
        return gr.Checkbox(**common)
    is_filled = isinstance(common["value"], int | float)  # an empty gr.Number becomes 0
    if (int in kinds or float in kinds) and (is_filled or NoneType not in kinds):
        step = _extra(field).get("step")
        # No precision, also for whole numbers: gr.Number would silently round 2.5 to 2.
        return gr.Number(**({"step": step} if step else {}), **common)
    if default is None:
        common["placeholder"] = "empty" if NoneType in kinds else ""
        common["value"] = common["value"] or ""
    lines = _extra(field).get("lines")
    return gr.Textbox(**({"lines": 2, "max_lines": lines} if lines else {"max_lines": 1}), **common)


def _read(field: FieldInfo, value: Any) -> Any:
    optional = NoneType in _kinds(field)
    if isinstance(value, str):
        value = value.strip()
    if value not in (None, ""):
        return value
    if optional:
        return None
    default = None if field.is_required() else field.get_default()
    cure = f"Try {shown(default)}." if default is not None else "Enter a value."
    raise errors.InvalidRequest(f"{_extra(field)['label']} is empty.", cure=cure)


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _get(request: rq.Request, path: str) -> Any:
    value: Any = request
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _same(value: Any, default: Any) -> bool:
    return (value in (None, "") and default in (None, "")) or value == default


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
