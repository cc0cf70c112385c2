"""What a library still does wrong, with a pointer to the guard against it that is checked."""

import ast
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import peft

BACKEND = Path(__file__).parents[3] / "backend"
POINTER = re.compile(r"(?P<file>[\w/]+\.py) \((?P<name>[\w.]+)\)")
NAMES = {peft: "PEFT"}


def assert_still(wrong: bool, what: str, guard: str, library: ModuleType = peft) -> None:
    """Assert that a library is still wrong; the guard is a file and a name in it: `a.py (b)`."""
    name = NAMES.get(library, library.__name__.capitalize())
    assert wrong, f"{name} {library.__version__} mended {what}: the guard in {guard} may go."
    assert exists(guard), f"There is no {guard}: point to where the guard against {what} is."


def exists(guard: str) -> bool:
    """Tell whether a file of the backend defines the name that a pointer names."""
    pointer = POINTER.fullmatch(guard)
    if pointer is None:
        return False
    return any(pointer["name"] in defined(file) for file in BACKEND.rglob(pointer["file"]))


@lru_cache
def defined(file: Path) -> frozenset[str]:
    """Return the functions and classes of a file, methods as `Class.method`."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, kinds):
            found.add(node.name)
            inner = [each.name for each in node.body if isinstance(each, kinds)]
            found.update(f"{node.name}.{name}" for name in inner)
    return frozenset(found)
