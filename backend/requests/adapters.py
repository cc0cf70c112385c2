"""Requests about adapters as things: inspect, add, switch, rename, save, let go, bring back."""

import re
from typing import Any

from pydantic import field_validator

from backend.fields import NAME_LENGTH, Request, Variant, check_display_name, knob

OWNED = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _adapter_name(help: str = "The adapter's name.") -> Any:
    return knob(label="Adapter", min_length=1, max_length=NAME_LENGTH, help=help)


def _adapter_source() -> Any:
    return knob(
        label="Adapter",
        min_length=1,
        max_length=1000,
        level="basic",
        help="A folder or zip with a PEFT adapter, a Hugging Face id, or library:NAME.",
    )


def _new_name(help: str) -> Any:
    return knob(label="Name", level="basic", help=help)


class InspectAdapter(Request):
    """Look at an adapter before it is added: what it is, whether it fits; nothing is loaded."""

    source: str = _adapter_source()


class LoadAdapter(Request):
    """Add an adapter to the session, and to the library where it is not there yet."""

    source: str = _adapter_source()
    name: str = knob(
        "",
        label="Name",
        level="basic",
        help="What it is called here; empty takes the name it brings.",
    )

    @field_validator("name")
    @classmethod
    def _name_or_nothing(cls, name: str) -> str:
        return check_display_name(name) if name.strip() else ""


class UnloadAdapter(Request):
    """Take an adapter off the model; it stays in the library and can be turned on again."""

    name: str = _adapter_name()


class SaveAdapter(Request):
    """Write a copy of an adapter as a plain PEFT folder and prove that it reads back."""

    name: str = _adapter_name()
    destination: str = knob(
        label="Folder", min_length=1, max_length=1000, help="A new or empty folder for the copy."
    )


class PushAdapter(Request):
    """Put an adapter on the Hugging Face Hub and prove that it arrived whole."""

    name: str = _adapter_name()
    repo_id: str = knob(
        label="Name on the Hub",
        min_length=1,
        max_length=200,
        level="basic",
        help="Your or your organisation's name, a slash, and what it is called there.",
    )
    private: bool = knob(
        True, label="Private", help="Whether only you, or your organisation, can see it there."
    )
    replace: bool = knob(
        False,
        label="Replace",
        help="Writes over an adapter that is there; its history keeps the old one.",
    )

    @field_validator("repo_id")
    @classmethod
    def _has_an_owner(cls, repo_id: str) -> str:
        repo_id = repo_id.strip()
        if not OWNED.fullmatch(repo_id):
            raise ValueError(
                f"{repo_id!r} cannot be a name on the Hub. It looks like your-name/pirate: "
                "letters, digits, - _ and . only."
            )
        return repo_id


class SetActive(Request):
    """Choose which adapters answer, each with its strength; the empty list is the base alone."""

    adapters: Variant = knob(
        label="Active adapters",
        max_length=50,
        help="The adapters that answer, each with its strength; none for the base.",
    )


class DeleteAdapter(Request):
    """Delete an adapter from session and library; it can be restored until the app closes."""

    name: str = _adapter_name()


class RestoreAdapter(Request):
    """Bring a deleted adapter back."""

    name: str = _adapter_name("The deleted adapter's name.")


class RenameAdapter(Request):
    """Give an adapter another name; what it answers stays the same."""

    name: str = _adapter_name()
    new_name: str = _new_name("The new name: letters, digits, spaces, - and _.")

    _new = field_validator("new_name")(check_display_name)
