"""Problem reports: a zip file of versions, settings and the last log lines, nothing private.

No data, prompts, names, paths or secrets. Settings are only numbers and choices, and log lines only
contain text that `log_excerpt` knows to be public. Finally everything is searched again for names
of this user or machine.
"""

import getpass
import json
import os
import platform
import re
import shutil
import socket
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import psutil

from backend.catalogue.packaged_models import MODEL_NAMES
from backend.catalogue.quantizations import QUANTIZATIONS
from backend.files.atomic_files import make_folder, new_file
from backend.files.uploads import DATA_SUFFIXES
from backend.library import Library
from backend.requests import Train
from backend.requests.command_line import fields_of
from backend.results import ReportedProblem, Snapshot
from backend.runs.run_store import VERSIONED, Run, Runs
from backend.settings import PROJECT, VERSION, Settings
from backend.workspace.archive import require_new_zip
from backend.workspace.log_excerpt import HIDDEN, excerpt, public_text
from backend.workspace.versions import FORMAT

PACKAGES = (
    *VERSIONED, "datasets", "gradio", "gradio_client", "huggingface_hub", "numpy", "pyarrow",
    "pydantic", "starlette", "tokenizers", "uvicorn",
)  # fmt: skip
LAST_RUNS = 3
README = """\
A report of a problem with Adapter Workbench, to be attached to a message or an issue.

report.json   versions, this machine's size, settings as numbers and choices, how runs ended
*.log         the last lines of the logs; [...] replaces text that may be private

No data, prompts, names, paths, tokens or passwords are in it. Nothing was sent anywhere.
"""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ADAPTER_WORKBENCH_PASSWORD")
_PRECISIONS = ("fp32", "bf16", "fp16")
_STATES = ("queued", "running", "finished", "stopped", "failed", "interrupted")


