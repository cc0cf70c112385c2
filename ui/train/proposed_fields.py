"""The fields of the form whose values follow what suits the base and the data.

Each holds a proposal until the user enters another value. Knows nothing of why a value suits.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from backend import requests as rq
from backend import results as rs
from backend import usual_rate
from ui.components.forms import Form

FIELDS = ("learning_rate", "max_length", "tokens_per_step")
FIRST: dict[str, float] = {
    **{name: rq.Train.model_fields[name].get_default() for name in FIELDS},
    "learning_rate": usual_rate(0),
}
"""What the fields hold before a base is loaded."""
Held = dict[str, float]
"""The last proposal for each field."""


def components(form: Form) -> list[Component]:
    """Return the components of the fields, in order."""
    return [form.components[name] for name in FIELDS]


def of_base(base: rs.ModelFacts | None) -> Held:
    """Return what is known to suit a base before its data is read."""
    return {"learning_rate": usual_rate(base.parameters)} if base is not None else {}


def of_report(report: rs.PreflightReport | None) -> Held:
    """Return what suits base and data."""
    found = report.proposal if report is not None else None
    return found.settings if found is not None else {}


def moved(values: Mapping[str, Any], held: Held, suits: Held) -> Held:
    """Return the new values of fields that still hold the last proposal, or are empty."""
    return {
        name: value
        for name, value in suits.items()
        if values[name] != value and values[name] in (held[name], None, 0)
    }


def start_again(held: Held, length: float, batch: float) -> tuple[Any, ...]:
    """Return the updates of length and batch for other data, and what is held then.

    A proposal for the data before says nothing of other data, so both start from the defaults,
    except for a value that the user chose. The learning rate follows from the base alone.
    """
    values = {"max_length": length, "tokens_per_step": batch}
    first = moved(values, held, {name: FIRST[name] for name in values})
    return *updates(first)[1:], {**held, **first} if first else gr.skip()


def updates(found: Held) -> list[Any]:
    """Return the updates of the fields; those without a new value keep what the user types."""
    return [found.get(name, gr.skip()) for name in FIELDS]


def chosen(paths: list[str], values: Mapping[str, Any], held: Held) -> list[str]:
    """Return the changed fields without those that hold their proposal."""
    return [path for path in paths if path not in held or values[path] != held[path]]
