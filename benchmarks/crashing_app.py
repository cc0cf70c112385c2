"""An app without a page, made to be killed: trains run after run, and goes on with what broke off.

Started by `crash_recovery` with a workspace and the kinds of runs; reports on standard output what
happens, one JSON object a line. It does what a person would: resumes a run that has a checkpoint,
starts one again that has none, and loads the base where it does not come back by itself.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from backend import Service, Settings
from backend import requests as rq
from backend.errors import WorkbenchError, WorkerDied
from backend.results import RunResult, RunSummary

TIMEOUT_S = 600.0
LOOK_EVERY_S = 0.02
ORPHAN_S = 30.0


def main() -> None:
    """Open the workspace and train: new runs without an end, or only what is not finished."""
    order = json.loads(sys.argv[1])
    cases = cycle(order["cases"]) if order["new"] else iter(())
    with Service(Settings(workspace=Path(order["workspace"]))) as service:
        wait_for_orphans(service)
        say(opened={each.id: each.state for each in service.snapshot().runs})
        service.restore()
        going = True
        while going:
            try:
                wait_for_base(service)
                going = train_next(service, order, cases)
            except WorkerDied as error:
                say(died=str(error))
    say(closed=True)


def say(**what: object) -> None:
    """Report one thing."""
    print(json.dumps(what), flush=True)


def wait_for_orphans(service: Service) -> None:
    """Give the worker of an app that was killed a moment to notice that and to end."""
    until = time.monotonic() + ORPHAN_S
    while any(each.state == "running" for each in service.snapshot().runs):
        if time.monotonic() > until:
            return
        time.sleep(LOOK_EVERY_S)


def wait_for_base(service: Service) -> None:
    """Wait until the session is back; load the base where it does not come back by itself."""
    while service.snapshot().job is not None:
        time.sleep(LOOK_EVERY_S)
    if service.snapshot().base is None:
        service.start(rq.LoadModel(source="starter")).result(TIMEOUT_S)
    say(ready=True)


def train_next(service: Service, order: dict[str, Any], cases: Iterator[str]) -> bool:
    """Go on with a run that broke off, or start a new one; False where none is left to do."""
    runs = [each for each in service.snapshot().runs if each.id not in order["given_up"]]
    broken = [each for each in runs if each.state != "finished"]
    if broken:
        go_on(service, broken[-1])
        return True
    case = next(cases, None)
    if case is None:
        return False
    begin(service, rq.Train.model_validate({**order["cases"][case], "name": case}))
    return True


def go_on(service: Service, run: RunSummary) -> None:
    """Resume a run, or start it again where it has no checkpoint yet."""
    try:
        if not run.resumable:
            begin(service, service.runs.get(run.id).request.train, instead_of=run.id)
            return
        job = service.start(rq.Resume(run_id=run.id))
        say(resumed=run.id)
        say_result(job.result(TIMEOUT_S))
    except WorkerDied:
        raise
    except WorkbenchError as error:
        say(refused=run.id, why=str(error))
        raise


def begin(service: Service, train: rq.Train, *, instead_of: str = "") -> None:
    """Train a new run under a free name; the one that it stands for is deleted."""
    job = service.start(train.model_copy(update={"name": service.free_name(train.name)}))
    say(started=job.run_id, instead_of=instead_of)
    if instead_of:
        service.delete_run(instead_of)
    say_result(job.result(TIMEOUT_S))


def say_result(result: RunResult) -> None:
    """Report a finished run."""
    say(finished=result.run_id, steps=result.steps, adapter=result.adapter_path)


if __name__ == "__main__":
    main()
