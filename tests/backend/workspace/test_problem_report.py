"""A report of a problem: useful to whoever reads it, and nothing in it about who wrote it."""

import getpass
import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import InvalidRequest, Unsupported
from backend.settings import PROJECT, VERSION
from backend.workspace.log_excerpt import HIDDEN, MOST_LINES, excerpt, public_line
from tests.backend.conftest import FACTS, ScriptedRuntime
from tests.backend.workspaces import Make, add_adapter, add_run, make, wait_there

__all__ = ["make"]
Engines = list[ScriptedRuntime]
TOKEN, PASSWORD = "hf_SeedSeedSeedSeedSeed", "geheim-Passwort-77"
SEEDS = (
    TOKEN, PASSWORD, "Zebrafink", "zebrafink@example.org", "/home/zebrafink", r"C:\Users\zebrafink",
    "Mein Tagebuch", "0170-5550199", "patientin", "zebrafink-laptop", "192.168.178.43",
    "lungenbefund.jsonl", "Wie heisst", "Quarktasche",
)  # fmt: skip
LINES = (
    f"Authorization: Bearer {TOKEN}",
    f"token={TOKEN} password={PASSWORD}",
    f"ValueError: could not read '/home/zebrafink/{SEEDS[11]}': Mein Tagebuch 0170-5550199",
    '  File "/home/zebrafink/Quarktasche/train.py", line 7, in patientin',
    '  File "/home/zebrafink/site-packages/torch/Quarktasche.py", line 7, in patientin',
    f'  File "{PROJECT}/backend/../../home/zebrafink/Quarktasche.py", line 7, in patientin',
    f'  File "{PROJECT}/backend/service.py", line 7, in patientin',
    "/home/zebrafink/Quarktasche.py:12: UserWarning: Mein Tagebuch",
    "Zebrafink: Mein Tagebuch",
    "zebrafink.Quarktasche: patientin",
    "backend.errors.DataError: Row 3 holds 'Mein Tagebuch', which is not a text.",
    '{"prompt": "Wie heisst die patientin?", "completion": "Zebrafink"}',
    "The adapter Zebrafink was made for the base /home/zebrafink/Quarktasche, and x is loaded.",
    "connect to zebrafink-laptop (192.168.178.43) as zebrafink@example.org: Connection refused",
)


@pytest.fixture
def seeded(make: Make, monkeypatch: pytest.MonkeyPatch, engines: Engines) -> Service:
    """A workspace in which every file and field that takes a text holds something private."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("ADAPTER_WORKBENCH_PASSWORD", f"Zebrafink:{PASSWORD}")
    service = make("zebrafink")
    log = "\n".join((*LINES, *(f"Could not write model: {seed}" for seed in SEEDS)))
    for number, state in enumerate(("finished", "failed", "stopped")):
        run = add_run(
            service, "Zebrafink", state, data=f"/home/zebrafink/{SEEDS[11]}",
            held_out="/home/zebrafink/Quarktasche", watch=["Wie heisst die patientin?"],
        )  # fmt: skip
        run.update(
            message=f"Stopped: {SEEDS[6]}", cure=SEEDS[6], error=log, precision=SEEDS[2],
            quantization=SEEDS[2], preparation=SEEDS[2], stored_precision=SEEDS[2],
            host="zebrafink-laptop", retry={"Quarktasche": 1},
        )  # fmt: skip
        run.write_note("Mein Tagebuch")
        run.log.write_text(log)
        (run.folder / "launch.log").write_text(log)
        (run.folder / "launch.json").write_text(json.dumps({"command": log}))
        run.events_file.write_text(json.dumps({"seq": 1, "time": 1, "type": "notice", "text": log}))
        request = json.loads((run.folder / "request.json").read_text())
        request |= {"base_source": "/home/zebrafink/Quarktasche", "base_name": "Quarktasche"}
        request["versions"]["torch"] = TOKEN
        (run.folder / "request.json").write_text(json.dumps(request))
        add_adapter(service, f"Zebrafink {number}", run=run, note=log)
    for name in ("worker.log", "side.log", "app.log", "session.json", "timings.json", "token"):
        (service.settings.workspace / name).write_text(log)
    for name in ("uploads/a/lungenbefund.jsonl", "tokens/a.json", "temporary/a.json"):
        (service.settings.workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (service.settings.workspace / name).write_text(log)
    wait_there(service, "Zebrafink 9", data="/home/zebrafink/lungenbefund.jsonl")
    facts = {"name": "Quarktasche", "source": "/home/zebrafink/x", "path": "/home/zebrafink/x"}
    facts |= {"architecture": "Quarktasche", "precision_reason": log, "quantization_note": log}
    service.start(rq.LoadModel(source="starter"))
    engines[-1].session(FACTS.model_copy(update=facts), [("Zebrafink 0", 1.0)])
    engines[-1].answer(FACTS.model_copy(update=facts))
    service.engine.say("bad", log)
    return service


def report(service: Service) -> dict[str, str]:
    target = service.settings.exports_dir / "problem.zip"
    said = service.report_problem(target)
    with zipfile.ZipFile(target) as packed:
        assert said.files == packed.namelist()
        return {name: packed.read(name).decode() for name in packed.namelist()}


def test_nothing_private_is_in_it(seeded: Service) -> None:
    files = report(seeded)

    found = [
        (name, seed)
        for name, text in files.items()
        for seed in (*SEEDS, str(seeded.settings.workspace), str(Path.home()), str(PROJECT))
        if seed.casefold() in text.casefold()
    ]
    assert found == []
    assert set(files) > {"README.txt", "report.json", "worker.log", "side.log", "run-1.log"}


def test_neither_user_nor_host_is_in_it(seeded: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where they are words that the app's own sentences use."""
    monkeypatch.setattr(getpass, "getuser", lambda: "message")
    monkeypatch.setattr(socket, "gethostname", lambda: "worker")
    (seeded.settings.workspace / "worker.log").write_text(
        "The worker has ended; a message was not delivered.\n"
    )

    files = report(seeded)

    assert files["worker.log"] == "The [...] has ended; a [...] was not delivered."


