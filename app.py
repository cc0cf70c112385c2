"""Opens Adapter Workbench: flags and environment become settings, the service and the page start.

`python app.py` locally; a Hugging Face Space runs this file as it is.
"""

import argparse
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from backend import Service, Settings, errors
from ui.server import default_roots, open_problem, port_problem, serve

ON_SPACE = bool(os.environ.get("SPACE_ID"))
PASSWORD_VARIABLE = "ADAPTER_WORKBENCH_PASSWORD"
INTERRUPTIBLE_S = 0.5


def read_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fine-tune language models with adapters.")
    parser.add_argument("--host", default="0.0.0.0" if ON_SPACE else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--workspace", type=Path, help="where adapters and runs are kept")
    parser.add_argument(
        "--allow-folder",
        type=Path,
        action="append",
        help="a folder that the page may read and write; may be repeated (default: your home)",
    )
    parser.add_argument(
        "--password",
        default=os.environ.get(PASSWORD_VARIABLE, ""),
        help=f"name:password that the page asks for (or {PASSWORD_VARIABLE})",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args(arguments)


def settings_from(flags: argparse.Namespace) -> Settings:
    """Turn flags into settings; on a Space the page is a demo without paths, but for its owner."""
    named = {"workspace": flags.workspace} if flags.workspace else {}
    roots = flags.allow_folder if flags.allow_folder is not None else default_roots(flags.host)
    return Settings(
        **named, allowed_roots=() if ON_SPACE else tuple(roots), demo=ON_SPACE, owner=space_owner()
    )


def space_owner() -> str:
    """Return who may sign in as a Space's owner; nobody where it offers no signing in."""
    signing_in = ON_SPACE and os.environ.get("OAUTH_CLIENT_ID") and find_spec("authlib")
    return os.environ.get("SPACE_AUTHOR_NAME", "") if signing_in else ""


def main() -> int:
    """Open the app and wait until it is told to end."""
    flags = read_flags()
    problem = open_problem(flags.host, flags.password, on_space=ON_SPACE)
    problem = problem or port_problem(flags.host, flags.port)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    try:
        service = Service(settings_from(flags))
    except errors.WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    with service:
        print(*service.opening, sep="\n", end="\n" if service.opening else "", flush=True)
        browser = not flags.no_browser and not ON_SPACE
        page = serve(service, host=flags.host, port=flags.port, password=flags.password,
                     open_browser=browser, on_space=ON_SPACE)  # fmt: skip
        print(f"Adapter Workbench is open on {page.local_url}", flush=True)
        with suppress(errors.WorkerDied):  # the page says so, and offers to try again
            service.restore()
        service.run_queue()
        while not ended.wait(INTERRUPTIBLE_S):
            pass  # on Windows, Ctrl-C is only noticed between two waits
        print("Closing: the model process ends first.", flush=True)
        page.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
