"""Who may import what, and how big a file may grow: rules that would otherwise wear away."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "tokenizers"}
PUBLIC = ("errors", "requests", "results")
MOST_LINES = 400
MOST_MODULES = 16
# Longer already: each may shrink, and none may grow past this.
OUTGROWN = {
    "start.py": 760,
    "tests/test_start.py": 581,
}
RUNTIME = PROJECT / "backend" / "service" / "worker_process.py"


class Layers(NamedTuple):
    """The packages and modules of a folder, a line for each layer, the lowest first."""

    folder: str
    lines: tuple[str, ...]


BACKEND = Layers(
    "backend",
    (
        "errors sizes processes settings refusals",
        "files fields results",
        "catalogue compile_times hub_address hub_names",
        "requests library",
        "permissions merge_requirements",
        "operations",
        "runs",
        "engine workspace",
        "service",
        "__init__",
        "__main__",
    ),
)
ENGINE = Layers(
    "backend/engine",
    (
        "core __init__",
        "models data_files templates",
        "hub_data",
        "methods",
        "session",
        "inference",
        "adapters data",
        "blending merging hotswap steps",
        "training",
        "runs export",
        "planning",
        "worker run_process",
        "__main__",
    ),
)
UI = Layers(
    "ui",
    (
        "components __init__",
        "charts serving",
        "chat train adapters workspace",
        "runs combine merge hotswap",
        "app",
    ),
)
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


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_of(name: str) -> str | None:
    """Return the module of this project that an imported name is or lies in."""
    for dotted in (name, name.rpartition(".")[0]):
        path = PROJECT.joinpath(*dotted.split("."))
        is_ours = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
        if is_ours and dotted.startswith(("backend", "ui")):
            return dotted
    return None


def part(path: Path, layers: Layers) -> str:
    """Return the package or module of a layered folder that a file is or lies in."""
    first = path.relative_to(PROJECT / layers.folder).parts[0]
    return first.removesuffix(".py")


def part_named(name: str, layers: Layers) -> str | None:
    """Return the same of an imported name; None where it lies elsewhere."""
    prefix = layers.folder.replace("/", ".")
    found = module_of(name)
    if found == prefix:
        return "__init__"
    if found is None or not found.startswith(f"{prefix}."):
        return None
    return found.removeprefix(f"{prefix}.").split(".")[0]


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
    others = [path for path in light_backend() if path != RUNTIME]

    assert breaks([*others, *sources("ui")], {"backend.engine"}) == []


def test_the_runtime_imports_the_engine_inside_one_function() -> None:
    tree = ast.parse(RUNTIME.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    everywhere = breaks([RUNTIME], {"backend.engine"})

    assert not any("backend.engine" in ast.unparse(node) for node in top)
    assert len(everywhere) == 1


@pytest.mark.parametrize("layers", [BACKEND, ENGINE, UI], ids=["backend", "engine", "ui"])
def test_imports_go_down_the_layers(layers: Layers) -> None:
    """A package may import those below it; what stands in one line knows nothing of one another."""
    level = {name: number for number, line in enumerate(layers.lines) for name in line.split()}
    edges = {
        (own, other)
        for path in sources(layers.folder)
        for name in imports(path)
        if (own := part(path, layers)) != (other := part_named(name, layers)) and other
    }
    assert {own for own, _ in edges} <= level.keys(), "name each new package in its layer"
    assert {f"{own} -> {other}" for own, other in edges if level[own] <= level[other]} == set()


def test_no_circle_of_imports() -> None:
    """Nor one for types alone."""
    graph: dict[str, set[str]] = {}
    for path in sources("backend", "ui"):
        own = module_name(path)
        graph[own] = {
            found for name in imports(path) if (found := module_of(name)) and found != own
        }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError

    assert len(order) > 250


@pytest.mark.parametrize("folder", ["backend", "ui"])
def test_no_folder_holds_more_than_a_person_takes_in(folder: str) -> None:
    counts = Counter(str(p.parent.relative_to(PROJECT)) for p in sources(folder))

    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("folder", ["backend", "ui"])
def test_each_package_says_what_it_owns(folder: str) -> None:
    files = [path for path in sources(folder) if path.name == "__init__.py"]

    assert [str(p) for p in files if not ast.get_docstring(ast.parse(p.read_text("utf-8")))] == []


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
