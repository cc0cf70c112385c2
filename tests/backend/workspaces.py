"""Workspaces with adapters and runs in them, written without an engine."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.library import new_adapter_id
from backend.runs.events import EventWriter
from backend.runs.run_store import Run
from tests.backend.conftest import FACTS, ScriptedRuntime

Make = Callable[..., Service]
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def add_run(service: Service, name: str, state: str = "finished", **train: object) -> Run:
    """Add a run with events, a log, a checkpoint and a best state."""
    request = rq.Train(name=name, **{"data": "starter:pirate", **train})
    run = service.runs.create(
        request,
        base=("starter", "starter", "abc123"),
        adapter_id=new_adapter_id(),
        colour=service.library.next_colour(),
        loaded=rq.LoadModel(source="starter"),
    )
    run.claim()
    events = EventWriter(run.events_file)
    for step in (1, 2):
        events.write("step", step=step, loss=4.0 / step)
    events.close()
    run.log.write_text("a line of the log\n")
    for folder in (run.checkpoints / "checkpoint-2", run.folder / "best"):
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
    run.update(state=state, step=2, total_steps=4, loss=2.0)
    if state != "running":
        run.release()
    return run


def add_adapter(
    service: Service, name: str, *, run: Run | None = None, seed: int = 0, **config: object
) -> rs.AdapterInfo:
    """Add an adapter with small weights."""
    adapter_id = run.request.adapter_id if run else new_adapter_id()
    folder = service.library.folder(adapter_id)
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(8, 16)).astype(np.float32)
    save_file(
        {f"{LAYER}.lora_A.weight": weights, f"{LAYER}.lora_B.weight": weights.T.copy()},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    (folder / "README.md").write_text(f"# {name}\n")
    info = rs.AdapterInfo(
        id=adapter_id,
        name=name,
        colour=service.library.next_colour(),
        method="LoRA",
        rank=8,
        parameters=256,
        base_name="starter",
        base_fingerprint="abc123",
        created=time.time(),
        run_id=run.id if run else None,
        data="starter:pirate",
    )
    service.library.write_sidecar(folder, info)
    return info


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_there(service: Service, name: str, **train: object) -> None:
    request = rq.Train(name=name, **{"data": "starter:pirate", **train})
    service.queue.add(request, FACTS, "local")


@pytest.fixture
def make(engines: list[ScriptedRuntime], tmp_path: Path) -> Iterator[Make]:
    made: list[Service] = []

    def machine(name: str, **settings: object) -> Service:
        made.append(Service(Settings(workspace=tmp_path / name, runtime="inline", **settings)))
        return made[-1]

    yield machine
    for service in made:
        service.close()


@pytest.fixture
def there(make: Make) -> Service:
    """The other machine: a finished run with its adapter, a stopped one, and a blend."""
    service = make("there")
    run = add_run(service, "pirate")
    run.write_note("the good one")
    add_adapter(service, "pirate", run=run, seed=1)
    add_adapter(service, "mix", seed=2)
    add_run(service, "polite", "stopped")
    return service


@pytest.fixture
def zipped(there: Service, tmp_path: Path) -> Path:
    target = tmp_path / "workspace.zip"
    there.export_workspace(target, checkpoints=True)
    return target
