"""One process of a run in separate processes: `python -m backend.engine run FOLDER`.

torchrun or `accelerate launch` starts as many processes as the run asks for. Each loads the base
and trains its share of every step. Rank 0 leads; only it writes into the workspace.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from backend.engine.core import devices, memory, process_group
from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.core.library_logging import quiet_libraries
from backend.engine.core.process_group import FollowingRun, Ranks
from backend.engine.runs import train_run
from backend.engine.runs.run_log import RunLog
from backend.engine.session import Session
from backend.errors import Busy, InvalidRequest, Unsupported, WorkbenchError
from backend.files.atomic_files import write_text
from backend.library import Library
from backend.requests import LoadModel
from backend.results import RunResult
from backend.runs import launch_commands
from backend.runs.run_store import Run, Runs
from backend.settings import Settings

LISTEN_EVERY_S = 0.2
TOLD_EVERY_S = 2.0
# A terminal and a launcher may both forward a single Ctrl-C.
ONE_PRESS_S = 3.0


def main(argv: list[str]) -> int:
    """Take part in the run of a folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m backend.engine run", description=__doc__)
    parser.add_argument("folder", type=Path, help="The run's folder in the workspace.")
    parser.add_argument(
        launch_commands.CHANGED_DATA, action="store_true", help="Go on although its data changed."
    )
    options = parser.parse_args(argv)
    folder = options.folder.expanduser().absolute()
    quiet_libraries()
    try:
        _require_plain_launch()
        run, place = _find(folder), process_group.asked_for()
        _require_world(run, place)
        result = _take_part(run, changed_data=options.changed_data)
    except WorkbenchError as error:
        if process_group.asked_for()[0] == 0:
            print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    if process_group.asked_for()[0] == 0:
        print(f"{result.state}: {result.steps} of {result.total_steps} steps.", file=sys.stderr)
    return 0


def _find(folder: Path) -> Run:
    runs = Runs(folder.parent)
    if folder.parent.name != "runs":
        raise InvalidRequest(
            f"{folder} is not a run's folder.", cure="Runs are in the folder runs of a workspace."
        )
    return runs.get(folder.name)


def _require_world(run: Run, place: tuple[int, int]) -> None:
    """Raise where a wrong number of processes was started; a queued run then counts as failed."""
    rank, started = place
    asked = run.request.train.processes
    try:
        process_group.require_world(asked, started, launch_commands.command(run.folder, asked))
    except InvalidRequest as error:
        if rank == 0 and run.status().state == "queued":
            run.update(state="failed", message=error.what, cure=error.cure, error="InvalidRequest")
        raise


def _take_part(run: Run, *, changed_data: bool) -> RunResult:
    request = _base_request(run)
    settings = Settings(workspace=run.folder.parent.parent)
    kind = "cpu" if request.device == "cpu" else devices.gpu() or "cpu"
    with process_group.joined(kind) as crew:
        control = Control(0, _narrator(crew))
        _listen_to_signals(control)
        resume = crew.agree(lambda: _must_resume(run))
        if not crew.leads:
            run = FollowingRun(run.folder, crew.rank)
        _limit_memory(settings)
        memory.set_aside()
        try:
            result = _train(
                run, request, control, settings, crew, resume=resume, changed_data=changed_data
            )
        except BaseException as error:
            _end_at_once(run, crew, error)
        if crew.leads:
            write_text(run.folder / "result.json", result.model_dump_json(indent=1))
        return result


def _require_plain_launch() -> None:
    """Raise Unsupported where accelerate's configuration would split the model itself."""
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise Unsupported(
                f"This launch is configured for {kind}, but here each process holds the whole "
                "base.",
                cure="Launch it with torchrun, or with another configuration of accelerate.",
            )


def _base_request(run: Run) -> LoadModel:
    return run.request.base or LoadModel(source=run.request.base_source)


