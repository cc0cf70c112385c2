"""Opens Adapter Workbench: reads flags and environment, then starts the service and the page.

Run `python app.py` locally; a Hugging Face Space also runs this file.
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
from ui.serving.environment import take_variables
from ui.serving.options import (
    Options,
    Parser,
    WrongOption,
    add_flags,
    is_loopback,
    options_from,
    port_problem,
)

ON_SPACE = bool(os.environ.get("SPACE_ID"))
INTERRUPTIBLE_S = 0.5
ON_COMMAND_LINE = (
    "The password on the command line is visible in this machine's process list."
    " Use --password-file FILE to hide it."
)


def folder(text: str) -> Path:
    """Read a folder; empty text (an unset variable) would mean the current folder, so refuse it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a folder, but is empty")
    return Path(text)


def read_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises WrongOption."""
    parser = Parser(description="Fine-tune language models with adapters.", allow_abbrev=False)
    parser.add_argument("--workspace", type=folder, help="the folder for adapters and runs")
    parser.add_argument(
        "--allow-folder",
        type=folder,
        action="append",
        help="a folder that the page may read and write; may be repeated (default: your home)",
    )
    add_flags(parser)
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args(arguments)


def settings_from(flags: argparse.Namespace, options: Options) -> Settings:
    """Turn flags into settings; a Space is a demo without paths, except for its owner."""
    named = {"workspace": flags.workspace} if flags.workspace else {}
    for root in flags.allow_folder or ():
        if not root.expanduser().is_dir():
            raise WrongOption(f"--allow-folder must be an existing folder, got {root}.")
    roots = flags.allow_folder if flags.allow_folder is not None else default_roots(options.host)
    return Settings(
        **named, allowed_roots=() if ON_SPACE else tuple(roots), demo=ON_SPACE, owner=space_owner()
    )


def default_roots(host: str) -> tuple[Path, ...]:
    """Return the folders that the page may use by default: locally, the home folder."""
    return (Path.home(),) if is_loopback(host) else ()


def space_owner() -> str:
    """Return the owner of a Space if signing in is set up; else empty."""
    signing_in = ON_SPACE and os.environ.get("OAUTH_CLIENT_ID") and find_spec("authlib")
    return os.environ.get("SPACE_AUTHOR_NAME", "") if signing_in else ""


def main() -> int:
    """Open the app and wait until it is stopped."""
    variables = take_variables(os.environ)
    try:
        flags = read_flags()
        options = options_from(flags, variables, on_space=ON_SPACE)
        settings = settings_from(flags, options)
        if taken := port_problem(options.host, options.port):
            raise WrongOption(taken)
    except WrongOption as problem:
        print(problem, file=sys.stderr)
        return 1
    if flags.password is not None:
        print(ON_COMMAND_LINE, file=sys.stderr)
    return run(settings, options, open_browser=not flags.no_browser and not ON_SPACE)


def run(settings: Settings, options: Options, *, open_browser: bool) -> int:
    """Serve the page until a signal ends it."""
    # Gradio takes seconds to import and reads the environment, which must be cleaned before.
    from ui.app.server import serve  # noqa: PLC0415

    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    try:
        service = Service(settings)
    except errors.WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    with service:
        print(*service.opening, sep="\n", end="\n" if service.opening else "", flush=True)
        page = serve(service, options, open_browser=open_browser)
        print(f"Adapter Workbench is open on {page.local_url}", flush=True)
        with suppress(errors.WorkerDied):  # the page shows this, and offers to try again
            service.restore()
        service.run_queue()
        while not ended.wait(INTERRUPTIBLE_S):
            pass  # on Windows, Ctrl-C only works between two waits
        print("Closing: stopping the model process first.", flush=True)
        page.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
