"""A GGUF file becomes a folder once, whole or not at all, and is found again without the file."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend import Service, Settings
from backend import requests as rq
from backend.engine.core import disk, memory
from backend.engine.core.job_control import Control
from backend.engine.models import model_folder
from backend.engine.models.gguf import converted, parts, process
from backend.errors import DiskFull, InvalidRequest, ModelError, NotFound, OutOfMemory, Stopped
from backend.files import gguf_header
from backend.settings import PROJECT
from tests.engine.models.gguf import gguf_files
from tests.engine.models.gguf.families import FAMILIES

SILENT = Control(0, lambda message: None)


@pytest.fixture
def file(llama_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(llama_file, tmp_path / "Tiny llama.Q4_K.gguf"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "models"


def find(file: Path, models: Path, control: Control = SILENT) -> Path:
    return model_folder.find(str(file), None, control, models)


def test_it_is_converted_once_in_a_process_of_its_own(file: Path, models: Path) -> None:
    """The only test here with the real processes."""
    told: list[dict[str, Any]] = []

    folder = find(file, models, Control(0, told.append))

    assert folder.parent == models.resolve()
    assert folder.name.startswith("Tiny-llama.Q4_K-")
    texts = [message["text"] for message in told]
    assert texts[0] == f"Checking {file.name}"
    assert "Unpacking the weights" in texts
    assert sorted(path.name for path in models.iterdir()) == [folder.name, converted.INDEX]
    model_folder.check_folder(folder)
    original = gguf_files.tiny(FAMILIES["llama"])
    made = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name])


def test_the_next_load_reads_nothing(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    del here[:]

    assert find(file, models) == folder
    assert here == []


def test_the_folder_is_used_without_the_file(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    file.unlink()

    assert find(file, models) == folder
    with pytest.raises(NotFound, match="There is no file"):
        find(file.with_name("other.gguf"), models)


def test_a_copy_of_the_file_is_not_converted_again(
    file: Path, models: Path, here: list[str]
) -> None:
    folder = find(file, models)
    copy = Path(shutil.copy(file, file.with_name("Copy.gguf")))
    del here[:]

    assert find(copy, models) == folder
    assert here == ["gguf-check"]


def test_a_changed_file_is_converted_again(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    other = gguf_files.tiny(FAMILIES["llama"], rms_norm_eps=0.1)
    gguf_files.write(file, FAMILIES["llama"], other)

    assert find(file, models) != folder


def test_a_damaged_index_costs_only_time(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    for content in ("{", "[]", json.dumps({str(file): 3}), json.dumps({str(file): {"folder": 1}})):
        (models / converted.INDEX).write_text(content)
        assert find(file, models) == folder


def test_an_index_names_no_folder_elsewhere(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    index = models / converted.INDEX
    entry = json.loads(index.read_text())
    entry[str(file)]["folder"] = str(file.parent)
    index.write_text(json.dumps(entry))

    assert find(file, models) == folder


# --- whole or not at all ---


def test_a_stop_ends_the_process_and_leaves_nothing(file: Path, models: Path) -> None:
    control = Control(0, lambda message: None)

    def stop_when_it_converts(message: dict[str, Any]) -> None:
        if message["text"] == "Reading the tokenizer":
            control.hear("stop")

    control._emit = stop_when_it_converts
    with pytest.raises(Stopped, match="Converting Tiny llama"):
        find(file, models, control)

    assert list(models.iterdir()) == []


def test_a_killed_process_leaves_nothing(
    file: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    popen = process.subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(process.subprocess, "Popen", start)

    def kill(message: dict[str, Any]) -> None:
        if message["text"] == "Reading the tokenizer":
            started[-1].kill()

    with pytest.raises(process.WorkerDied, match="it was killed or crashed") as caught:
        find(file, models, Control(0, kill))

    assert "memory" in caught.value.cure
    assert list(models.iterdir()) == []
    assert started[-1].returncode is not None


def test_an_app_that_is_killed_leaves_nothing(file: Path, models: Path) -> None:
    """The conversion notices it, removes what it wrote, and ends."""
    script = (
        "import os, sys; from pathlib import Path; from backend.engine.models import model_folder\n"
        "from backend.engine.core.job_control import Control\n"
        "def die(message):\n"
        "    if message['text'] == 'Unpacking the weights': os._exit(7)\n"
        "model_folder.find(sys.argv[1], None, Control(0, die), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(file), str(models)]

    done = subprocess.run(command, cwd=PROJECT, timeout=120)

    assert done.returncode == 7
    until = time.monotonic() + 60
    while list(models.iterdir()) and time.monotonic() < until:
        time.sleep(0.1)
    assert list(models.iterdir()) == []


def test_a_file_that_changes_meanwhile_leaves_nothing(
    file: Path, models: Path, here: list[str]
) -> None:
    touch = Control(0, lambda m: os.utime(file, (1, 1)) if "back" in m["text"] else None)
    with pytest.raises(ModelError, match="changed while it was converted"):
        find(file, models, touch)

    assert list(models.iterdir()) == []


def test_what_a_killed_app_left_is_removed_later(file: Path, models: Path, here: list[str]) -> None:
    folder = find(file, models)
    shutil.rmtree(folder)
    old, young = (models / f".{folder.name}.{name}.partial" for name in ("a", "b"))
    for each in (old, young):
        each.mkdir(parents=True)
    days_ago = time.time() - 2 * converted.STALE_S
    os.utime(old, (days_ago, days_ago))

    assert find(file, models) == folder
    assert not old.exists()
    assert young.exists()


def test_memory_and_disk_are_asked_before(
    file: Path, models: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda device: 10**6)
        with pytest.raises(OutOfMemory, match=r"Converting Tiny llama\.Q4_K\.gguf needs about"):
            find(file, models)
    monkeypatch.setattr(disk, "free", lambda folders: 10)
    with pytest.raises(DiskFull, match=r"Converting Tiny llama\.Q4_K\.gguf needs about"):
        find(file, models)

    assert here == ["gguf-check", "gguf-check"]


def test_a_missing_package_is_named_with_the_command(
    file: Path, models: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "find_spec", lambda name: None)

    with pytest.raises(NotFound, match="the Python package gguf, which is not installed") as caught:
        find(file, models)

    assert "python3 start.py --with gguf" in caught.value.cure


# --- folders and parts ---


def test_the_only_file_of_a_folder_is_meant(file: Path, models: Path, here: list[str]) -> None:
    place = file.parent / "model"
    place.mkdir()
    shutil.copy(file, place / file.name)
    (place / "mmproj-x.gguf").write_bytes(b"GGUF")

    assert find(place, models).name.startswith("Tiny-llama")


def test_of_several_files_one_has_to_be_chosen(file: Path, models: Path) -> None:
    place = file.parent / "model"
    place.mkdir()
    for name in ("a.gguf", "b.gguf", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf"):
        (place / name).write_bytes(b"GGUF")

    with pytest.raises(InvalidRequest, match=r"holds 3 GGUF files: a\.gguf") as caught:
        find(place, models)

    assert "c-00002" not in caught.value.what


def test_a_folder_with_a_configuration_is_a_model_as_before(file: Path, models: Path) -> None:
    place = file.parent / "model"
    place.mkdir()
    shutil.copy(file, place / file.name)
    (place / "config.json").write_text("{}")

    assert find(place, models) == place.resolve()


def split(file: Path, first: int = 0) -> list[Path]:
    """Cut a file in two as llama.cpp's gguf-split does: settings in the first part alone."""
    import gguf

    header = gguf_header.read(file)
    numbers = {t.name: t for t in gguf.GGUFReader(file).tensors}
    cut = [header.tensors[:first], header.tensors[first:]]
    names = parts.part_names(f"{file.stem}-00001-of-00002.gguf")
    files = [file.with_name(name) for name in names]
    for number, (path, tensors) in enumerate(zip(files, cut, strict=True)):
        writer = gguf.GGUFWriter(path, "llama")
        writer.kv_data[0].clear()
        if number == 0:
            for field in gguf.GGUFReader(file).fields.values():
                if not field.name.startswith("GGUF."):
                    inner = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(header.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, numbers[tensor.name].data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("given", [0, 1])
def test_a_model_in_parts_is_joined(
    file: Path, models: Path, here: list[str], first: int, given: int
) -> None:
    whole = find(file, models)
    pieces = split(file, first)

    folder = find(pieces[given], models)

    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert find(pieces[1 - given], models) == folder


def test_parts_that_are_missing_or_of_another_model_are_named(file: Path, models: Path) -> None:
    pieces = split(file, 5)
    other = file.with_name("Other.gguf")
    gguf_files.write(other, FAMILIES["qwen2"], gguf_files.tiny(FAMILIES["qwen2"]))
    spare = pieces[1].read_bytes()
    shutil.copy(split(other, 3)[1], pieces[1])
    with pytest.raises(ModelError, match="do not belong together"):
        find(pieces[0], models)
    pieces[1].write_bytes(spare)
    pieces[0].unlink()

    with pytest.raises(NotFound, match=r"is one of 2 parts, and 1 of them are missing: Tiny"):
        find(pieces[1], models)


# --- through the service ---


def test_it_is_loaded_trained_with_and_described(file: Path, tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path / "workspace", runtime="inline")
    with Service(settings) as service:
        table = service.start(rq.QuantizationTable(source=str(file))).result(timeout=120)
        facts = service.start(rq.LoadModel(source=str(file))).result(timeout=120)
        again = service.start(rq.QuantizationTable(source=str(file))).result(timeout=120)

    assert "will be converted once, into a folder of" in table.note
    assert "in fp32 in the workspace" in table.note
    assert table.parameters == facts.parameters
    assert facts.name == file.name
    assert facts.origin == f"converted from {file.name} (F32)"
    assert Path(facts.path).parent == settings.models_dir.resolve()
    assert again.note == f"It was converted from {file.name} (F32) before."
