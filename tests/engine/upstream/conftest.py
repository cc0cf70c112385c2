"""A tiny base, and a way to write adapters of it."""

from pathlib import Path

import pytest
from peft import LoraConfig

from tests.engine.tiny import write_adapter, write_base
from tests.engine.upstream.plain_models import Write


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=2)


@pytest.fixture
def write(base: Path, tmp_path: Path) -> Write:
    """Write an adapter of the base and return its folder."""

    def make(name: str, config: LoraConfig, seed: int = 0) -> Path:
        return write_adapter(tmp_path / name, base, config, seed=seed)

    return make
