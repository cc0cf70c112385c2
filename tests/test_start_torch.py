"""Where start.py takes PyTorch from: the CPU index where it helps and answers, else as ever."""

import http.server
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import start
from tests.start_project import Project

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the CPU index serves Linux on these processors",
)


class Index(http.server.ThreadingHTTPServer):
    """A package index on loopback that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *words: object) -> None:
        self.server.asked.append(self.path)


@contextmanager
def serving(folder: Path) -> Iterator[Index]:
    with Index(folder) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        yield index
        index.shutdown()


@pytest.fixture
def cpu_index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index" / "torch").mkdir(parents=True)
    with serving(tmp_path / "index") as index:
        yield index


@pytest.fixture
def project(tmp_path: Path, cpu_index: Index) -> Project:
    """A project that needs PyTorch, on a machine without a GPU whose CPU index is on loopback."""
    folder = tmp_path / "project"
    folder.mkdir()
    project = Project(folder)
    (folder / "requirements.txt").write_text("something\ntorch>=2.8\n")
    project.edit(start.CPU_INDEX, cpu_index.address)
    project.edit('"nvidia-smi"', '"smi-of-this-test"')
    project.edit(repr(start.NVIDIA_PLACES).replace("'", '"'), f'("{folder}/nvidia0",)')
    project.edit("CPU_INDEX_SECONDS = 5.0", "CPU_INDEX_SECONDS = 1.0")
    return project


def installs(project: Project) -> list[str]:
    return [line for line in project.calls().splitlines() if "-m pip install" in line]


def record(project: Project) -> dict[str, object]:
    return json.loads((project.venv / "start.json").read_text())


def test_without_a_gpu_torch_alone_comes_from_the_cpu_index(
    project: Project, cpu_index: Index
) -> None:
    assert project.start("--install").returncode == 0

    alone, rest = installs(project)
    assert f"--no-deps --index-url {cpu_index.address} " in alone
    assert alone.endswith(f"-c {project.folder}/constraints.txt torch")
    assert "index-url" not in rest
    assert f"-r {project.folder}/requirements.txt -c" in rest
    assert record(project)["cpu_torch"] is True
    project.start("--install")
    assert len(installs(project)) == 2


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def name_of_nobody() -> str:
    return "http://cpu-index.invalid"


@contextmanager
def silent_server() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_index_that_cannot_be_reached_costs_seconds_and_nothing_else(
    project: Project, cpu_index: Index
) -> None:
    before = cpu_index.address
    with silent_server() as silent:
        for address in (closed_port(), name_of_nobody(), silent):
            project.edit(before, address)
            before = address
            (project.folder / "constraints.txt").write_text(f"something==1.0\n# {address}\n")

            assert project.start("--install").returncode == 0
            assert "index-url" not in project.calls(), address
    assert len(installs(project)) == 3
    assert record(project)["cpu_torch"] is False


def test_an_index_without_this_version_is_left_for_the_usual_one(project: Project) -> None:
    (project.folder / "cpu_code.txt").write_text("1")

    result = project.start("--install")

    assert result.returncode == 0
    assert "using the usual ones" in result.stdout
    assert "index-url" not in installs(project)[1]
    assert record(project)["cpu_torch"] is False


def test_with_a_gpu_the_cpu_index_is_not_asked(project: Project, cpu_index: Index) -> None:
    (project.folder / "nvidia0").write_text("")

    project.start("--install")

    assert len(installs(project)) == 1
    assert cpu_index.asked == []


def test_a_gpu_that_comes_later_gets_a_torch_that_can_use_it(project: Project) -> None:
    project.start("--install")
    (project.folder / "nvidia0").write_text("")

    project.start("--install")

    assert project.calls().count("made anew") == 2
    assert "index-url" not in installs(project)[-1]
    assert record(project)["cpu_torch"] is False


@pytest.mark.parametrize(
    "line",
    [
        "global.index-url='https://packages.example/simple'",
        "site.extra-index-url='https://packages.example/simple'",
        ":env:.find-links='/wheels'",
        "install.no-index='true'",
    ],
)
def test_who_named_an_index_of_their_own_gets_packages_from_there_alone(
    project: Project, cpu_index: Index, line: str
) -> None:
    (project.folder / "pip_config.txt").write_text(f"global.timeout='60'\n{line}\n")

    project.start("--install")

    assert len(installs(project)) == 1
    assert cpu_index.asked == []


def test_the_addition_names_one_index_and_never_beside_another() -> None:
    text = Path(start.__file__).read_text(encoding="utf-8")

    assert "--extra-index-url" not in text
    assert text.count("https://") == 1


# --- for real ---


def write_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    about = f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}",
        )
        tag = "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", tag)
        wheel.writestr(f"{about}/RECORD", "")


@pytest.mark.slow
def test_pip_itself_keeps_the_cpu_build_and_takes_the_rest_from_the_usual_index(
    project: Project, cpu_index: Index, tmp_path: Path
) -> None:
    """`torch==2.13.0` is satisfied by 2.13.0+cpu, whose own needs come with the other packages."""
    write_wheel(tmp_path / "index" / "torch", "torch", "2.13.0+cpu", "something")
    write_wheel(tmp_path / "index" / "something", "something", "9.0")  # not to be taken
    write_wheel(tmp_path / "usual" / "torch", "torch", "2.13.0", "gigabytes")
    write_wheel(tmp_path / "usual" / "something", "something", "1.0")
    (project.folder / "constraints.txt").write_text("something==1.0\ntorch==2.13.0\n")
    project.edit(start.OWN_SOURCES, "(?!)")

    with serving(tmp_path / "usual") as usual:
        subprocess.run(
            [sys.executable, "start.py", "--install"],
            cwd=project.folder,
            env=project.environment(PIP_INDEX_URL=usual.address),
            check=True,
            timeout=120,
        )
        asked = {address.split("/")[1] for address in cpu_index.asked if "/" in address}
    said = "import torch, something; print(torch.version, something.version)"
    found = subprocess.run(
        [project.venv / "bin" / "python", "-c", said],
        capture_output=True, text=True, env={"PATH": os.defpath},
    )  # fmt: skip

    assert found.stdout == "2.13.0+cpu 1.0\n", found.stderr
    assert asked == {"torch"}
