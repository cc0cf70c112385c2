"""A small GGUF file, and conversions in the test's own process, which takes no seconds to start."""

from pathlib import Path
from typing import Any

import pytest

from backend.engine.core.job_control import Control
from backend.engine.models.gguf import checks, conversion, parts, process
from tests.engine.models.gguf import families, gguf_files


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama as a GGUF file; tests copy it before they change it."""
    family = families.FAMILIES["llama"]
    path = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    return gguf_files.write(path, family, gguf_files.tiny(family))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do each task on a GGUF file in the test's own process; returns the tasks that were done."""
    done: list[str] = []

    def run(role: str, task: dict[str, Any], control: Control, **limits: Any) -> Any:
        done.append(role)
        files = [Path(file) for file in task["files"]]
        if role == "gguf-check":
            return list(checks.about(parts.header_of(files)))

        def tell(text: str, fraction: float) -> None:
            control.check_stop()
            control.progress(text, fraction, force=True)

        return conversion.convert(files, Path(task["folder"]), task["card"], tell)

    monkeypatch.setattr(process, "run", run)
    return done
