"""How the processes of a run are started: the command for one machine or for several.

A run with several processes is started with torchrun, which starts one engine per process
(`python -m backend.engine run FOLDER`). Knows nothing of what the engines do.
"""

import os
import shlex
import sys
from pathlib import Path

from backend.errors import InvalidRequest, Unsupported
from backend.results import Launch, ModelFacts
from backend.settings import PROJECT

PORT = 29500
FIRST_MACHINE = "FIRST_MACHINE"
"""Placeholder for the name or address of a machine that all others can reach."""
# torchrun kills processes this long after a stop: a step and a checkpoint must fit in.
SHUTDOWN_S = 120
CHANGED_DATA = "--changed-data"
"""The option of a run's processes to go on although its data has changed."""


def require_places(processes: int, base: ModelFacts) -> None:
    """Raise Unsupported if this machine has too few GPUs or cores for the processes."""
    if processes > base.places:
        kind = "core" if base.device == "cpu" else "GPU"
        have = f"1 {kind}" if base.places == 1 else f"{base.places} {kind}s"
        raise Unsupported(
            f"{processes} processes were requested, but this machine has {have}.",
            cure=f"Set Processes to {base.places} or less, or launch the run on several machines.",
        )


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere all there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def arguments(folder: Path, processes: int, *, changed_data: bool = False) -> list[str]:
    """Return the command that starts a run's processes on this machine."""
    options = [CHANGED_DATA] if changed_data else []
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc_per_node", str(processes), "-m", "backend.engine", "run", str(folder),
        *options,
    ]  # fmt: skip


def environment(processes: int) -> dict[str, str]:
    """Return the environment variables of a launch on this machine.

    By default torchrun gives each process one thread.
    """
    return {
        "OMP_NUM_THREADS": str(max(1, cores() // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S),
    }


def command(folder: Path, processes: int) -> str:
    """Return the command to type on this machine to start a run's processes."""
    return _line(f"--standalone --nproc_per_node {processes}", folder, processes)


def require_shares(processes: int, machines: int) -> None:
    """Raise InvalidRequest if the processes cannot be divided evenly between the machines."""
    if machines < 1 or processes % machines:
        raise InvalidRequest(
            f"{processes} processes cannot be divided evenly between {machines} machines.",
            cure=f"Set Processes to a multiple of {machines}." if machines > 1 else "",
        )


def describe(folder: Path, processes: int, machines: int) -> Launch:
    """Return the command to type on this machine, or on each of several."""
    each = processes // machines
    line = command(folder, processes)
    if machines > 1:
        meeting = f"--rdzv_backend c10d --rdzv_endpoint {FIRST_MACHINE}:{PORT}"
        name = shlex.quote(folder.name)
        options = f"--nnodes {machines} --nproc_per_node {each} {meeting} --rdzv_id {name}"
        line = _line(options, folder, each)
    return Launch(
        run_id=folder.name, folder=str(folder), command=line, machines=machines, each=each
    )


def _line(options: str, folder: Path, each: int) -> str:
    torchrun = shlex.quote(str(Path(sys.executable).parent / "torchrun"))
    variables = " ".join(f"{name}={value}" for name, value in environment(each).items())
    return (
        f"cd {shlex.quote(str(PROJECT))} && {variables} {torchrun} {options} "
        f"-m backend.engine run {shlex.quote(str(folder))}"
    )
