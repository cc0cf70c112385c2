"""Worker and app killed at random moments of short runs: what is lost, and are the bits the same?

An app without a page trains run after run on the starter model. Its worker, the app, or both get
SIGKILL, at a random moment or in a random phase of a run. A new app on the same workspace resumes
what broke off. Each adapter is compared with that of an undisturbed run of the same settings.
"""

import json
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from backend import requests as rq
from backend.runs.events import EventReader, curve
from backend.settings import PROJECT
from benchmarks.interleave import Spread
from benchmarks.report import Report, flags, read_flags

STEPS = 12
COMMON: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 128,
    "max_steps": STEPS,
    "save_every": 3,
    "precision": "fp32",
}
CASES: dict[str, rq.Train] = {
    "plain": rq.Train(name="plain", **COMMON),
    "dropout": rq.Train(
        name="dropout", adapter=rq.Lora(rank=4, dropout=0.1), accumulation=2, **COMMON
    ),
    "best": rq.Train(name="best", keep_best=True, eval_share=0.1, scheduler="cosine", **COMMON),
}
"""Kinds of runs; two runs of a kind end with the same bits."""

VICTIMS = ("worker", "app", "both")
PHASES = ("any moment", "start", "evaluation", "step", "checkpoint", "saving", "publishing")
PATIENCE_S = 240.0
"""An app that reports nothing for so long hangs."""
LOOK_EVERY_S = 0.003


class Hangs(Exception):
    """The app reports nothing any more."""


@dataclass
class Findings:
    """What was seen over all kills."""

    kills: Counter[str] = field(default_factory=Counter)
    announced: set[str] = field(default_factory=set)
    resumed: set[str] = field(default_factory=set)
    again: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    """Finished runs: how they differ from an undisturbed one of the same kind; empty if not."""
    lost: dict[str, str] = field(default_factory=dict)
    """Lost runs, each with the reason."""
    back: list[float] = field(default_factory=list)
    """Seconds from a kill until a run goes on."""


