"""A base model from a Python package: its GGUF file becomes a plain folder, once per workspace.

The file is read only if it is the known one, byte for byte. Knows nothing of loading the folder
afterwards.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from backend.catalogue.packaged_models import PackagedModel, is_complete
from backend.engine.core.job_control import Control
from backend.engine.models.gguf import converted as gguf
from backend.errors import ModelError, NotFound


def converted(model: PackagedModel, models_dir: Path, control: Control) -> Path:
    """Return the model's folder in the workspace; the first call converts the package's file.

    Raises NotFound if the package is not installed, ModelError if its file is not the known one,
    OutOfMemory, DiskFull, Stopped or VerificationFailed; then there is no folder.
    """
    target = model.folder_in(models_dir)
    if is_complete(target):
        return target
    control.progress(f"Checking the file of {model.title}", 0.0, force=True)
    file = _known_file(model)
    about = gguf.check([file], control)
    gguf.convert([file], about, target, model.card(), control)
    return target


def _known_file(model: PackagedModel) -> Path:
    """Return the installed file; raises NotFound or ModelError if it cannot be used."""
    file = model.find()
    if file is None or find_spec("gguf") is None:
        missing = model.package.replace("_", "-") if file is None else "gguf"
        raise NotFound(
            f"{model.name} needs the Python package {missing}, which is not installed.",
            cure=f"Install it and start the app with: {model.command}",
        )
    if file.stat().st_size != model.file_bytes or _digest(file) != model.sha256:
        raise ModelError(
            f"{file.name} in the package {file.parent.name} is not the file that was published, so "
            "it is not read.",
            cure=f"Remove the package with pip, then install it again with: {model.command}",
        )
    return file


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
