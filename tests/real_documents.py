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


def question_rows(count: int) -> list[dict[str, str]]:
    """Return up to `count` rows of prompt and completion, the same ones each time."""
    rows = [row for name in MODULES for row in _rows(importlib.import_module(name))]
    return rows[:count]


def write_questions(path: Path, count: int) -> Path:
    """Write rows as JSONL; returns the path."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in question_rows(count))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _rows(module: ModuleType) -> list[dict[str, str]]:
    found = []
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        summary = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
        if 20 <= len(summary) <= LONGEST_ANSWER:
            prompt = f"What does {module.__name__}.{name} do?"
            found.append({"prompt": prompt, "completion": summary})
    return found
