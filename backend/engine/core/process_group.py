"""The processes (ranks) of one run: collective operations, and which process ended and why.

Rank 0 leads: only it writes events, status, checkpoints and the adapter, and it decides where all
must do the same. `ALONE` is a run in one process, where every call returns at once. Knows nothing
of training.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
import torch.distributed as dist

from backend.engine.core import devices
from backend.errors import (
    DiskFull,
    InvalidRequest,
    WorkbenchError,
    WorkerDied,
    from_dict,
)
from backend.files.atomic_files import write_text
from backend.runs.run_store import Run

T = TypeVar("T")
# How long to wait for the reason of a lost connection: a failing process writes it to a file first.
FAILURE_WAIT_S = 3.0
_LOST = (
    "gloo",
    "nccl",
    "xccl",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
)


class Member(NamedTuple):
    """One process of a run."""

    host: str
    pid: int


@dataclass(frozen=True)
class Ranks:
    """This process's rank among the processes that train a run together."""

    rank: int = 0
    world: int = 1
    members: tuple[Member, ...] = ()
    group: Any = None
    """A gloo group, also where GPUs compute: messages must not wait for a GPU."""
    launched: bool = False
    """Whether the run has its own processes, which take commands from its folder."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def agree(self, decide: Callable[[], T]) -> T:
        """Return what rank 0 decides; the other ranks do not call `decide`.

        If it raises a WorkbenchError on rank 0, the same error is raised on all ranks.
        """
        if not self.several:
            return decide()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = decide()
            except WorkbenchError as error:
                box[1] = error.to_dict()
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[1] is not None:
            raise from_dict(box[1])
        agreed: T = box[0]
        return agreed

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; the result is the same on all."""
        return self.sum(int(flag)) > 0

    def sum(self, number: int) -> int:
        """Return the sum of the numbers of all ranks."""
        if not self.several:
            return number
        total = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(total, group=self.group)
        return int(total.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean over all ranks; a value that is not finite makes it so for all.

        value: a scalar tensor of any float dtype; returns float64 on the CPU, () in shape.
        """
        if not self.several:
            return value
        total = value.detach().cpu().double().reshape(1)  # Apple's GPUs have no float64
        dist.all_reduce(total, group=self.group)
        return total[0] / self.world

    def seed_step(self, seed: int, step: int) -> None:
        """Derive a step's random numbers from seed, step and rank.

        So a resumed run repeats them without the random states of all processes; a killed process
        could not save its own. A run in one process keeps its state in its checkpoints.
        """
        if self.several:
            torch.manual_seed((seed * 1_000_003 + step) * self.world + self.rank)

    def describe(self) -> str:
        """Say in one sentence how many processes share the run."""
        machines = len({member.host for member in self.members})
        where = f" on {machines} machines" if machines > 1 else ""
        return f"{self.world} processes{where} share the packs of each step."

    # -- when a process has ended ----------------------------------------------------------------

    def lost(self, error: BaseException) -> bool:
        """Tell whether an error means that the connection to another process broke."""
        if not self.several or isinstance(error, WorkbenchError):
            return False
        text = str(error).lower()
        return isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)
        )

    def explained(self, error: BaseException, run: Run) -> BaseException:
        """Return which process ended and why, if that is what an error means."""
        if not self.lost(error):
            return error
        gone, reason = self._failure(run)
        who = "Another process" if gone is None else f"Process {gone + 1} of {self.world}"
        cure = (
            "Resume continues from the last checkpoint."
            if run.latest_checkpoint() is not None
            else "There was no checkpoint yet: start it again."
        )
        if reason is not None:
            return WorkerDied(
                f"{who} ended: {reason.what}",
                cure=f"{reason.cure} {cure}".strip(),
                details=reason.details,
            )
        return WorkerDied(
            f"{who} has ended: it was killed, by a user or because its machine ran out of memory.",
            cure=cure,
            details=str(error),
        )

    def _failure(self, run: Run) -> tuple[int | None, WorkbenchError | None]:
        """Wait a moment for the failure file of a process, or for the end of one."""
        gone: int | None = None
        until = time.monotonic() + FAILURE_WAIT_S
        while time.monotonic() < until:
            for rank in range(self.world):
                if rank != self.rank and (said := read_failure(run, rank)) is not None:
                    return rank, said
            if gone is not None:  # it ended, and one round later there is still no failure file
                break
            gone = next((rank for rank in range(self.world) if self._is_gone(rank)), None)
            time.sleep(0.25)
        return gone, None

    def _is_gone(self, rank: int) -> bool:
        """Tell whether a process of this machine has ended; False for other machines."""
        if rank >= len(self.members) or rank == self.rank:
            return False
        member = self.members[rank]
        if member.host != socket.gethostname():
            return False
        try:
            return bool(psutil.Process(member.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


ALONE = Ranks()


def asked_for() -> tuple[int, int]:
    """Return this process's rank and the number of processes, from torchrun's environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def require_world(asked: int, started: int, command: str) -> None:
    """Raise InvalidRequest unless as many processes were started as the run asks for.

    `accelerate launch --cpu --num_processes 2` silently starts only one (accelerate 1.15).
    """
    if asked != started:
        verb = "was" if started == 1 else "were"
        want = "1 process" if asked == 1 else f"{asked} processes"
        what = f"This run needs {want}, but {started} {verb} started."
        raise InvalidRequest(what, cure=f"Start it with: {command}")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun started; disconnect them at the end."""
    rank, world = asked_for()
    if world == 1:
        yield Ranks(launched=True)
        return
    backend = devices.connection(device)
    if device != "cpu":
        devices.take(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend)
    if dist.get_world_size() != world:
        raise InvalidRequest(
            f"{world} processes were started, but {dist.get_world_size()} are connected."
        )
    group = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo")
    members: list[Any] = [None] * world
    dist.all_gather_object(members, (socket.gethostname(), os.getpid()), group=group)
    yield Ranks(rank, world, tuple(Member(*each) for each in members), group, launched=True)
    dist.destroy_process_group()  # not reached after an error: the process then exits at once


# -- failure files -------------------------------------------------------------------------------


class FollowingRun(Run):
    """A run as seen by ranks other than 0: they write nothing but their own log."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder)
        self.log = folder / f"output-{rank + 1}.log"
        self.events_file = Path(os.devnull)

    def claim(self, *, launched: bool = False) -> None:
        """Do nothing: rank 0 claims the run for all."""

    def update(self, **changes: object) -> Any:
        """Do nothing: rank 0 writes the status."""
        return self.status()


def write_failure(run: Run, rank: int, error: WorkbenchError) -> None:
    """Write why a process ends, for rank 0 to report, as far as a full disk allows."""
    with suppress(DiskFull):
        write_text(_failure_file(run, rank), json.dumps(error.to_dict()))


def read_failure(run: Run, rank: int) -> WorkbenchError | None:
    """Return why a process ended, if it wrote a failure file."""
    try:
        return from_dict(json.loads(_failure_file(run, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def forget_failures(run: Run) -> None:
    """Remove the failure files of an earlier segment."""
    for file in run.folder.glob("failed-*.json"):
        file.unlink(missing_ok=True)


def _failure_file(run: Run, rank: int) -> Path:
    return run.folder / f"failed-{rank + 1}.json"
