"""Windows and macOS, as far as Linux can stand for them: every module imports, and a run works."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backend.files import atomic_files
from backend.service import worker_process

PROJECT = Path(__file__).resolve().parent.parent
# What Windows does not have. Libraries come first: their own builds for Windows need none of it.
PLAY = """
import ctypes, importlib, os, pathlib, pkgutil, signal, subprocess, sys
import accelerate, bitsandbytes, datasets, gradio, numpy, pandas, peft, plotly, psutil, torch
import torch.distributed, transformers
from transformers import AutoModelForCausalLM, Trainer

class Windows(ctypes.CDLL):
    def __init__(self, name, *rest, **named):
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *rest, **named)

def missing(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def play(system):
    gone = ["fcntl", "grp", "pwd", "resource", "termios"] if system == "win32" else []
    for name in gone:
        sys.modules[name] = None
    missing(os, "sched_getaffinity", "posix_fadvise", "memfd_create", "posix_fallocate")
    if system == "win32":
        ctypes.CDLL = Windows
        missing(os, "fork", "forkpty", "geteuid", "getegid", "getgid", "getpgid", "getuid",
                "killpg", "mkfifo", "nice", "setsid", "statvfs", "uname")
        missing(signal, "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2",
                "alarm", "pthread_kill", "setitimer", "sigwait")
        psutil.BELOW_NORMAL_PRIORITY_CLASS = 16384
        signal.SIGBREAK = 21
        subprocess.CREATE_NEW_PROCESS_GROUP = 512
    sys.platform = system

def import_all():
    names = ["app", "start"]
    for package in ("backend", "ui"):
        names += [package, *(each.name for each in pkgutil.walk_packages([package], package + "."))]
    for name in names:
        importlib.import_module(name)
    return len(names)

system = sys.argv[1]
play(system)
"""
RUN = (
    PLAY
    + """
modules = import_all()
workspace = pathlib.Path(sys.argv[2])
from backend.engine.core import memory
memory._STATUS = workspace / "no such /proc"
memory._CLEAR = workspace / "no such /proc either"
from backend import Service, Settings, requests as rq
with Service(Settings(workspace=workspace, runtime="inline")) as service:
    service.start(rq.LoadModel(source="starter")).result(timeout=120)
    train = rq.Train(name="pirate", data="starter:pirate", max_steps=3, tokens_per_step=128,
                     save_every=1)
    done = service.start(train).result(timeout=200)
    said = "".join(service.chat(rq.Chat(messages=[rq.Message(role="user", content="Hello!")],
                                        variant=[("pirate", 1.0)], max_new_tokens=4)))
print(modules > 150, done.state, done.steps, done.peak_memory_bytes > 0, bool(said))
"""
)


def play(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=PROJECT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_imports_and_a_run_and_a_chat_go_through(system: str, tmp_path: Path) -> None:
    assert play(RUN, system, str(tmp_path)) == "True finished 3 True True"


def test_the_end_of_a_worker_is_told_where_there_is_no_sigkill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert worker_process._exit_reason(-9).startswith("it was killed")
    assert worker_process._exit_reason(-11) == "it crashed (SIGSEGV)"
    assert worker_process._exit_reason(-60) == "it crashed (signal 60)"
    monkeypatch.delattr(signal, "SIGKILL")
    assert worker_process._exit_reason(3221225477) == "it ended with exit code 3221225477"


def test_a_file_that_another_program_reads_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to replace a file while it is open elsewhere, as a run's status often is."""
    refusals = iter([PermissionError(13, "Access is denied")] * 2)
    real = atomic_files.os.replace

    def replace(source: Path, target: Path) -> None:
        if error := next(refusals, None):
            raise error
        real(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", replace)
    monkeypatch.setattr(atomic_files, "REPLACE_AGAIN_S", (0.0, 0.0, 0.0))

    atomic_files.write_text(tmp_path / "status.json", "new")

    assert (tmp_path / "status.json").read_text(encoding="utf-8") == "new"
