"""app.py from the outside: what it imports, and when it refuses to start."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

import start
from app import read_flags
from tests.ui.conftest import free_port
from ui.serving.options import WrongOption, port_problem

PROJECT = Path(__file__).resolve().parents[3]


def run_app(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", "--no-browser", *flags],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_page_never_imports_torch() -> None:
    code = (
        "import sys, app, ui.app.server\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'accelerate', 'backend.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_gradio_is_imported_only_once_the_environment_is_clean() -> None:
    code = "import sys, app; print('gradio' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_a_wide_address_needs_a_password() -> None:
    done = run_app("--host", "0.0.0.0", ADAPTER_WORKBENCH_PASSWORD="")
    assert done.returncode == 1
    assert "Add --password" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_app("--port", str(port))
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        ((), {"GRADIO_SERVER_NAME": "0.0.0.0"}, "set by GRADIO_SERVER_NAME"),
        ((), {"GRADIO_SERVER_PORT": "many"}, "GRADIO_SERVER_PORT must be a number"),
        (("--port", "99999"), {}, "--port must be a number from 1 to 65535"),
        (("--password", "ann"), {}, "The password from --password has no colon"),
        ((), {"ADAPTER_WORKBENCH_PASSWORD": ":x"}, "has no name before the colon"),
        (("--password-file", "/no/such/file"), {}, "/no/such/file cannot be read"),
        (("--allow-folder", "/no/such/folder"), {}, "must be an existing folder"),
        (
            ("--host", "no.such.host.invalid", "--password", "a:b"),
            {},
            "is not an address of this machine",
        ),
        (("--colour", "blue"), {}, "Unrecognized arguments: --colour blue"),
    ],
)
def test_a_wrong_flag_or_variable_is_one_sentence(
    flags: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    done = run_app(*flags, **variables)

    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_port_from_the_environment_is_looked_at(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_app(GRADIO_SERVER_PORT=port, GRADIO_NUM_PORTS="5")
    assert f"Port {port} on 127.0.0.1 cannot be used" in done.stderr


def test_start_looks_at_the_port_that_the_app_will_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(start.SetupError, match="is in use"):
            start.check_port([])
        start.check_port(["--port", str(free_port())])
        monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.3")  # where nobody listens
        start.check_port([])


@contextmanager
def open_app(workspace: Path, *flags: str, **environment: str) -> Iterator[tuple[str, int]]:
    """Open the real app; yields its address and process id."""
    process = subprocess.Popen(
        [sys.executable, "app.py", "--no-browser", "--workspace", workspace, *flags],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "is open on " in line)
        yield line.split()[-1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_variables_open_the_page_and_weaken_nothing(tmp_path: Path) -> None:
    variables = {
        "ADAPTER_WORKBENCH_PASSWORD": "ann:secret",
        "GRADIO_SERVER_PORT": str(free_port()),
        "GRADIO_ROOT_PATH": "/workbench",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_MCP_SERVER": "True",
        "GRADIO_SHARE": "True",
        "GRADIO_SSR_MODE": "True",
        "GRADIO_NUM_WORKERS": "2",
        "GRADIO_VIBE_MODE": "1",
        "GRADIO_DEBUG": "1",
        "GRADIO_PROFILING": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_TOKEN": "hf_of_the_test",
    }
    with open_app(tmp_path / "workspace", **variables) as (url, pid):
        assert url.endswith(f":{variables['GRADIO_SERVER_PORT']}/")
        assert 'action="/workbench/login"' in httpx.get(url).text
        with httpx.Client(base_url=f"{url}workbench/") as visitor:
            visitor.post("login", data={"username": "ann", "password": "secret"})
            assert visitor.get("gradio_api/file=/etc/hostname").status_code == 403
            for path in ("mcp/", "profiling/traces", "vibe-code", "run-history/buckets"):
                assert visitor.get(f"gradio_api/{path}").status_code in (403, 404)

        children = psutil.Process(pid).children(recursive=True)
        inherited = [child.environ() for child in children]
        assert any("HF_TOKEN" in environment for environment in inherited)
        for environment in inherited:
            assert environment["HF_HOME"] == variables["HF_HOME"]
            assert "ann:secret" not in environment.values()
            assert not [name for name in environment if name.startswith("GRADIO_SERVER")]


@pytest.mark.slow
@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_page_opens_on_ipv6(tmp_path: Path) -> None:
    flags = ("--host", "::1", "--port", str(free_port()))
    with open_app(tmp_path / "workspace", *flags) as (url, _):
        assert url.startswith("http://[::1]:")
        assert httpx.get(url).status_code == 200


@pytest.mark.parametrize("flag", ["--workspace", "--allow-folder"])
def test_an_empty_folder_is_no_folder(flag: str) -> None:
    with pytest.raises(WrongOption, match="must be a folder"):
        read_flags([flag, " "])


@pytest.mark.parametrize("host", ["999.1.1.1", "203.0.113.9"])
def test_an_address_of_another_machine_is_said(host: str) -> None:
    assert port_problem(host, free_port()) == (
        f"{host} is not an address of this machine. Try --host 127.0.0.1."
    )
