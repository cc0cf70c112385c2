"""app.py from the outside: what it imports, and when it refuses to start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ui.server import allowed_hosts, open_problem

PROJECT = Path(__file__).resolve().parents[2]


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
        "import sys, app\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'accelerate', 'backend.engine'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_password(host: str) -> None:
    assert open_problem(host, "", on_space=False) == ""
    assert "*" not in allowed_hosts(host, on_space=False)


def test_a_space_opens_as_the_platform_says() -> None:
    assert open_problem("0.0.0.0", "", on_space=True) == ""
    assert allowed_hosts("0.0.0.0", on_space=True) == ["*"]
