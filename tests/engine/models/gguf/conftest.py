"""A small GGUF file, and a converter that runs in the test's own process."""

from pathlib import Path

import pytest

from tests.engine.models.gguf import families, gguf_files


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama as a GGUF file; tests copy it before they change it."""
    family = families.FAMILIES["llama"]
    path = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    return gguf_files.write(path, family, gguf_files.tiny(family))
