"""A packaged model: only the known file is read, and its folder is whole or not there.

The real file is converted in tests/real; here a tiny model stands in for what is read from it.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import requests as rq
from backend.catalogue import packaged_models
from backend.catalogue.packaged_models import SMOLLM2, PackagedModel
from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.models import loading, model_folder, packaged_model
from backend.engine.planning import quantization_table
from backend.errors import ModelError, NotFound, OutOfMemory, Stopped, VerificationFailed
from tests.engine.tiny import write_base

SILENT = Control(0, lambda message: None)
CONTENT = b"GGUF of this test"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """An installed package with a small file, known by its digest."""
    package = tmp_path / "site" / "package_of_this_test"
    package.mkdir(parents=True)
    (package / SMOLLM2.file).write_bytes(CONTENT)
    (tmp_path / "site" / "gguf.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    known = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "file_bytes": len(CONTENT)}
    made = SMOLLM2.model_copy(update={"package": package.name, "converting_bytes": 1, **known})
    monkeypatch.setitem(packaged_models.PACKAGED_MODELS, made.name, made)
    return made


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "models"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What stands in for the model in the file: tiny and in bf16; tests may spoil it."""
    source = write_base(tmp_path / "tiny")
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    monkeypatch.setattr(packaged_model, "read_model", lambda *_: plain)
    monkeypatch.setattr(packaged_model, "read_tokenizer", lambda *_: tokenizer)
    return plain


def test_an_absent_package_is_named_with_the_command_that_installs_it(models: Path) -> None:
    absent = SMOLLM2.model_copy(update={"package": "no_such_package_here"})

    with pytest.raises(NotFound) as caught:
        packaged_model.converted(absent, models, SILENT)

    assert "no-such-package-here, which is not installed" in str(caught.value)
    assert "python3 start.py --with smollm2" in str(caught.value)
    assert not models.exists()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!", b""])
def test_another_file_in_its_place_is_not_read(
    model: PackagedModel, models: Path, read: Any, content: bytes
) -> None:
    file = model.find()
    assert file is not None
    file.write_bytes(content)

    with pytest.raises(ModelError, match="is not the file that was published") as caught:
        packaged_model.converted(model, models, SILENT)

    assert model.command in caught.value.cure
    assert not models.exists()


def test_it_is_converted_once_and_then_loaded_without_its_package(
    model: PackagedModel, models: Path, read: Any
) -> None:
    told: list[dict[str, Any]] = []
    base = loading.load(rq.LoadModel(source="smollm2"), Control(0, told.append), models)

    assert base.facts.source == base.facts.name == "smollm2"
    assert Path(base.facts.path) == model.folder_in(models)
    assert base.model.name_or_path == base.facts.path
    assert any("Converting" in message["text"] for message in told)
    card = (model.folder_in(models) / "README.md").read_text(encoding="utf-8")
    assert model.hub_id in card
    assert "apache-2.0" in card
    file = model.find()
    assert file is not None
    file.unlink()
    again = model_folder.find("smollm2", None, SILENT, models)
    assert again == model.folder_in(models)


def test_weights_that_differ_after_writing_leave_no_folder(
    model: PackagedModel, models: Path, read: Any
) -> None:
    with torch.no_grad():
        read.lm_head.weight[0, 0] = float("nan")

    with pytest.raises(VerificationFailed, match="lm_head"):
        packaged_model.converted(model, models, SILENT)

    assert list(models.iterdir()) == []


def test_a_stop_leaves_no_folder(model: PackagedModel, models: Path, read: Any) -> None:
    control = Control(0, lambda message: None)
    control.hear("stop")

    with pytest.raises(Stopped):
        packaged_model.converted(model, models, control)

    assert not model.folder_in(models).exists()


def test_too_little_memory_is_told_before_anything_is_read(
    model: PackagedModel, models: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 0)

    with pytest.raises(OutOfMemory, match="Converting SmolLM2 135M Instruct needs"):
        packaged_model.converted(model, models, SILENT)


def test_another_app_that_was_faster_is_no_error(
    model: PackagedModel, models: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_in_the_other_app(folder: Path, expected: Any) -> None:
        there = model.folder_in(models)
        there.mkdir()
        (there / "config.json").write_text("{}")

    monkeypatch.setattr(packaged_model, "require_same", convert_in_the_other_app)

    assert packaged_model.converted(model, models, SILENT) == model.folder_in(models)
    assert [path.name for path in models.iterdir()] == [model.folder]


def test_what_a_killed_process_left_is_removed_later(
    model: PackagedModel, models: Path, read: Any
) -> None:
    old, young = (models / f".{model.folder}.{name}.partial" for name in ("a", "b"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    hours_ago = time.time() - 2 * packaged_model.STALE_S
    os.utime(old, (hours_ago, hours_ago))

    packaged_model.converted(model, models, SILENT)

    assert not old.exists()
    assert young.exists()


def test_the_quantisation_table_needs_no_conversion() -> None:
    request = rq.QuantizationTable(source="smollm2")

    shape = quantization_table.Shape.from_config(quantization_table._config(request))

    assert shape.parameters == 134_515_008
