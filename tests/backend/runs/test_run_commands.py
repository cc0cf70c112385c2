"""A run as a command: the line, read by the command line's own parser, is the same request."""

import json
import shlex
from pathlib import Path

import pytest

from backend import Settings
from backend import requests as rq
from backend.__main__ import _parser, _request
from backend.requests.command_line import command_of
from backend.runs import adjustments
from backend.runs.run_commands import commands_of
from backend.runs.run_store import Run, Runs
from backend.settings import default_workspace

TRAINS = [
    rq.Train(name="plain"),
    rq.Train(
        name="my adapter 2",
        data="/data of mine/it's \"quoted\" $HOME.jsonl",
        adapter=rq.Lora(rank=16, alpha=8.5, dropout=0.05, targets=["q_proj", "self_attn.v_proj"],
                        use_rslora=True),
        epochs=0.5,
        max_steps=12,
        learning_rate=1e-5,
        scheduler="linear",
        precision="fp32",
        gradient_checkpointing=True,
        start_from="123",
    ),
    rq.Train(name="7", data="42", adapter=rq.Lora(targets="attention", use_dora=True)),
]  # fmt: skip


def read(line: str) -> rq.Request:
    """Read a line as a shell and the command line do."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "backend"]
    return _request(_parser().parse_args(words[3:]))


def make_run(root: Path, train: rq.Train) -> Run:
    return Runs(root).create(
        train, base=("starter", "starter", "f"), adapter_id="ad_000001", colour="#009E73"
    )


@pytest.mark.parametrize("train", TRAINS, ids=lambda train: train.name)
def test_the_line_is_the_same_request(tmp_path: Path, train: rq.Train) -> None:
    settings = Settings(workspace=tmp_path / "my workspace")
    found = commands_of(make_run(settings.runs_dir, train), settings, free=train.name)

    assert read(found.fields) == train
    assert read(found.file) == train
    assert found.note == ""


def test_the_line_names_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    train = rq.Train(name="pirate", seed=7)

    assert command_of(train, Settings(workspace=default_workspace())) == (
        "python -m backend train --name pirate --seed 7"
    )
    assert command_of(train, Settings(workspace=tmp_path)) == (
        f"python -m backend --workspace {tmp_path} train --name pirate --seed 7"
    )


def test_the_base_is_loaded_as_it_was(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    run = make_run(settings.runs_dir, TRAINS[0])
    run.update(quantization="nf4", stored_precision="bf16")

    found = commands_of(run, settings, free="plain 2")

    wanted = rq.LoadModel(source="starter", precision="bf16", quantization="nf4")
    assert read(found.base) == wanted
    assert read(found.fields) == TRAINS[0].model_copy(update={"name": "plain 2"})
    assert found.note == (
        "An adapter called plain already exists here, so this one is called plain 2. "
        "To use the request file, rename the existing adapter first."
    )


def test_an_exported_request_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"request": "train", **TRAINS[1].model_dump(mode="json")}))

    assert read(f"python -m backend run {file}") == TRAINS[1]


def test_what_came_later_is_said_to_be_left_out(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    run = make_run(settings.runs_dir, TRAINS[0])
    adjustments.add(run.folder, adjustments.Adjustment(step=5, watch=["Hi"]))
    assert commands_of(run, settings, free=TRAINS[0].name).note == ""
    adjustments.add(run.folder, adjustments.Adjustment(step=5, total_steps=7))

    note = commands_of(run, settings, free=TRAINS[0].name).note

    assert note.startswith(
        "This run was changed during training. The commands repeat it as first requested"
    )


def test_an_extended_run_is_said_to_be_one(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    run = make_run(settings.runs_dir, TRAINS[0])
    run.update(extra_epochs=[1.0])

    assert "was extended after its end" in commands_of(run, settings, free=TRAINS[0].name).note
