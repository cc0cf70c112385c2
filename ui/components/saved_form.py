"""The training form in the browser's storage, so that a reload keeps the settings.

Stores only settings that differ from the defaults, and no secrets. Values that no longer exist (a
data file, an adapter, a free name) are skipped when the form is restored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend import METHODS
from ui.components import data_sets
from ui.components.forms import NESTED, Form
from ui.components.service_handle import ServiceHandle

# Both are fixed, so that the stored form survives a restart. They are visible in the page's
# configuration and protect nothing.
STORAGE_KEY, SECRET = "adapter-workbench-train", "settings-only"


OF_THE_DATA = ("name", "held_out", "drop_bad_rows", "placeholders")
"""Fields that mean nothing without the data that they were chosen for."""


class FormKeeper:
    """Stores a form of training settings in the browser, and restores it."""

    def __init__(self, handle: ServiceHandle, form: Form, method: Component) -> None:
        self.handle = handle
        self.form = form
        self.method = method
        self.state = gr.BrowserState({}, storage_key=STORAGE_KEY, secret=SECRET)

    def to_keep(self, values: Mapping[str, Any], suggested: Mapping[str, Any]) -> dict[str, Any]:
        """Return the user's choices: values that are neither defaults nor suggestions."""
        chosen = {path: values[path.replace(".", NESTED)] for path in self.form.changed(values)}
        if values["method"] != next(iter(METHODS)):
            chosen["method"] = values["method"]
        return {path: value for path, value in chosen.items() if suggested.get(path) != value}

    def restore(self, kept: Any) -> dict[Any, Any]:
        """Return the values of the components from the stored form."""
        own = kept if isinstance(kept, dict) else {}
        shown = {
            component: own[path]
            for path, component in self.form.components.items()
            if isinstance(own.get(path), str | int | float) and self._is_there(path, own[path])
        }
        if own.get("data") and self.form.components["data"] not in shown:
            for path, component in self.form.components.items():
                if path in OF_THE_DATA or path.startswith("columns."):
                    shown.pop(component, None)  # they belong to data that is gone
        method = own.get("method")
        return {**shown, self.method: method} if method in list(METHODS) else shown

    def _is_there(self, path: str, value: Any) -> bool:
        """Return whether a value can still be chosen: data, adapters and free names may be gone."""
        service = self.handle.service
        if path == "name":
            return self.handle.free_name(str(value)) == value
        if path in ("data", "held_out"):
            return self._is_data(str(value))
        if path == "start_from":
            return value in [adapter.name for adapter in service.library.all()]
        return True

    def _is_data(self, source: str) -> bool:
        """Return whether the data is available: on offer, an existing path, or a Hub id."""
        settings = self.handle.service.settings
        if source in [offered for _, offered in data_sets.choices(settings.uploads_dir)]:
            return True
        if settings.demo:
            return False
        path = Path(source).expanduser()
        return path.exists() if path.is_absolute() else "/" in source
