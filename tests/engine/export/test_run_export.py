"""Exported runs: the folder stands alone, and its plain script gives the run's losses again."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.errors import InvalidRequest, NotFound, Unsupported
from backend.results import ExportedRun, RunResult
from tests.engine.stored_bases import write_fp8, write_packed
from tests.engine.tiny import STARTER

QUICK: dict[str, Any] = {"data": "starter:pirate", "tokens_per_step": 256, "precision": "fp32"}
LOSS = re.compile(r"step (\d+) loss (\S+)")


def train(service: Service, name: str, **fields: Any) -> RunResult:
    request = rq.Train(**{**QUICK, "name": name, "max_steps": 8, **fields})
    result: RunResult = service.start(request).result(timeout=300)
    return result


def export(service: Service, run_id: str, folder: Path) -> ExportedRun:
    request = rq.ExportRun(run_id=run_id, destination=str(folder))
    result: ExportedRun = service.start(request).result(timeout=120)
    return result


def losses_of_script(folder: Path, elsewhere: Path) -> list[float]:
    """Run an exported script in a process that cannot import this project."""
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "train_again.py")],
        cwd=elsewhere,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(loss) for _, loss in LOSS.findall(done.stdout)]


def losses_of_run(service: Service, run_id: str) -> list[float]:
    return [e.loss for e in service.events(run_id) if e.type == "step" and e.loss is not None]


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0.5, "max_steps": None},
        {
            "adapter": rq.Lora(rank=4, dropout=0.2, use_rslora=True, targets="attention"),
            "accumulation": 2,
            "scheduler": "linear",
            "weight_decay": 0.1,
            "seed": 7,
        },
        {
            "adapter": rq.Lora(rank=2, use_dora=True, targets=["q_proj", "down_proj"]),
            "scheduler": "constant",
            "gradient_checkpointing": True,
        },
    ],
    ids=["as it comes", "dropout and accumulation", "DoRA and checkpointing"],
)
def test_the_plain_script_gives_the_same_losses_and_weights(
    base_only: Service, tmp_path: Path, fields: dict[str, Any]
) -> None:
    run = train(base_only, base_only.free_name("again"), **fields)
    export(base_only, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert len(losses) == run.steps
    assert losses == pytest.approx(losses_of_run(base_only, run.run_id), rel=1e-5)
    ours = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    again = load_file(tmp_path / "out" / "adapter_again" / "adapter_model.safetensors")
    assert ours.keys() == again.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(again[key], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_that_started_from_an_adapter_is_repeated_from_it(
    base_only: Service, tmp_path: Path
) -> None:
    first = base_only.free_name("first")
    train(base_only, first, max_steps=4)
    run = train(base_only, base_only.free_name("second"), start_from=first)
    export(base_only, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert losses == pytest.approx(losses_of_run(base_only, run.run_id), rel=1e-5)


def test_an_exported_run_stands_alone(base_only: Service, tmp_path: Path) -> None:
    run = train(base_only, base_only.free_name("exported"), max_steps=3)
    base_only.annotate(run.run_id, "the first good one")
    exported = export(base_only, run.run_id, tmp_path / "out")

    assert exported.notes == []
    records = {"request.json", "run.json", "events.jsonl", "output.log", "note.txt"}
    repeats = {"train_again.py", "examples.jsonl", "adapter/adapter_model.safetensors"}
    assert records | repeats <= set(exported.files)
    assert exported.bytes == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.*"))
    asked = json.loads((tmp_path / "out" / "request.json").read_text())
    assert rq.parse(asked.pop("request"), asked) == base_only.runs.get(run.run_id).request.dated
    script = (tmp_path / "out" / "train_again.py").read_text()
    assert "backend" not in script
    assert "type: ignore" not in script
    readme = (tmp_path / "out" / "README.md").read_text()
    named = set(re.findall("^- `(.+?)`", readme, re.MULTILINE))
    assert named | {"README.md"} == {path.name for path in (tmp_path / "out").iterdir()}
    assert "pip install torch==2." in readme
    assert "bitsandbytes" not in readme


def test_a_folder_that_holds_something_is_refused(base_only: Service, tmp_path: Path) -> None:
    run = train(base_only, base_only.free_name("refused"), max_steps=1)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")

    with pytest.raises(
        InvalidRequest, match=r"taken exists and is not an empty folder\. Name a new"
    ):
        export(base_only, run.run_id, taken)
    with pytest.raises(NotFound, match="There is no run 'nothing'"):
        export(base_only, "nothing", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_a_run_whose_adapter_and_data_are_gone_is_exported_with_the_reasons(
    base_only: Service, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Where?", "completion": "Here."}\n' * 3)
    run = train(base_only, base_only.free_name("bereft"), max_steps=1, data=str(file))
    base_only.start(rq.DeleteAdapter(name=run.adapter)).result(timeout=60)
    file.unlink()

    exported = export(base_only, run.run_id, tmp_path / "out")

    assert len(exported.notes) == 2
    assert (
        exported.notes[0]
        == "The run's adapter is not in the library, so this folder has no adapter."
    )
    assert exported.notes[1].startswith("This folder has no script: There is no file ")
    assert "train_again.py" not in exported.files
    readme = (tmp_path / "out" / "README.md").read_text()
    assert exported.notes[1] in readme
    assert "## Repeat the run" not in readme


QUANTISED: dict[str, dict[str, Any]] = {
    "nf4": {"quantization": "nf4", "double_quant": True},
    "fp4 unpacked to bf16": {"quantization": "fp4", "compute_dtype": "bf16"},
    "int8": {"quantization": "int8"},
    "nf4 of a base in bf16": {"quantization": "nf4", "precision": "bf16"},
}


@pytest.mark.parametrize("fields", QUANTISED.values(), ids=QUANTISED)
def test_a_run_on_a_quantised_base_is_repeated_on_one(
    base_only: Service, tmp_path: Path, fields: dict[str, Any]
) -> None:
    base_only.start(rq.LoadModel(source="starter", **fields)).result(timeout=120)
    try:
        run = train(base_only, base_only.free_name("packed"), max_steps=6)
        exported = export(base_only, run.run_id, tmp_path / "out")
    finally:
        base_only.start(rq.LoadModel(source="starter")).result(timeout=120)

    assert exported.notes == []
    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")
    near = 1e-5 if "bf16" not in fields.values() else 2e-3
    assert losses == pytest.approx(losses_of_run(base_only, run.run_id), rel=near)


def packed(folder: Path) -> None:
    write_packed(
        folder, STARTER, load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float16",
    )  # fmt: skip


def in_fp8(folder: Path) -> None:
    shutil.copytree(STARTER, folder)
    write_fp8(folder, block=32)


@pytest.mark.parametrize("write", [packed, in_fp8])
def test_a_run_on_files_that_are_quantised_already_is_repeated_on_them(
    base_only: Service, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "base")
    base_only.start(rq.LoadModel(source=str(tmp_path / "base"))).result(timeout=120)
    try:
        run = train(base_only, base_only.free_name("stored"), max_steps=6)
        exported = export(base_only, run.run_id, tmp_path / "out")
    finally:
        base_only.start(rq.LoadModel(source="starter")).result(timeout=120)

    assert exported.notes == []
    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")
    assert losses == pytest.approx(losses_of_run(base_only, run.run_id), rel=1e-5)


def test_a_quantised_run_of_an_older_version_has_no_script(base_only: Service) -> None:
    run = train(base_only, base_only.free_name("old"), max_steps=1)
    folder = base_only.runs.get(run.run_id)
    folder.update(quantization="nf4")
    file = folder.folder / "request.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base": None}))
    folder._request = None

    with pytest.raises(Unsupported, match="did not record the base's quantisation"):
        base_only.run_script(run.run_id)