def test_it_says_what_helps(seeded: Service) -> None:
    said = json.loads(report(seeded)["report.json"])

    assert said["versions"]["app"] == VERSION
    assert said["versions"]["packages"]["gradio"]
    assert said["machine"]["memory_bytes"] > 0
    assert said["settings"]["max_upload_bytes"] == seeded.settings.max_upload_bytes
    assert said["session"]["base"]["parameters"] == FACTS.parameters
    assert said["session"]["base"]["precision"] == "fp32"
    assert said["runs"] == {"finished": 1, "failed": 1, "stopped": 1}
    assert said["waiting"] == 1
    run = said["last_runs"][0]
    assert run["data"] == ".jsonl"
    assert run["settings"]["adapter"]["rank"] == 8
    assert run["settings"]["scheduler"] == "cosine"
    assert run["other_versions"] == ["torch"]
    assert run["watched_questions"] == 1


def test_a_run_that_cannot_be_read_is_said(seeded: Service) -> None:
    for run in seeded.runs.all():
        (run.folder / "status.json").write_text(TOKEN)

    said = json.loads(report(seeded)["report.json"])

    assert said["last_runs"] == [{"unreadable": True}] * 3


def test_a_trace_leads_through_the_app_and_its_packages(tmp_path: Path) -> None:
    code = (
        "from backend.files.foreign_files import open_regular; import pathlib; "
        "open_regular(pathlib.Path('/x/Zebrafink'), 'a file')"
    )
    failed = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True
    )
    (tmp_path / "a.log").write_text(failed.stderr)

    lines = excerpt(tmp_path / "a.log").lines

    assert lines[0] == "Traceback (most recent call last):"
    assert any(
        line.startswith("  File app/backend/files/foreign_files.py, line ") for line in lines
    )
    assert any("in open_regular" in line for line in lines)
    assert any(line.startswith("  File python/pathlib.py, line ") for line in lines)
    assert lines[-1].startswith("FileNotFoundError: ")
    assert "No such file or directory" in lines[-1]
    assert not any("Zebrafink" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
         "OutOfMemoryError: CUDA out of memory. Tried to allocate [...]"),
        ("backend.errors.DiskFull: Could not write a.txt: No space left on device.",
         "DiskFull: Could not write [...] No space left on device."),
        ("Fatal Python error: Segmentation fault", "Fatal Python error: Segmentation fault"),
        ("a line of somebody's", HIDDEN),
        ("KeyError: 'Zebrafink'", "KeyError: [...]"),
        ("RuntimeError", "RuntimeError"),
    ],
)  # fmt: skip
def test_a_line_keeps_what_is_known(line: str, shown: str) -> None:
    assert public_line(line) == shown


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.log").open("w") as file:
        for _ in range(200_000):
            file.write("No space left on device\n")

    assert len(excerpt(tmp_path / "a.log").lines) == MOST_LINES


def test_a_file_that_is_there_is_not_replaced(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("mine")

    with pytest.raises(InvalidRequest, match="already exists"):
        make("here").report_problem(tmp_path / "a.zip")


def test_a_guest_of_a_demo_gets_none(make: Make) -> None:
    here = make("here", demo=True)

    with pytest.raises(Unsupported, match="shared demo"):
        here.report_problem(here.settings.exports_dir / "a.zip", caller="page")