class App:
    """One process of the app; what it reports comes line by line."""

    def __init__(self, workspace: Path, *, new: bool, given_up: list[str]) -> None:
        cases = {name: train.model_dump(mode="json") for name, train in CASES.items()}
        order = {"workspace": str(workspace), "cases": cases, "new": new, "given_up": given_up}
        self._log = (workspace.parent / "app.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.crashing_app", json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=PROJECT,
        )
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._log.close()

    def next(self, timeout: float) -> dict[str, Any] | None:
        """Return what it reports next, None once it is gone; raises Hangs."""
        try:
            return self._said.get(timeout=timeout)
        except queue.Empty:
            raise Hangs(f"Nothing was reported for {timeout:.0f} s.") from None

    def has_more(self) -> bool:
        """Tell whether it has reported something that was not read yet."""
        return not self._said.empty()

    def kill(self, victim: str) -> None:
        """Kill its worker, itself, or both at once."""
        workers = [] if victim == "app" else self._workers()
        if victim != "worker":
            self._process.send_signal(signal.SIGKILL)
        for worker in workers:
            try:
                worker.kill()
            except psutil.NoSuchProcess:
                continue

    def _workers(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self._process.pid).children()
            return [each for each in children if "backend.engine" in each.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # a kill may cut one off
                self._said.put(json.loads(line))
        self._process.stdout.close()
        self._said.put(None)


class Trial:
    """Kills apps over one workspace until enough were killed, and then lets the last one finish."""

    def __init__(self, folder: Path, reference: dict[str, bytes], span_s: float, seed: int) -> None:
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        self.found = Findings()
        self._reference = reference
        self._span_s = span_s
        self._random = random.Random(seed)
        self._run = ""
        self._began = 0.0
        self._events_before = ""
        self._killed: float | None = None

    def go(self, kills: int) -> None:
        """Do so many kills; afterwards everything that broke off is finished."""
        while self.found.kills.total() < kills:
            self._session(kills)
        with self._app(new=False) as app:
            self._listen_to_the_end(app)
        for run_id in self.found.announced - self.found.finished.keys():
            self.found.lost.setdefault(run_id, "it was never finished")

    def _app(self, *, new: bool) -> App:
        return App(self.workspace, new=new, given_up=list(self.found.lost))

    def _session(self, kills: int) -> None:
        """Open an app and kill: workers first perhaps, in the end the app."""
        with self._app(new=True) as app:
            while self.found.kills.total() < kills:
                victim, phase = self._random.choice(VICTIMS), self._random.choice(PHASES)
                if not self._wait_for(app, phase):
                    return
                app.kill(victim)
                self.found.kills[f"{victim}, {phase}"] += 1
                print(f"{self.found.kills.total()}: {victim} killed, {phase}", flush=True)
                self._killed, self._run = time.monotonic(), ""
                if victim != "worker":
                    self._listen_to_the_end(app)
                    return

    def _listen_to_the_end(self, app: App) -> None:
        try:
            while (said := app.next(PATIENCE_S)) is not None:
                self._note(said)
        except Hangs as error:
            self.found.lost[self._run] = str(error)

    # -- the moment ------------------------------------------------------------------------------

    def _wait_for(self, app: App, phase: str) -> bool:
        """Wait until a phase of a run begins, and a little more; False where the app is gone."""
        later = self._random.uniform(0, self._span_s)
        if phase == "any moment":
            return self._listen(app, later)
        step = self._random.randint(1, STEPS)
        more = self._random.uniform(0, 0.5) * self._random.random() ** 2  # mostly short
        until = time.monotonic() + PATIENCE_S
        while not self._has_begun(phase, step):
            if not self._listen(app, LOOK_EVERY_S):
                return False
            if time.monotonic() > until:
                break  # it does not come: now is a moment, too
        return self._listen(app, more)

    def _listen(self, app: App, seconds: float) -> bool:
        """Take in what the app reports for a while; False where it is gone."""
        until = time.monotonic() + seconds
        while True:
            while app.has_more():
                said = app.next(0)
                if said is None:
                    return False
                self._note(said)
            if (left := until - time.monotonic()) <= 0:
                return True
            time.sleep(min(left, LOOK_EVERY_S))

    def _has_begun(self, phase: str, step: int) -> bool:
        """Look at the folder of the run that goes on, for what is new since it does."""
        if not self._run or self._run in self.found.finished:
            return False
        run = self.workspace / "runs" / self._run
        match phase:
            case "start":
                return run.exists()
            case "checkpoint":
                return (run / "checkpoints" / ".partial").exists()
            case "saving":
                return any((self.workspace / "adapters").glob(".ad_*.partial"))
            case "publishing":
                return self._adapter_is_there(run)
        new = events_of(run).removeprefix(self._events_before)
        if phase == "evaluation":
            return '"type":"evaluation"' in new
        return new.count('"type":"step"') >= min(step, STEPS - 1)

    def _adapter_is_there(self, run: Path) -> bool:
        request = json.loads((run / "request.json").read_text())
        folder = self.workspace / "adapters" / request["adapter_id"]
        return folder.exists() and folder.stat().st_ctime > self._began

    # -- what the app reports --------------------------------------------------------------------

    def _note(self, said: dict[str, Any]) -> None:
        found = self.found
        match said:
            case {"opened": states}:
                self._check_list(states)
            case {"started": run_id, "instead_of": other}:
                found.announced.add(run_id)
                if other:
                    found.announced.discard(other)
                    found.again += 1
                self._goes_on(run_id)
            case {"resumed": run_id}:
                found.resumed.add(run_id)
                self._goes_on(run_id)
            case {"refused": run_id, "why": why}:
                found.lost[run_id] = why
            case {"finished": run_id, "adapter": adapter}:
                found.finished[run_id] = self._difference(run_id, Path(adapter))

    def _goes_on(self, run_id: str) -> None:
        self._run, self._began = run_id, time.time()
        self._events_before = events_of(self.workspace / "runs" / run_id)
        if self._killed is not None:
            self.found.back.append(time.monotonic() - self._killed)
            self._killed = None

    def _check_list(self, states: dict[str, str]) -> None:
        """Note what a new app does not list, or lists as something that it cannot be."""
        for run_id in self.found.announced:
            state = states.get(run_id, "not listed")
            wanted = {"finished"} if run_id in self.found.finished else {"finished", "interrupted"}
            if state not in wanted:
                self.found.lost[run_id] = f"a new app says: {state}"

    def _difference(self, run_id: str, adapter: Path) -> str:
        """Compare a finished run's adapter and curve with what they have to be."""
        run = self.workspace / "runs" / run_id
        case = json.loads((run / "request.json").read_text())["train"]["name"].split()[0]
        if weights(adapter) != self._reference[case]:
            return "other weights"
        steps = curve(EventReader(run / "events.jsonl").poll()).step
        return "" if steps == list(range(1, STEPS + 1)) else f"its curve has the steps {steps}"


def main(arguments: list[str] | None = None) -> int:
    """Kill and report; the exit status tells whether nothing was lost."""
    parser = flags(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, help="of the random moments; default: drawn")
    chosen, words = read_flags(parser, arguments, kills=2)
    chosen.seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"seed {chosen.seed}", flush=True)
    report = Report("crash_recovery", "Worker and app killed at random moments", words)
    folder, began = Path(tempfile.mkdtemp(prefix="crash-recovery-")), time.monotonic()
    reference, span_s = undisturbed(folder)
    trial = Trial(folder, reference, span_s, chosen.seed)
    trial.go(chosen.kills)
    tell(trial.found, chosen, time.monotonic() - began, report)
    report.finish(save=chosen.save)
    if trial.found.lost or any(trial.found.finished.values()):
        print(f"The workspaces are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def undisturbed(folder: Path) -> tuple[dict[str, bytes], float]:
    """Train each kind once without a kill; returns their weights and the seconds a run takes.

    The first run begins with an app that starts, so these seconds are an upper bound.
    """
    workspace = folder / "undisturbed" / "workspace"
    workspace.mkdir(parents=True)
    found: dict[str, bytes] = {}
    began = time.monotonic()
    with App(workspace, new=True, given_up=[]) as app:
        for case in CASES:
            while "finished" not in (said := app.next(PATIENCE_S) or {}):
                if not said:
                    raise RuntimeError("The app ended by itself.")
            found[case] = weights(Path(said["adapter"]))
    return found, (time.monotonic() - began) / len(CASES)


def events_of(run: Path) -> str:
    """Return what is written down of a run."""
    file = run / "events.jsonl"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def weights(adapter: Path) -> bytes:
    """Return the file with an adapter's tensors."""
    return (adapter / "adapter_model.safetensors").read_bytes()


def tell(found: Findings, chosen: Namespace, seconds: float, report: Report) -> None:
    """Put what was found into the report."""
    lost, whole = len(found.lost), [not off for off in found.finished.values()]
    resumed = [not off for run, off in found.finished.items() if run in found.resumed]
    report.add("kills", str(found.kills.total()))
    report.add("runs that were announced", str(len(found.announced)))
    report.add("runs lost", str(lost), "0", lost == 0)
    report.add(
        "resumed runs equal to an undisturbed one, bit for bit",
        f"{sum(resumed)} of {len(resumed)}",
        "all",
        all(resumed),
    )
    figure = f"{sum(whole)} of {len(whole)}"
    report.add("all finished runs, the same", figure, "all", all(whole))
    report.add("runs started again, without a checkpoint yet", str(found.again))
    if found.back:
        report.add("seconds from a kill until a run goes on", f"{Spread(found.back):.1f}")
    report.facts = {
        "runs": f"starter model, {STEPS} steps, a checkpoint every 3, fp32: {', '.join(CASES)}",
        "seed": chosen.seed,
        "it took": f"{seconds / 60:.1f} minutes",
    }
    report.notes += [
        "| killed | kills |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in sorted(found.kills.items())),
        "",
        *(f"- lost: {run}: {why}" for run, why in found.lost.items()),
        *(f"- not the same: {run}: {off}" for run, off in found.finished.items() if off),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
