"""A packaged model: only the known file is read, and its folder is whole or not there.

The real file is converted in tests/real; here a tiny model stands in for what is read from it.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import requests as rq
from backend.catalogue import packaged_models
from backend.catalogue.packaged_models import SMOLLM2, PackagedModel
from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.models import loading, model_folder, packaged_model
from backend.engine.models.gguf import conversion, converted
from backend.engine.planning import quantization_table
from backend.errors import ModelError, NotFound, OutOfMemory, Stopped, VerificationFailed
from backend.settings import Settings

SILENT = Control(0, lambda message: None)


@pytest.fixture
def model(tmp_path: Path, llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """An installed package with a small file, known by its digest."""
    package = tmp_path / "site" / "package_of_this_test"
    package.mkdir(parents=True)
    content = llama_file.read_bytes()
    (package / SMOLLM2.file).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    known = {"sha256": hashlib.sha256(content).hexdigest(), "file_bytes": len(content)}
    made = SMOLLM2.model_copy(update={"package": package.name, **known})
    monkeypatch.setitem(packaged_models.PACKAGED_MODELS, made.name, made)
    return made


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "models"


def test_an_absent_package_is_named_with_the_command_that_installs_it(models: Path) -> None:
    absent = SMOLLM2.model_copy(update={"package": "no_such_package_here"})

    with pytest.raises(NotFound) as caught:
        packaged_model.converted(absent, models, SILENT)

    assert "no-such-package-here, which is not installed" in str(caught.value)
    assert "python3 start.py --with smollm2" in str(caught.value)
    assert not models.exists()


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:-1] + b"!", lambda c: b""])
def test_another_file_in_its_place_is_not_read(
    model: PackagedModel, models: Path, here: list[str], change: Callable[[bytes], bytes]
) -> None:
    file = model.find()
    assert file is not None
    file.write_bytes(change(file.read_bytes()))

    with pytest.raises(ModelError, match="is not the file that was published") as caught:
        packaged_model.converted(model, models, SILENT)

    assert model.command in caught.value.cure
    assert here == []
    assert not models.exists()


def test_it_is_converted_once_and_then_loaded_without_its_package(
    model: PackagedModel, models: Path, here: list[str]
) -> None:
    told: list[dict[str, Any]] = []
    base = loading.load(rq.LoadModel(source="smollm2"), Control(0, told.append), models)

    assert base.facts.source == base.facts.name == "smollm2"
    assert base.facts.origin == f"converted from {model.file} (F32)"
    assert Path(base.facts.path) == model.folder_in(models)
    assert base.model.name_or_path == base.facts.path
    assert any("Unpacking" in message["text"] for message in told)
    card = (model.folder_in(models) / "README.md").read_text(encoding="utf-8")
    assert model.hub_id in card
    assert "apache-2.0" in card
    file = model.find()
    assert file is not None
    file.unlink()
    again = model_folder.find("smollm2", None, SILENT, models)
    assert again == model.folder_in(models)


@pytest.mark.parametrize("by_path_first", [True, False])
def test_its_file_by_path_gives_the_same_folder(
    model: PackagedModel, models: Path, here: list[str], by_path_first: bool
) -> None:
    sources = [str(model.find()), "smollm2"]

    found = [
        model_folder.find(source, None, SILENT, models)
        for source in (sources if by_path_first else reversed(sources))
    ]

    assert found == [model.folder_in(models)] * 2
    assert here.count("gguf-convert") == 1
    assert model.hub_id in (found[0] / "README.md").read_text(encoding="utf-8")


def test_weights_that_differ_after_writing_leave_no_folder(
    model: PackagedModel, models: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_model = conversion.read_model

    def spoilt(*arguments: Any) -> Any:
        read = read_model(*arguments)
        with torch.no_grad():
            read.lm_head.weight[0, 0] = float("nan")
        return read

    monkeypatch.setattr(conversion, "read_model", spoilt)
    with pytest.raises(VerificationFailed, match="lm_head"):
        packaged_model.converted(model, models, SILENT)

    assert list(models.iterdir()) == []


def test_a_stop_leaves_no_folder(model: PackagedModel, models: Path, here: list[str]) -> None:
    control = Control(0, lambda message: None)
    control.hear("stop")

    with pytest.raises(Stopped):
        packaged_model.converted(model, models, control)

    assert not model.folder_in(models).exists()


def test_too_little_memory_is_told_before_anything_is_read(
    model: PackagedModel, models: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 0)

    with pytest.raises(OutOfMemory, match=f"Converting {model.file} needs"):
        packaged_model.converted(model, models, SILENT)

    assert here == ["gguf-check"]


def test_another_app_that_was_faster_is_no_error(
    model: PackagedModel, models: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_in_the_other_app(folder: Path, *expected: Any) -> None:
        there = model.folder_in(models)
        there.mkdir()
        (there / "config.json").write_text("{}")

    monkeypatch.setattr(conversion, "require_same", convert_in_the_other_app)

    assert packaged_model.converted(model, models, SILENT) == model.folder_in(models)
    assert [path.name for path in models.iterdir()] == [model.folder]


def test_what_a_killed_process_left_is_removed_later(
    model: PackagedModel, models: Path, here: list[str]
) -> None:
    old, young = (models / f".{model.folder}.{name}.partial" for name in ("a", "b"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    days_ago = time.time() - 2 * converted.STALE_S
    os.utime(old, (days_ago, days_ago))

    packaged_model.converted(model, models, SILENT)

    assert not old.exists()
    assert young.exists()


def test_the_quantisation_table_needs_no_conversion(tmp_path: Path) -> None:
    request = rq.QuantizationTable(source="smollm2")

    config, note = quantization_table._config(request, SILENT, Settings(workspace=tmp_path))

    assert quantization_table.Shape.from_config(config).parameters == 134_515_008
    assert note == ""
