"""start.py's own logic, with a fake pip; one test at the end makes a real environment."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import start
from tests.start_project import SOURCE, VERSION, Project, posix_only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


# --- an old Python ---


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 8, 18), (3, 10, 13)])
def test_old_python_is_named_with_the_cure(version: tuple[int, ...]) -> None:
    sentence = start.python_problem(version)
    assert ".".join(map(str, version)) in sentence
    assert "3.11 or newer" in sentence


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (4, 0, 0)])
def test_new_python_is_welcome(version: tuple[int, ...]) -> None:
    assert start.python_problem(version) == ""


def test_source_can_be_read_by_python_3_6() -> None:
    assert ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 6)).body


def test_old_python_sees_a_sentence_and_nothing_else(project: Project) -> None:
    code = "import sys, runpy; sys.version_info = (3, 8, 10); runpy.run_path('start.py')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Adapter Workbench needs Python 3.11 or newer")
    assert result.stderr.count("\n") == 1
    assert not project.venv.exists()


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ([], (False, False, [])),
        (["--port", "1"], (False, False, ["--port", "1"])),
        (["--install"], (True, False, [])),
        (["--install", "--test"], (True, True, [])),
        (["--test", "-k", "port"], (False, True, ["-k", "port"])),
        (["--", "--help", "--test"], (False, False, ["--help", "--test"])),
    ],
)
def test_own_flags_are_taken_out(words: list[str], plan: tuple[bool, bool, list[str]]) -> None:
    assert start.split_arguments(words) == (*plan, [])


def test_install_takes_nothing_else() -> None:
    with pytest.raises(start.SetupError, match="--port 1"):
        start.split_arguments(["--install", "--port", "1"])


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], "7860"),
        (["--port", "1"], "1"),
        (["--port=2"], "2"),
        (["--port", "1", "--port=3"], "3"),
        (["--port"], ""),
    ],
)
def test_port_is_read_as_the_app_reads_it(words: list[str], value: str) -> None:
    assert start.flag_value(words, "--port", "7860") == value


def test_help_sets_nothing_up(project: Project) -> None:
    result = project.start("--help")
    assert result.returncode == 0
    assert "--install" in result.stdout
    assert not project.venv.exists()


# --- the port ---


def test_taken_port_is_named_before_anything_is_installed(
    project: Project, taken_port: int
) -> None:
    result = project.start("--port", str(taken_port))
    assert result.returncode == 1
    assert f"Port {taken_port} is in use" in result.stderr
    offered = int(result.stderr.rsplit("--port ", 1)[1])
    assert start.port_error("127.0.0.1", offered) == 0
    assert not project.venv.exists()


@pytest.mark.parametrize("words", [["--port", "many"], ["--port", "99999"], ["--help"]])
def test_port_that_makes_no_sense_is_left_to_the_app(words: list[str]) -> None:
    start.check_port(words)


# --- setting up, once ---


@posix_only
def test_first_start_installs_exact_versions_and_becomes_the_app(
    project: Project, free_port: str
) -> None:
    with subprocess.Popen(
        project.command("--port", free_port, "--host=localhost"),
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"-r {project.folder}/requirements.txt -c" in project.calls()
    assert "requirements-dev" not in project.calls()
    assert f"app runs as {process.pid}: " in output
    assert f"app.py --port {free_port} --host=localhost" in output
    environment = (project.folder / "app_environment.txt").read_text()
    for setting in start.ENVIRONMENT.items():
        assert "=".join(setting) in environment


@posix_only
def test_second_start_asks_pip_nothing(project: Project) -> None:
    project.start("--install")
    before = project.calls()
    result = project.start("--install")
    assert result.returncode == 0
    assert "Setting up" not in result.stdout
    assert project.calls() == before


@posix_only
@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_venv(project: Project, name: str) -> None:
    project.start("--install")
    (project.folder / name).write_text("something==2.0\n")
    result = project.start("--install")
    assert result.returncode == 0
    assert project.calls().count("-m pip install") == 2
    assert project.calls().count("made anew") == 1


@posix_only
def test_test_requirements_come_on_top_and_stay(project: Project) -> None:
    chromium = project.write_program("chromium", "#!/bin/sh\n")
    project.start("--install")
    project.start("--install", "--test", CHROMIUM=str(chromium))
    assert project.calls().count("requirements-dev.txt") == 1
    project.start("--install")
    assert project.calls().count("-m pip install") == 4  # the app, the tests, the models' files


@posix_only
def test_failed_install_is_explained_and_tried_again(project: Project) -> None:
    (project.folder / "pip_output.txt").write_text("ERROR: [Errno 28] No space left on device\n")
    (project.folder / "pip_code.txt").write_text("1")
    result = project.start("--install")
    assert result.returncode == 1
    assert result.stderr.startswith("The disk is full.")
    assert "Traceback" not in result.stderr
    (project.folder / "pip_code.txt").write_text("0")
    assert project.start("--install").returncode == 0


@posix_only
def test_whole_output_is_kept_in_the_log(project: Project) -> None:
    (project.folder / "pip_output.txt").write_text("Collecting something\n  a detail\n")
    project.start("--install")
    assert "Collecting something\n  a detail\n" in (project.venv / "install.log").read_text()


# --- repairing ---


def break_python(venv: Path) -> None:
    (venv / "bin" / "python").unlink()


def break_packages(venv: Path) -> None:
    record = json.loads((venv / "start.json").read_text())
    (venv / "start.json").write_text(json.dumps({**record, "modules": ["torch"]}))


def break_off_midway(venv: Path) -> None:
    record = json.loads((venv / "start.json").read_text())
    (venv / "start.json").write_text(json.dumps({**record, "ready": False}))


def change_python(venv: Path) -> None:
    record = json.loads((venv / "start.json").read_text())
    (venv / "start.json").write_text(json.dumps({**record, "python": "3.9"}))


def garble_record(venv: Path) -> None:
    (venv / "start.json").write_text("{")


@posix_only
@pytest.mark.parametrize(
    "damage", [break_python, break_packages, break_off_midway, change_python, garble_record]
)
def test_damaged_venv_is_made_anew(project: Project, damage: object) -> None:
    assert callable(damage)
    project.start("--install")
    left = project.venv / "left over"
    left.write_text("")
    damage(project.venv)
    assert project.start("--install").returncode == 0
    assert project.calls().count("made anew") == 2
    assert not left.exists()


@posix_only
def test_venv_that_someone_made_by_hand_is_used(project: Project) -> None:
    subprocess.run([project.folder / "fake_base"], check=True)
    kept = project.venv / "kept"
    kept.write_text("")
    assert project.start("--install").returncode == 0
    assert project.calls().count("made anew") == 1
    assert kept.exists()


def test_folder_that_is_no_venv_is_left_alone(project: Project) -> None:
    project.venv.mkdir()
    kept = project.venv / "thesis.txt"
    kept.write_text("years of work")
    result = project.start("--install")
    assert result.returncode == 1
    assert "Move it away" in result.stderr
    assert kept.exists()


@posix_only
def test_missing_venv_module_is_explained(project: Project) -> None:
    text = "The virtual environment was not created because ensurepip is not\\navailable."
    project.write_program("fake_base", f"#!/bin/sh\nprintf '{text}'\nexit 1\n")
    result = project.start("--install")
    assert result.returncode == 1
    assert f"sudo apt install python{VERSION}-venv" in result.stderr


# --- several starts, and ends that come early ---


@posix_only
def test_starts_at_the_same_time_install_once(project: Project) -> None:
    (project.folder / "pip_seconds.txt").write_text("1")
    together = [
        subprocess.Popen(
            project.command("--install"),
            cwd=project.folder,
            env=project.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0]
    assert project.calls().count("-m pip install") == 1
    assert sum("Another start is setting up" in output for output in outputs) == 2


def wait_for_call(project: Project, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in project.calls():
        assert time.monotonic() < deadline, project.calls()
        time.sleep(0.05)


def listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@posix_only
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_early_end_shows_no_trace_and_leaves_no_pip(
    project: Project, sent: signal.Signals, code: int
) -> None:
    (project.folder / "pip_seconds.txt").write_text("30")
    with subprocess.Popen(
        project.command("--install"),
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # what runs in the background ignores Ctrl-C, and its children inherit that
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        wait_for_call(project, "-m pip install")
        os.killpg(process.pid, sent)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((project.folder / "pid.txt").read_text()), 0)


@posix_only
def test_start_waits_for_the_pip_of_a_start_that_was_killed(project: Project) -> None:
    (project.folder / "pip_seconds.txt").write_text("3")
    with subprocess.Popen(
        project.command("--install"), cwd=project.folder, env=project.environment(),
        stdout=subprocess.DEVNULL,
    ) as killed:  # fmt: skip
        wait_for_call(project, "-m pip install")
        killed.kill()
    (project.folder / "pip_seconds.txt").write_text("0")
    result = project.start("--install")
    assert result.returncode == 0
    assert "Another start is setting up" in result.stdout


# --- what pip says ---


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
            "[Errno -3] Temporary failure in name resolution')': /simple/x/\n"
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)"
            "\nERROR: No matching distribution found for x",
            "cannot be reached",
        ),
        ("ERROR: HTTP error 503 while getting x", "cannot be reached"),
        ("socket.timeout: The read operation timed out", "cannot be reached"),
        ("Collecting pytest-timeout\nERROR: boom", "Installing failed: ERROR: boom"),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))",
            "certificate",
        ),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("[WinError 112] There is not enough space on the disk", "disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/opt/x'", "not allowed"),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for"),
        (
            "ERROR: Cannot install x because these package versions have conflicting dependencies."
            "\n    The user requested (constraint) x==7.1.0\nERROR: ResolutionImpossible",
            "has no x==7.1.0 for",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "damaged"),
        ("reading\nERROR: something new\nbye", "Installing failed: ERROR: something new"),
        ("", "Installing failed: no reason given"),
    ],
)
def test_failure_becomes_a_sentence_that_names_the_log(output: str, sentence: str) -> None:
    explained = start.explain(output, step="Installing")
    assert sentence in explained
    assert "install.log" in explained


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gradio<7,>=6.31", "gradio"),
        ("torch==2.13.0", "torch"),
        ("hf-xet<2.0.0,>=1.5.1", "hf-xet"),
        ("uvicorn[standard]>=0.14", "uvicorn"),
        ("python_dateutil-2.9.0-py3-none-any.whl", "python_dateutil"),
        ("https://files/ab/torch-2.13.0-cp311.whl", "torch"),
    ],
)
def test_package_is_named_briefly(text: str, name: str) -> None:
    assert start.package_name(text) == name


def test_progress_follows_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "SITE_PACKAGES", tmp_path)
    monkeypatch.setattr(start, "mark_unfinished", lambda: None)
    step = start.PipStep("Installing packages")
    told = []
    for line in (
        "Collecting torch>=2.8 (from -r requirements.txt (line 9))\n",
        "  Downloading torch-2.13.0-cp311.whl (192.0 MB)\n",
        "Progress 96000000 of 192000000\n",
        "Installing collected packages: numpy, torch\n",
    ):
        step.read(line)
        told.append(step.doing)
    assert told[:3] == [
        "1 found, now torch",
        "1 found, downloading torch (192.0 MB)",
        "1 found, downloading torch (192.0 MB) - 50 %",
    ]
    (tmp_path / "numpy-2.dist-info").mkdir()
    (tmp_path / "numpy-2.dist-info" / "RECORD").write_text("")
    step.order_known_at -= 1  # file times are coarser than the clock
    step.read("")
    assert step.doing == "1 of 2 installed, now torch"


# --- the tests' browser, and the tests ---


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, so that nothing installed here can be found."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(start, "VENV", tmp_path / "venv")
    monkeypatch.setattr(start, "LOG", tmp_path / "venv" / "install.log")
    monkeypatch.setattr(
        start, "CHROMIUM_NAMES", [name for name in start.CHROMIUM_NAMES if os.sep not in name]
    )
    return folder


def write_program(path: Path, text: str = "") -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@posix_only
def test_chromium_is_looked_up_in_order(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start.find_chromium() is None
    for name in ("chrome", "google-chrome", "chromium-browser", "chromium"):
        found = write_program(programs / name)
        assert start.find_chromium() == found
    named = write_program(programs / "my-browser")
    monkeypatch.setenv("CHROMIUM", named)
    assert start.find_chromium() == named


@posix_only
def test_chromium_that_does_not_exist_is_an_error(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(programs / "chromium")
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(start.SetupError, match="/nowhere/chromium"):
        start.find_chromium()


@posix_only
@pytest.mark.parametrize(("user", "through_sudo"), [(0, False), (1000, True)])
def test_missing_chromium_comes_from_apt_get(
    programs: Path, monkeypatch: pytest.MonkeyPatch, user: int, through_sudo: bool
) -> None:
    calls = programs / "calls.txt"
    monkeypatch.setattr(os, "geteuid", lambda: user)
    write_program(programs / "sudo", f'echo sudo >> "{calls}"; exec "$@"')
    write_program(
        programs / "apt-get",
        f'echo "$*" >> "{calls}"; case "$*" in *install*)'
        f' echo > "{programs}/chromium"; /bin/chmod +x "{programs}/chromium";; esac',
    )
    assert start.need_chromium() == str(programs / "chromium")
    lines = calls.read_text().split("\n")
    steps = [line.split()[-1] for line in lines if line]
    assert [step for step in steps if step != "sudo"] == ["update", "chromium"]
    assert ("sudo" in steps) is through_sudo


@posix_only
def test_apt_get_that_fails_is_told(programs: Path) -> None:
    write_program(programs / "apt-get", "echo no network; exit 100")
    with pytest.raises(start.SetupError, match="could not be installed"):
        start.need_chromium()
    assert "no network" in start.LOG.read_text()


@posix_only
def test_a_missing_compiler_comes_from_apt_get(programs: Path) -> None:
    write_program(
        programs / "apt-get",
        f'case "$*" in *install*) echo > "{programs}/g++"; /bin/chmod +x "{programs}/g++";; esac',
    )
    start.need_compiler()
    assert (programs / "g++").exists()


@posix_only
def test_no_compiler_and_no_apt_get_ends_with_a_sentence(programs: Path) -> None:
    with pytest.raises(start.SetupError, match="need a C"):
        start.need_compiler()


@posix_only
def test_no_browser_and_no_apt_get_ends_with_a_sentence(programs: Path) -> None:
    with pytest.raises(start.SetupError, match="need Chromium or Chrome"):
        start.need_chromium()


@posix_only
def test_every_check_runs_and_the_first_failure_counts(project: Project) -> None:
    chromium = project.write_program("my-browser", "#!/bin/sh\n")
    result = project.start("--test", "-k", "port", CHROMIUM=str(chromium))
    assert result.returncode == 3
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest -k port"):
        assert f"-m {command}\n" in project.calls()
    assert f"browser: {chromium}" in result.stdout
    assert "lint failed, format ok, types ok, tests failed\n" in result.stdout
    project.start("--test", CHROMIUM=str(chromium))  # all of them: side by side, then the browser
    assert "-m pytest -m not browser -n logical --dist loadfile --no-loa" in project.calls()
    assert "-m pytest -m browser\n" in project.calls()


# --- for real ---


def write_wheel(folder: Path) -> Path:
    """Make a package of one module, which pip can install without any index."""
    path = folder / "something-1.0-py3-none-any.whl"
    about = "something-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("something.py", "answer = 42\n")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: something\nVersion: 1.0\n"
        )
        tag = "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", tag)
        wheel.writestr(f"{about}/RECORD", "")
    return path


@pytest.mark.slow
def test_real_environment_is_made_and_used_without_network(
    project: Project, free_port: str
) -> None:
    write_wheel(project.folder)
    app = "import something, sys\nprint(something.answer, sys.argv[1:])\n"
    (project.folder / "app.py").write_text(app)
    command = [sys.executable, "start.py", "--port", free_port]
    environment = project.environment(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(project.folder))
    for is_first in (True, False):
        result = subprocess.run(
            command,
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        assert f"42 ['--port', '{free_port}']" in result.stdout
        assert ("Installing packages: done" in result.stdout) is is_first
        environment["PIP_FIND_LINKS"] = os.devnull