def write(
    target: Path, *, settings: Settings, library: Library, runs: Runs, snapshot: Snapshot
) -> ReportedProblem:
    """Write the zip file; raises InvalidRequest if the path is not allowed, or DiskFull."""
    require_new_zip(target, settings)
    logs = {name: excerpt(file) for name, file in _logs(settings, runs).items()}
    about = _about(settings, library, runs, snapshot)
    private = list(_private_words(settings))
    files = {
        "README.txt": README,
        "report.json": json.dumps(_cleaned(about, private), indent=1),
        **{name: _clean("\n".join(log.lines), private) for name, log in logs.items() if log.lines},
    }
    make_folder(target.parent)
    with new_file(target) as partial, zipfile.ZipFile(partial, "x", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return ReportedProblem(
        path=str(target),
        bytes=target.stat().st_size,
        files=list(files),
        hidden=sum(log.hidden for log in logs.values()),
    )


def _logs(settings: Settings, runs: Runs) -> dict[str, Path]:
    """Return the logs by their names in the zip file."""
    named = {name: settings.workspace / name for name in ("worker.log", "side.log")}
    for number, run in enumerate(runs.all()[:LAST_RUNS], start=1):
        named[f"run-{number}.log"] = run.log
        named[f"run-{number}-launch.log"] = run.folder / "launch.log"
    return named


# --- versions, machine and session ---


def _about(settings: Settings, library: Library, runs: Runs, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "versions": _versions(),
        "machine": _machine(settings),
        "settings": _settings(settings),
        "session": _session(snapshot),
        "adapters": Counter(info.origin for info in library.all()),
        "runs": Counter(run.state for run in snapshot.runs if run.state in _STATES),
        "waiting": len(snapshot.queue),
        "last_runs": [described for run in runs.all()[:LAST_RUNS] if (described := _run(run))],
    }


def _versions() -> dict[str, Any]:
    return {
        "app": VERSION,
        "workspace_format": FORMAT,
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _installed(name))},
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _machine(settings: Settings) -> dict[str, Any]:
    kernel = re.match(r"[\d.]*\d", platform.release())
    return {
        "system": platform.system(),
        "kernel": kernel.group() if kernel else "",
        "processor": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(settings.workspace).free,
        "nvidia": any(map(os.path.exists, ("/dev/nvidia0", "/proc/driver/nvidia/version"))),
        "container": os.path.exists("/.dockerenv"),
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """Return settings that are numbers or choices, and how many folders are allowed."""
    plain = {
        name: value
        for name in Settings.model_fields
        if isinstance(value := getattr(settings, name), int | float | bool | None)
    }
    return {**plain, "runtime": settings.runtime, "allowed_roots": len(settings.allowed_roots)}


def _session(snapshot: Snapshot) -> dict[str, Any]:
    job = snapshot.job
    said: dict[str, Any] = {
        "phase": snapshot.phase,
        "job": job.operation if job is not None else None,
        "adapters_on": len(snapshot.active),
        "slot_prepared": snapshot.slot is not None,
        "worker_memory_bytes": snapshot.memory_bytes,
        "notice": public_text(snapshot.notice.text) if snapshot.notice is not None else None,
    }
    if snapshot.base is not None:
        facts = snapshot.base.model_dump()
        numbers = {k: v for k, v in facts.items() if isinstance(v, int | float | bool)}
        device = re.match(r"[a-z]{2,5}", snapshot.base.device)
        said["base"] = {
            **numbers,
            "precision": _choice(snapshot.base.precision, _PRECISIONS),
            "quantization": _choice(snapshot.base.quantization, tuple(QUANTIZATIONS)),
            "device": device.group() if device else "",
            "is_starter": snapshot.base.source == "starter",
            "known_as": _choice(snapshot.base.source, MODEL_NAMES),
        }
    return said


# --- runs ---


def _run(run: Run) -> dict[str, Any]:
    """Return a run's settings and how it ended, as numbers and choices."""
    try:
        request, status = run.request, run.status()
    except Exception:  # unreadable files may be the problem that is reported
        return {"unreadable": True}
    numbers = {k: v for k, v in status.model_dump().items() if isinstance(v, int | float | bool)}
    for private in ("pid", "process_started"):
        numbers.pop(private, None)
    now = {name: _installed(name) for name in VERSIONED}
    return {
        **numbers,
        "state": status.state,
        "message": public_text(status.message),
        "error": public_text(status.error),
        "precision": _choice(status.precision, _PRECISIONS),
        "quantization": _choice(status.quantization, tuple(QUANTIZATIONS)),
        "other_versions": [name for name in VERSIONED if request.versions.get(name) != now[name]],
        "data": _kind_of_data(request.train.data),
        "watched_questions": len(request.train.watch or []),
        "starts_from_an_adapter": request.train.start_from is not None,
        "settings": _numbers_and_choices(request.train.model_dump(mode="json")),
    }


def _kind_of_data(source: str) -> str:
    if source.startswith("starter:"):
        return "bundled"
    suffix = Path(source).suffix.lower()
    return suffix if suffix in DATA_SUFFIXES else "other"


def _numbers_and_choices(values: dict[str, Any]) -> dict[str, Any]:
    """Return a request's values without texts that a user wrote."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            kept[name] = _numbers_and_choices(value)
        elif isinstance(value, int | float | bool) or (
            isinstance(value, str) and value in _choices()
        ):
            kept[name] = value
    return kept


def _choices() -> set[str]:
    """Return every option that a training request offers."""
    return {word for _, field in fields_of(Train) for word in _literals(field.annotation)}


def _literals(annotation: object) -> Iterator[str]:
    for each in get_args(annotation):
        yield from [each] if isinstance(each, str) else _literals(each)


def _choice(value: str, choices: tuple[str, ...]) -> str:
    return value if value in choices else ""


# --- the final search ---


def _private_words(settings: Settings) -> Iterator[str]:
    """Yield texts that identify this user or machine."""
    yield from {str(settings.workspace.resolve()), str(settings.workspace), str(Path.home())}
    yield from (str(root) for root in (*settings.allowed_roots, PROJECT))
    yield from {socket.gethostname(), socket.getfqdn(), platform.node(), settings.owner}
    yield from (os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME"))
    yield from (part for name in SECRETS for part in os.environ.get(name, "").split(":"))
    try:
        yield getpass.getuser()
    except (OSError, KeyError, ImportError):
        return


def _clean(text: str, private: list[str]) -> str:
    for word in sorted(set(private), key=len, reverse=True):
        if len(word) > 2:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


def _cleaned(value: Any, private: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(each, private) for key, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each, private) for each in value]
    return _clean(value, private) if isinstance(value, str) else value
