"""Requests as command-line options, in both directions.

`python -m backend` is built from this, and a run can be shown as the command that repeats it.
Knows nothing of how a request is carried out.
"""

import json
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backend.requests import Request, name_of
from backend.settings import Settings, default_workspace

PROGRAM = "python -m backend"


def fields_of(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """Return a request's fields by dotted path, those of nested requests included."""
    found: list[tuple[str, FieldInfo]] = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found.extend(fields_of(inner, f"{prefix}{name}."))
        else:
            found.append((f"{prefix}{name}", field))
    return found


def value_of(text: str) -> Any:
    """Read lists, objects, numbers and true/false as JSON; everything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def command_of(request: Request, settings: Settings, *, always: Collection[str] = ()) -> str:
    """Return the command that repeats a request.

    It contains the fields in `always` and those that differ from their defaults.
    """
    words = [name_of(request)]
    for path, field in fields_of(type(request)):
        value = _at(request, path)
        if path in always or field.is_required() or value != field.get_default():
            words += [f"--{path}", _word(value, is_text=field.annotation in (str, str | None))]
    return _line(settings, words)


def changed_fields(request: Request) -> list[str]:
    """Return the optional fields whose value differs from their default."""
    return [
        path
        for path, field in fields_of(type(request))
        if not field.is_required() and _at(request, path) != field.get_default()
    ]


def command_of_file(file: Path, settings: Settings) -> str:
    """Return the command that repeats the request in a file."""
    return _line(settings, ["run", str(file)])


def _line(settings: Settings, words: list[str]) -> str:
    """Join the words; the default workspace is left out."""
    usual = settings.workspace.expanduser().absolute() == default_workspace().absolute()
    place = [] if usual else ["--workspace", str(settings.workspace)]
    return f"{PROGRAM} {shlex.join([*place, *words])}"


def _word(value: Any, *, is_text: bool) -> str:
    """Write a value so that `value_of` reads the same one."""
    if is_text and value is not None:
        return str(value)
    if isinstance(value, str) and value_of(value) == value:
        return value
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain)


def _at(request: BaseModel, path: str) -> Any:
    value: Any = request
    for part in path.split("."):
        value = getattr(value, part)
    return value
