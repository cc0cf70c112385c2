"""Who may import what, and how big a file may grow: rules that would otherwise wear away."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "tokenizers"}
PUBLIC = ("errors", "requests", "results")
MOST_LINES = 400
# Longer already: each may shrink, and none may grow past this.
OUTGROWN = {
    "start.py": 760,
    "tests/test_start.py": 581,
}
NO_PLACE_FOR_CODE = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]


def own_files() -> list[Path]:
    folders = ("backend", "ui", "scripts", "benchmarks", "tests")
    found = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*"))]
    scripts = [path for path in found if path.suffix in (".py", ".js", ".css")]
    return [*scripts, *sorted(PROJECT.glob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaks(files: list[Path], banned: set[str]) -> list[str]:
    """Return `file: module` for each import of a banned module or something in it."""
    return [
        f"{path.relative_to(PROJECT)}: {name}"
        for path in files
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in banned)
    ]


def light_backend() -> list[Path]:
    engine = PROJECT / "backend" / "engine"
    return [path for path in sources("backend") if not path.is_relative_to(engine)]


def test_there_is_something_to_look_at() -> None:
    assert len(light_backend()) > 10
    assert len(sources("backend/engine")) > 10


def test_only_the_engine_knows_machine_learning_libraries() -> None:
    files = [*light_backend(), *sources("ui"), *PROJECT.glob("app.py")]

    assert breaks(files, HEAVY) == []


def test_the_backend_does_not_know_gradio_or_the_page() -> None:
    assert breaks(sources("backend"), {"gradio", "ui", "app"}) == []


def test_only_the_runtime_starts_the_engine() -> None:
    others = [path for path in light_backend() if path.name != "worker_process.py"]

    assert breaks([*others, *sources("ui")], {"backend.engine"}) == []


def test_the_runtime_imports_the_engine_inside_one_function() -> None:
    tree = ast.parse((PROJECT / "backend" / "worker_process.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    everywhere = breaks([PROJECT / "backend" / "worker_process.py"], {"backend.engine"})

    assert not any("backend.engine" in ast.unparse(node) for node in top)
    assert len(everywhere) == 1


def test_the_engine_does_not_know_who_started_it() -> None:
    banned = {
        "backend.service.service",
        "backend.service.engine_client",
        "backend.service.worker_process",
        "backend.service.jobs",
        "backend.workspace.session_recipe",
    }

    assert breaks(sources("backend/engine"), banned) == []


def test_the_page_uses_public_names_only() -> None:
    names = {name for path in sources("ui") for name in imports(path)}
    inner = {name for name in names if name.startswith("backend.") and name.count(".") > 1}

    assert {name for name in inner if name.split(".")[1] not in PUBLIC} == set()


@pytest.mark.parametrize("module", ["backend", "backend.__main__", "app", "ui.app.server"])
def test_importing_it_loads_no_machine_learning_library(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_no_file_is_longer_than_a_person_reads_in_one_go() -> None:
    lengths = {
        str(path.relative_to(PROJECT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in own_files()
    }

    assert {
        name: lines for name, lines in lengths.items() if lines > OUTGROWN.get(name, MOST_LINES)
    } == {}


def test_code_lies_where_its_noun_lives() -> None:
    assert [str(path) for path in own_files() if path.stem in NO_PLACE_FOR_CODE] == []
