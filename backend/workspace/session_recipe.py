"""The session's recipe: what it takes to build the session again in a new worker or a new start."""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from backend.errors import Damaged, DiskFull
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.requests import LoadModel, Request, UnloadModel, Variant


class Recipe(BaseModel):
    """The base that was asked for and the adapters that answered. Adapters are on disk already."""

    model_config = ConfigDict(frozen=True)

    base: LoadModel | None = None
    active: Variant = []

    def after(self, request: Request, active: Variant) -> "Recipe":
        """Return the recipe once this operation has gone well."""
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
        """Return the saved recipe, or that of the starter model, and what is wrong with the file.

        One that cannot be read is kept aside under another name.
        """
        starter = cls(base=LoadModel(source="starter"))
        try:
            recipe = cls.load(path)
        except Damaged as error:
            with suppress(DiskFull):
                damaged_files.keep_aside(path)
            lost = "The last session is not known, so the starter model is loaded."
            return starter, f"{error} {lost}"
        return (recipe if recipe.base else starter), ""

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Return the saved recipe, or an empty one where none was saved; raises Damaged."""
        return damaged_files.read_if_there(path, cls.model_validate_json, missing=cls())
