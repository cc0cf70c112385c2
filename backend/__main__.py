"""The command line: every request by its name, with its fields as options.

    python -m backend load-model --source starter
    python -m backend train --name pirate --data starter:pirate --adapter.rank 8 --epochs 2
    python -m backend chat --messages '[{"role": "user", "content": "Where is the cat?"}]'
    python -m backend run request.json
    python -m backend launch --name far --processes 8 --accumulation 8 --machines 2
    python -m backend runs
    python -m backend export-workspace --destination workspace.zip
    python -m backend import-workspace --source workspace.zip
    python -m backend report-problem --destination problem.zip

The workspace keeps the session (base and active adapters), so each command continues from the
last one.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backend import requests as rq
from backend import results as rs
from backend.errors import InvalidRequest, WorkbenchError
from backend.requests.command_line import PROGRAM, fields_of, value_of
from backend.runs.run_store import Runs
from backend.service.jobs import Job
from backend.service.service import Service
from backend.settings import Settings
from backend.workspace.check import require_folders

PROGRESS_EVERY_S = 0.5
TRANSFERS = {
    "export-workspace": "Write adapters, runs, session and queue to a zip file to move them.",
    "import-workspace": "Import an exported workspace; nothing in this one is replaced.",
    "report-problem": "Write versions, settings and log lines to a zip file, without private data.",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(argv)
    settings = Settings(**({"workspace": options.workspace} if options.workspace else {}))
    try:
        if options.command == "runs":
            return _list_runs(settings)
        if options.command in TRANSFERS:
            return _transfer(options, settings)
        if options.command == "launch":
            return _launch(_request(options), options.machines, settings)
        return _run(_request(options), settings)
    except WorkbenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workspace", type=Path, help="The folder with adapters and runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind in rq.BY_NAME.items():
        _add_fields(commands.add_parser(name, help=(kind.__doc__ or "").splitlines()[0]), kind)
    launch = commands.add_parser(
        "launch", help="Create a run with several processes and print the command that starts it."
    )
    launch.add_argument(
        "--machines", type=int, default=1, help="How many machines share the processes evenly."
    )
    _add_fields(launch, rq.Train)
    from_file = commands.add_parser("run", help="Run a request from a JSON file.")
    from_file.add_argument("file", type=Path)
    commands.add_parser("runs", help="List all runs.")
    export = commands.add_parser("export-workspace", help=TRANSFERS["export-workspace"])
    export.add_argument("--destination", type=Path, required=True, help="A new zip file.")
    export.add_argument(
        "--checkpoints", action="store_true", help="Include the checkpoints of stopped runs."
    )
    bring = commands.add_parser("import-workspace", help=TRANSFERS["import-workspace"])
    bring.add_argument("--source", type=Path, required=True, help="The zip file of an export.")
    report = commands.add_parser("report-problem", help=TRANSFERS["report-problem"])
    report.add_argument("--destination", type=Path, required=True, help="A new zip file.")
    return parser


def _add_fields(command: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    for path, field in fields_of(kind):
        command.add_argument(f"--{path}", dest=path, help=_help(field), metavar="VALUE")


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    return text if field.is_required() else f"{text} (default: {field.default})"


def _request(options: argparse.Namespace) -> rq.Request:
    """Build the request from a file or from the options that were given."""
    if options.command == "run":
        content = _load(options.file)
        if "run_id" in content and "train" in content:  # the request.json of a run's folder
            content = {"request": "train", **content["train"]}
        return rq.parse(str(content.pop("request", "")), content)
    name = "train" if options.command == "launch" else options.command
    data: dict[str, Any] = {}
    for path, field in fields_of(rq.BY_NAME[name]):
        value = getattr(options, path)
        if value is not None:
            *parents, leaf = path.split(".")
            inner = data
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = value if field.annotation in (str, str | None) else value_of(value)
    return rq.parse(name, data)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InvalidRequest(
            f"{path} is not a JSON object.", cure='It must begin {"request": "train", ...}'
        )
    return content


def _open(settings: Settings) -> Service:
    service = Service(settings)
    for said in service.opening:
        print(said, file=sys.stderr)
    return service


def _run(request: rq.Request, settings: Settings) -> int:
    with _open(settings) as service:
        if not isinstance(request, rq.LoadModel | rq.UnloadModel):
            _restore(service)
        if isinstance(request, rq.Chat):
            for piece in service.chat(request):
                print(piece, end="", flush=True)
            print()
            return 0
        job = service.start(request)
        _follow(service, job)
        print(job.result().model_dump_json(indent=1))
    return 0


def _launch(request: rq.Request, machines: int, settings: Settings) -> int:
    """Create a run and print the command that starts its processes."""
    assert isinstance(request, rq.Train)
    with _open(settings) as service:
        _restore(service)
        print(service.prepare_launch(request, machines).command)
    return 0


def _transfer(options: argparse.Namespace, settings: Settings) -> int:
    """Export or import a workspace, or report a problem; loads no model."""
    with _open(settings) as service:
        result: rs.Result
        if options.command == "export-workspace":
            result = service.export_workspace(
                options.destination, checkpoints=options.checkpoints, progress=_show
            )
        elif options.command == "report-problem":
            result = service.report_problem(options.destination)
        else:
            result = service.import_workspace(options.source, progress=_show)
    print(result.model_dump_json(indent=1))
    return 0


def _show(doing: str, done: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{doing}: {done:.0%}".ljust(60), end="", file=sys.stderr, flush=True)


def _restore(service: Service) -> None:
    job = service.restore()
    if job is not None:
        job.result()
    while service.snapshot().job is not None:  # the adapters are turned on after the base is loaded
        time.sleep(0.05)


def _follow(service: Service, job: Job) -> None:
    """Show a job's progress on standard error. Ctrl-C stops it, a second Ctrl-C kills it."""
    stops, shown = 0, ""
    while not job.done():
        try:
            info = job.info()
            if info.text and info.text != shown:
                shown = info.text
                print(f"{info.title}: {shown}", file=sys.stderr)
            time.sleep(PROGRESS_EVERY_S)
        except KeyboardInterrupt:
            stops += 1
            if stops > 2:
                raise
            print("Stopping. Press Ctrl-C again to stop now.", file=sys.stderr)
            service.stop()
            service.stop_side(job.id)


def _list_runs(settings: Settings) -> int:
    require_folders(settings)
    for run in Runs(settings.runs_dir).summaries():
        loss = "" if run.loss is None else f"loss {run.loss:.3f}"
        print(f"{run.id}  {run.state:<12} {run.step}/{run.total_steps}  {loss}  {run.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
