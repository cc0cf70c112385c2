"""Requests about adapters: inspect, add, switch, rename, save, push, unload, delete, restore."""

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
        help="A folder or zip file with a PEFT or MLX adapter, its place on the Hugging Face Hub "
        "(owner/repo, owner/repo/folder, owner/repo@revision, or the page's address), or "
        "library:NAME. Of a zip with several, name one: some.zip/checkpoint-20.",
    )


def _new_name(help: str) -> Any:
    return knob(label="Name", level="basic", help=help)


class InspectAdapter(Request):
    """Inspect an adapter before it is added: what it is and whether it fits. Loads nothing."""

    source: str = _adapter_source()


class LoadAdapter(Request):
    """Add an adapter to the session, and to the library if it is not in it yet."""

    source: str = _adapter_source()
    name: str = knob(
        "",
        label="Name",
        level="basic",
        help="Name here. Leave empty to use its own.",
    )

    @field_validator("name")
    @classmethod
    def _name_or_nothing(cls, name: str) -> str:
        return check_display_name(name) if name.strip() else ""


class UnloadAdapter(Request):
    """Unload an adapter from the model; it stays in the library and can be turned on again."""

    name: str = _adapter_name()


class SaveAdapter(Request):
    """Save a copy of an adapter as a plain PEFT folder, and read it back to verify it."""

    name: str = _adapter_name()
    destination: str = knob(
        label="Folder", min_length=1, max_length=1000, help="A new or empty folder for the copy."
    )


class PushAdapter(Request):
    """Push an adapter to the Hugging Face Hub, and verify the files there."""

    name: str = _adapter_name()
    repo_id: str = knob(
        label="Name on the Hub",
        min_length=1,
        max_length=200,
        level="basic",
        help="Your user name or organisation, a slash, and the repository name.",
    )
    private: bool = knob(
        True, label="Private", help="Whether only you, or your organisation, can see it."
    )
    replace: bool = knob(
        False,
        label="Replace",
        help="Overwrite an adapter of this name. The repository's history keeps the old one.",
    )

    @field_validator("repo_id")
    @classmethod
    def _has_an_owner(cls, repo_id: str) -> str:
        repo_id = repo_id.strip()
        if not OWNED.fullmatch(repo_id):
            raise ValueError(
                f"{repo_id!r} cannot be a name on the Hub. Use the form your-name/pirate: "
                "letters, digits, - _ and . only."
            )
        return repo_id


class SetActive(Request):
    """Choose the active adapters, each with its strength; an empty list means the base alone."""

    adapters: Variant = knob(
        label="Active adapters",
        max_length=50,
        help="The adapters that answer, each with its strength. Choose none for the base alone.",
    )


class DeleteAdapter(Request):
    """Delete an adapter from the session and library; restorable until the app closes."""

    name: str = _adapter_name()


class RestoreAdapter(Request):
    """Restore a deleted adapter."""

    name: str = _adapter_name("The deleted adapter's name.")


class RenameAdapter(Request):
    """Rename an adapter; its answers stay the same."""

    name: str = _adapter_name()
    new_name: str = _new_name("The new name: letters, digits, spaces, - and _.")

    _new = field_validator("new_name")(check_display_name)