def _must_resume(run: Run) -> bool:
    """Tell whether the run continues from a checkpoint; raises where there is nothing to do.

    Rank 0 decides this before it writes anything, and then removes what an earlier segment left.
    """
    status = run.known_status()
    if status.state == "finished":
        raise InvalidRequest(f"The run {run.id!r} is finished; there is nothing left to train.")
    if status.state == "running" and run.is_alive():
        raise Busy(f"The run {run.id!r} is still running: process {status.pid} trains it.")
    process_group.forget_failures(run)
    _drop_old_command(run, _begun())
    (run.folder / "result.json").unlink(missing_ok=True)
    return run.latest_checkpoint() is not None


def _train(
    run: Run,
    request: LoadModel,
    control: Control,
    settings: Settings,
    crew: Ranks,
    *,
    resume: bool,
    changed_data: bool,
) -> RunResult:
    before = run.known_status()
    run.claim(launched=True)
    if crew.leads:
        _listen_to_folder(run, control)
    session = Session(Library(settings.adapters_dir), settings.models_dir)
    try:
        facts = session.load_base(request, control)
        if facts.fingerprint != run.request.base_fingerprint:
            raise Unsupported(
                f"This run belongs to the base {run.request.base_name!r}, but {request.source!r} "
                "is a different base.",
                cure="Put the same base at the same place on every machine.",
            )
        crew.sum(1)  # all processes loaded the base; a failure of another one is raised here
    except BaseException as error:
        known = translate(crew.explained(error, run))
        log = RunLog(run, control, before if resume else None)
        log.failed(known)
        log.close()
        raise known from error
    return train_run.train(
        session,
        run,
        control,
        settings,
        resume=resume,
        changed_data=changed_data,
        ranks=crew,
        before=before,
    )


def _end_at_once(run: Run, crew: Ranks, error: BaseException) -> NoReturn:
    """Report why, and exit without the clean-up that would wait for processes that have ended."""
    known = translate(error)
    if not crew.leads:
        process_group.write_failure(run, crew.rank, known)
    who = f"Process {crew.rank + 1} of {crew.world}: " if crew.several else "Error: "
    print(f"{who}{known}", file=sys.stderr, flush=True)
    if not crew.several:
        raise known from error
    sys.stdout.flush()
    os._exit(1)


def _limit_memory(settings: Settings) -> None:
    """Limit each process of this machine to its share of the memory."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = int(psutil.virtual_memory().available) - settings.memory_reserve_bytes
    memory.DataLimit(
        reserve=settings.memory_reserve_bytes, limit=max(free // beside, memory.LEAST_ROOM)
    )


# -- commands and progress -----------------------------------------------------------------------


def _listen_to_signals(control: Control) -> None:
    """End the run with a saved state on the launcher's first signal, at once on a later one."""
    heard: list[float] = []

    def hear(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if heard and now - heard[-1] < ONE_PRESS_S:
            return
        heard.append(now)
        control.hear("stop" if len(heard) == 1 else "abort")

    signal.signal(signal.SIGTERM, hear)
    signal.signal(signal.SIGINT, hear)


def _listen_to_folder(run: Run, control: Control) -> None:
    """Follow the commands that the page or another program writes into the run's folder."""
    threading.Thread(target=_read_commands, args=(run, control), daemon=True).start()


def _begun() -> float:
    """Return when this launch started: the start of torchrun, our parent, or of this process."""
    started = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    return float(psutil.Process(started).create_time())


def _drop_old_command(run: Run, begun: float) -> None:
    """Drop a command meant for an earlier segment; allows for clocks that differ by a second."""
    said = run.folder / "control"
    if said.is_file() and said.stat().st_mtime < begun - 1.0:
        run.forget_words()


def _read_commands(run: Run, control: Control) -> None:
    heard = ""
    while True:
        said = run.told()
        word = said.partition(" ")[0]
        if word in ("stop", "abort", "save") and said != heard:
            heard = said
            control.hear(word)
        time.sleep(LISTEN_EVERY_S)


def _narrator(crew: Ranks) -> Callable[[dict[str, Any]], None]:
    """Return what prints progress to the terminal: rank 0 only, once every few seconds."""
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8")  # fd 2 is redirected to the run's log
    told = [0.0]

    def narrate(message: dict[str, Any]) -> None:
        now = time.monotonic()
        if not crew.leads or now - told[0] < TOLD_EVERY_S:
            return
        told[0] = now
        print(message.get("text", ""), file=terminal, flush=True)

    return narrate
