"""The session's recipe: what is needed to restore it in a new worker or at the next start."""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from backend.errors import Damaged, DiskFull
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.requests import LoadModel, Request, UnloadModel, Variant


class Recipe(BaseModel):
    """The requested base and the active adapters. The adapters are already on disk."""

    model_config = ConfigDict(frozen=True)

    base: LoadModel | None = None
    active: Variant = []

    def after(self, request: Request, active: Variant) -> "Recipe":
        """Return the recipe after this operation succeeded."""
        if isinstance(request, LoadModel):
            return Recipe(base=request, active=active)
        if isinstance(request, UnloadModel):
            return Recipe()
        return self if self.active == active else self.model_copy(update={"active": active})

    def save(self, path: Path) -> None:
        """Replace the saved recipe."""
        write_text(path, self.model_dump_json(indent=1))

    @classmethod
    def restore(cls, path: Path) -> tuple["Recipe", str]:
        """Return the saved recipe, or that of the starter model, and a problem with the file.

        An unreadable file is renamed.
        """
        starter = cls(base=LoadModel(source="starter"))
        try:
            recipe = cls.load(path)
        except Damaged as error:
            with suppress(DiskFull):
                damaged_files.keep_aside(path)
            lost = "The last session is unknown, so the starter model is loaded."
            return starter, f"{error} {lost}"
        return (recipe if recipe.base else starter), ""

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Return the saved recipe, or an empty one if none was saved; raises Damaged."""
        return damaged_files.read_if_there(path, cls.model_validate_json, missing=cls())
