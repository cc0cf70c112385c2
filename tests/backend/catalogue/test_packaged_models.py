"""A model in a Python package is found without importing the package."""

import sys
from pathlib import Path

import pytest

from backend.catalogue.packaged_models import MODEL_NAMES, PACKAGED_MODELS, SMOLLM2, PackagedModel


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model whose package cannot be imported, like one whose own needs are not installed."""
    package = tmp_path / "site" / "package_of_this_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import a_package_that_needs_a_compiler\n")
    (package / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return SMOLLM2.model_copy(update={"package": package.name, "file": "weights.gguf"})


def test_the_file_is_found_without_importing_its_package(
    model: PackagedModel, tmp_path: Path
) -> None:
    assert model.find() == tmp_path / "site" / model.package / "weights.gguf"
    assert model.package not in sys.modules
    assert model.is_here(tmp_path / "models")


def test_a_package_without_the_file_is_not_the_model(model: PackagedModel) -> None:
    assert model.model_copy(update={"file": "other.gguf"}).find() is None


def test_an_absent_package_is_no_error(model: PackagedModel, tmp_path: Path) -> None:
    absent = model.model_copy(update={"package": "no_such_package_here"})

    assert absent.find() is None
    assert not absent.is_here(tmp_path / "models")


def test_a_converted_model_is_here_without_its_package(
    model: PackagedModel, tmp_path: Path
) -> None:
    absent = model.model_copy(update={"package": "no_such_package_here"})
    folder = absent.folder_in(tmp_path / "models")
    folder.mkdir(parents=True)
    assert not absent.is_here(tmp_path / "models")  # empty
    (folder / "config.json").write_text("{}")

    assert absent.is_here(tmp_path / "models")


def test_each_name_is_known_once() -> None:
    assert ("starter", *PACKAGED_MODELS) == MODEL_NAMES
    assert all(name == model.name for name, model in PACKAGED_MODELS.items())
