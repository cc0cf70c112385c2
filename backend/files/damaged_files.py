"""Unreadable files of the workspace: they are reported, renamed, and never overwritten."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from backend.errors import Damaged, DiskFull
from backend.files.atomic_files import disk_error

Content = TypeVar("Content")
log = logging.getLogger(__name__)


def read(file: Path, parse: Callable[[bytes], Content]) -> Content:
    """Read and parse a file; raises Damaged if it does not exist or cannot be parsed."""
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else error.strerror
        raise Damaged(f"{file.name} cannot be read: {reason}.", details=str(error)) from None
    try:
        return parse(content)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(
            f"{file.name} is damaged: {_reason(content, error)}.", details=f"{file}: {error}"
        ) from None


def read_if_there(file: Path, parse: Callable[[bytes], Content], *, missing: Content) -> Content:
    """Read and parse a file, or return `missing` if there is none; raises Damaged."""
    return read(file, parse) if _is_there(file) else missing


def read_measured(file: Path, parse: Callable[[bytes], Content], *, missing: Content) -> Content:
    """Read a file of measurements; an unreadable file is renamed and `missing` returned."""
    try:
        return read_if_there(file, parse, missing=missing)
    except Damaged as damaged:
        log.warning("%s", damaged)
        with suppress(DiskFull):
            keep_aside(file)
        return missing


def keep_aside(file: Path) -> Path:
    """Rename a damaged file and return its new path; raises DiskFull."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside, number = file.with_name(f"{file.name}.damaged-{stamp}"), 2
    while _is_there(aside):
        aside = file.with_name(f"{file.name}.damaged-{stamp}-{number}")
        number += 1
    try:
        file.rename(aside)
    except FileNotFoundError:
        return aside
    except OSError as error:
        raise disk_error(error, file) from error
    return aside


def _is_there(file: Path) -> bool:
    try:
        file.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it exists, and reading it gives the reason
    return True


def _reason(content: bytes, error: Exception) -> str:
    if not content.strip(b"\0 \r\n\t"):
        return "it is empty"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "it is not text"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] != "json_invalid":
            place = ".".join(map(str, first["loc"]))
            return f"{place or 'its content'} is not as it should be ({first['msg'].lower()})"
        return "it is cut off or is not JSON"
    if isinstance(error, KeyError | TypeError):
        return "its content is not as it should be"
    return "it is cut off or is not JSON"
