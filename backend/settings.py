"""Paths and limits of the app. Built once, in app.py, the command line or a test."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PROJECT = Path(__file__).resolve().parent.parent
STARTER = PROJECT / "starter"
VERSION = "0.1.0"


def default_workspace() -> Path:
    """Return the default folder for adapters and runs."""
    named = os.environ.get("WORKSPACE")
    if named:
        return Path(named).expanduser()
    if os.environ.get("SPACE_ID") and os.access("/data", os.W_OK):
        return Path("/data/adapter-workbench")
    return Path("~/.cache/adapter-workbench").expanduser()


class Settings(BaseModel):
    """The settings of a service; they never change during its life."""

    model_config = ConfigDict(frozen=True)

    workspace: Path = Field(default_factory=default_workspace)
    runtime: Literal["process", "inline"] = "process"
    allowed_roots: tuple[Path, ...] = ()
    demo: bool = False
    demo_seconds: float = 60.0
    owner: str = ""
    """The user with this name has no demo limits after signing in; empty means no one."""
    memory_reserve_bytes: int = 512 * 1024**2
    memory_limit_bytes: int | None = None
    look_seconds: float = 120.0
    """How long reading foreign files may take before the process is killed."""
    max_upload_bytes: int = 200 * 1024**2

    @property
    def adapters_dir(self) -> Path:
        return self.workspace / "adapters"

    @property
    def runs_dir(self) -> Path:
        return self.workspace / "runs"

    @property
    def merged_dir(self) -> Path:
        return self.workspace / "merged"

    @property
    def models_dir(self) -> Path:
        return self.workspace / "models"

    @property
    def copies_dir(self) -> Path:
        return self.workspace / "copies"

    @property
    def session_file(self) -> Path:
        return self.workspace / "session.json"

    @property
    def queue_file(self) -> Path:
        return self.workspace / "queue.json"

    @property
    def timings_file(self) -> Path:
        return self.workspace / "timings.json"

    @property
    def compile_times_file(self) -> Path:
        return self.workspace / "compile_times.json"

    @property
    def tokens_dir(self) -> Path:
        return self.workspace / "tokens"

    @property
    def exports_dir(self) -> Path:
        return self.workspace / "exports"

    @property
    def uploads_dir(self) -> Path:
        return self.workspace / "uploads"
