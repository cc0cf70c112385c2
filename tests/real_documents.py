"""Questions and answers made on the spot from real documentation: what installed packages say."""

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType

# Typed, documented, and quick to import; all come with Python.
MODULES = [
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "calendar",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email.message",
    "enum",
    "fractions",
    "functools",
    "gzip",
    "heapq",
    "html",
    "http.client",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "random",
    "re",
    "shlex",
    "shutil",
    "socket",
    "sqlite3",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "tokenize",
    "traceback",
    "unittest",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
]
LONGEST_ANSWER = 120
IN_FULL = range(300, 1200)
"""Characters of an answer that is a whole docstring."""


def question_rows(count: int, *, in_full: bool = False) -> list[dict[str, str]]:
    """Return up to `count` rows of prompt and completion, the same ones each time.

    `in_full`: completions are whole docstrings, as long as instructions' answers mostly are.
    """
    rows = [row for name in MODULES for row in _rows(importlib.import_module(name), in_full)]
    return rows[:count]


def write_questions(path: Path, count: int, *, in_full: bool = False) -> Path:
    """Write rows as JSONL; returns the path."""
    found = question_rows(count, in_full=in_full)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _rows(module: ModuleType, in_full: bool) -> list[dict[str, str]]:
    found = []
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        text = inspect.getdoc(member) or ""
        answer = text if in_full else " ".join(text.split("\n\n")[0].split())
        if len(answer) in (IN_FULL if in_full else range(20, LONGEST_ANSWER + 1)):
            prompt = f"What does {module.__name__}.{name} do?"
            found.append({"prompt": prompt, "completion": answer})
    return found
