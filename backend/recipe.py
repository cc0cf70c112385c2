"""The session's recipe: what it takes to build the session again in a new worker or a new start."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from backend.requests import LoadModel, Request, UnloadModel, Variant
from backend.storage import write_text


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
    def load(cls, path: Path) -> "Recipe":
        """Return the saved recipe, or an empty one."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls()
