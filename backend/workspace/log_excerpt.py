"""The end of a log without private text: only known text of this project or a library is kept.

A log may contain training data, prompts and folder names. So private text is not searched for;
instead a line keeps only the pieces that occur in this project's own sentences, in the list of
library messages below, or in a stack trace through installed code.
"""

import ast
import builtins
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from backend import errors
from backend.settings import PROJECT

HIDDEN = "[...]"
MOST_LINES = 300
MOST_BYTES = 512 * 1024
LONGEST_LINE = 2000
SOURCES = ("app.py", "backend", "ui")

# Error messages of libraries and the system that contain no names.
LIBRARY_SENTENCES = (
    "Traceback (most recent call last):",
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
    "Current thread", "(most recent call first):", "Fatal Python error:", "Segmentation fault",
    "Bus error", "Aborted", "Killed", "core dumped",
    "CUDA out of memory.", "Tried to allocate", "CUDA error:", "no kernel image is available",
    "device-side assert triggered", "CUBLAS_STATUS_ALLOC_FAILED", "NCCL error",
    "DefaultCPUAllocator: can't allocate memory", "not enough memory",
    "No space left on device", "Cannot allocate memory", "Too many open files",
    "Permission denied", "Read-only file system", "Input/output error", "Broken pipe",
    "No such file or directory", "Is a directory", "Connection refused", "Connection reset by peer",
    "Temporary failure in name resolution", "timed out", "certificate verify failed",
    "mat1 and mat2 shapes cannot be multiplied", "expected scalar type", "size mismatch for",
    "Expected all tensors to be on the same device", "must match the size of tensor",
    "object has no attribute", "unexpected keyword argument", "missing 1 required positional",
    "object is not callable", "object is not subscriptable", "object is not iterable",
    "cannot be unpacked", "index out of range", "list index out of range", "division by zero",
    "maximum recursion depth exceeded", "No module named", "cannot import name",
    "undefined symbol", "cannot open shared object file", "version `GLIBC", "not found",
    "invalid header or archive is corrupted", "Error while deserializing header",
    "CppCompileError", "torch._dynamo hit config", "recompile_limit", "InductorError",
)  # fmt: skip
LIBRARY_ERRORS = (
    "OutOfMemoryError", "SafetensorError", "ValidationError", "HfHubHTTPError", "TransportError",
    "ConnectError", "ReadTimeout", "LocalEntryNotFoundError", "RepositoryNotFoundError",
    "GatedRepoError", "AcceleratorError", "InductorError", "BackendCompilerFailed", "Unsupported",
    "TorchRuntimeError", "DistBackendError", "ArrowInvalid", "BadZipFile", "CppCompileError",
)  # fmt: skip

_FRAME = re.compile(r'\s*File "(?P<path>[^"]+)", line (?P<line>\d+),? in (?P<name>\S+)\s*')
_WARNING = re.compile(r"(?P<path>\S+\.py):(?P<line>\d+): (?P<kind>\w+Warning): .*")
_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*(?P<kind>[A-Za-z_]\w*)(?:: (?P<text>.*))?")


class Excerpt(NamedTuple):
    """The public lines, and the number of lines that were shortened or left out."""

    lines: list[str]
    hidden: int


def excerpt(file: Path) -> Excerpt:
    """Return the end of a log file without private text; empty if there is no file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - MOST_BYTES))
            raw = stream.read().decode("utf-8", "replace")
    except OSError:
        return Excerpt([], 0)
    lines = [line[:LONGEST_LINE] for line in raw.splitlines() if line.strip()][-MOST_LINES:]
    public = [public_line(line) for line in lines]
    shown = [line for line in public if line != HIDDEN]
    return Excerpt(shown, sum(HIDDEN in line for line in public))


def public_line(line: str) -> str:
    """Return the public part of a line; HIDDEN replaces the rest."""
    if frame := _FRAME.fullmatch(line):
        return _frame(frame["path"], frame["line"], frame["name"])
    if warning := _WARNING.fullmatch(line):
        kind = warning["kind"] if warning["kind"] in _error_names() else HIDDEN
        return f"{_place(warning['path']) or HIDDEN}:{warning['line']}: {kind}: {HIDDEN}"
    error = _ERROR.fullmatch(line)
    if error and error["kind"] in _error_names():
        return f"{error['kind']}: {public_text(error['text'] or '')}".removesuffix(": ")
    return public_text(line)


def public_text(text: str) -> str:
    """Return the pieces of a text that occur in known sentences, with HIDDEN between them."""
    kept = bytearray(len(text))
    for piece in _known_pieces():
        start = text.find(piece)
        while start >= 0:
            kept[start : start + len(piece)] = b"\1" * len(piece)
            start = text.find(piece, start + 1)
    shown = "".join(c if keep else "\0" for c, keep in zip(text, kept, strict=True))
    shown = re.sub(r"\0+", lambda gap: _gap(text[gap.start() : gap.end()]), shown)
    return shown.strip()


def _gap(text: str) -> str:
    if re.fullmatch(r"[\s.,:;]*", text):
        return text
    before, after = (" " if end.isspace() else "" for end in (text[0], text[-1]))
    return f"{before}{HIDDEN}{after}"


def _frame(path: str, line: str, name: str) -> str:
    """Return a frame of a stack trace, with its names only for installed code or this project."""
    place = _place(path)
    if place is None or name.strip("<>") not in _text_of(path):
        return f"  File {place or HIDDEN}, line {line}, in {HIDDEN}"
    return f"  File {place}, line {line}, in {name}"


def _place(path: str) -> str | None:
    """Return a module's path in this project or an installed package; None for all others."""
    file = Path(path)
    for title, root in _roots():
        if file.is_relative_to(root) and ".." not in file.parts and file.is_file():
            return f"{title}/{file.relative_to(root).as_posix()}"
    return None


def _roots() -> Iterator[tuple[str, Path]]:
    paths = sysconfig.get_paths()
    yield "packages", Path(paths["purelib"])
    yield "packages", Path(paths["platlib"])
    for name in SOURCES[1:]:
        yield f"app/{name}", PROJECT / name
    yield "python", Path(paths["stdlib"])


@cache
def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _error_names() -> frozenset[str]:
    builtin = {n for n, kind in vars(builtins).items()
               if isinstance(kind, type) and issubclass(kind, BaseException)}  # fmt: skip
    ours = {kind.__name__ for kind in errors.WorkbenchError.__subclasses__()}
    return frozenset({*builtin, *ours, "WorkbenchError", *LIBRARY_ERRORS})


@cache
def _known_pieces() -> tuple[str, ...]:
    """Return the fixed parts of this project's sentences, and the library messages."""
    pieces = set(LIBRARY_SENTENCES)
    for source in SOURCES:
        path = PROJECT / source
        for file in [path] if path.is_file() else path.rglob("*.py"):
            pieces.update(_pieces_in(file))
    return tuple(pieces)


def _pieces_in(file: Path) -> Iterator[str]:
    """Yield the fixed texts of a module that are long enough to be recognised."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.strip()
            if "\n" not in text and len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and len(text) > 11:
                yield text
