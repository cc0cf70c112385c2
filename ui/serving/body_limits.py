"""Limits on what may be sent to the app: in one request, and in its temporary folder.

Gradio 6.31 limits the size of one file, but not the number of files, nor other request bodies.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend import size_text

MOST_SIGN_IN_BYTES = 16 * 1024
MOST_REQUEST_BYTES = 16 * 1024**2
UPLOADS = ("/gradio_api/upload", "/gradio_api/process_recording")
UPLOADS_AT_ONCE = 10
"""The folder has room for this many files of the largest size."""
OLD_S = 24 * 3600.0
# An upload is copied into the workspace on arrival, so its temporary file is soon unused.
OLD_WHEN_FULL_S = 3600.0


class TemporaryFolder:
    """The folder of uploads, limited in bytes and in age."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.used_bytes = 0
        self._active = 0
        self._lock = asyncio.Lock()

    async def begin(self, announced_bytes: int) -> bool:
        """Begin an upload of at least this many bytes; False if there is no room."""
        async with self._lock:
            if not self._active:
                self.used_bytes = await asyncio.to_thread(self._make_room, announced_bytes)
            if self.used_bytes + announced_bytes > self.most_bytes:
                return False
            self._active += 1
            return True

    def take(self, count: int) -> bool:
        """Count bytes as they arrive; False if they are too many."""
        self.used_bytes += count
        return self.used_bytes <= self.most_bytes

    def end(self) -> None:
        """End an upload, successful or not."""
        self._active -= 1

    def clean(self, age_s: float = OLD_S) -> int:
        """Delete older files; return the bytes that remain."""
        left, oldest = 0, time.time() - age_s
        for folder, _, files in os.walk(self.folder, topdown=False):
            for name in files:
                left += _bytes_unless_older(Path(folder, name), oldest)
            _remove_if_empty(Path(folder), oldest)
        return left

    def _make_room(self, wanted_bytes: int) -> int:
        used = self.clean()
        return used if used + wanted_bytes <= self.most_bytes else self.clean(OLD_WHEN_FULL_S)


class BodyLimits:
    """Rejects a request whose body is too large, before or while it arrives."""

    def __init__(self, app: ASGIApp, temporary: TemporaryFolder) -> None:
        self.app = app
        self.temporary = temporary

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].rstrip("/") in UPLOADS:
            await self._upload(scope, receive, send)
            return
        is_sign_in = scope["path"].rstrip("/") == "/login"
        most = MOST_SIGN_IN_BYTES if is_sign_in else MOST_REQUEST_BYTES
        sentence = f"The request is larger than {size_text(most)}."
        if _announced(scope) > most:
            await PlainTextResponse(sentence, 413)(scope, receive, send)
            return
        got = 0

        def take(count: int) -> bool:
            nonlocal got
            got += count
            return got <= most

        error = HTTPException(413, sentence)
        await self.app(scope, _counting(receive, take, error, cut_off=None), send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self.temporary.begin(_announced(scope)):
            await PlainTextResponse(self._full(), 413)(scope, receive, send)
            return
        try:
            # Only with this type of error does Gradio remove the parts of the upload.
            full, cut_off = MultiPartException(self._full()), MultiPartException("Cut off.")
            await self.app(scope, _counting(receive, self.temporary.take, full, cut_off), send)
        finally:
            self.temporary.end()

    def _full(self) -> str:
        return (
            "There is no room for this upload. All uploads together may take"
            f" {size_text(self.temporary.most_bytes)}; old ones are removed. Try again in an hour."
        )


def _counting(
    receive: Receive,
    take: Callable[[int], bool],
    too_large: Exception,
    cut_off: Exception | None,
) -> Receive:
    """Return a `receive` that counts the body and raises if it is too large or cut off."""
    is_whole = False

    async def counted() -> Message:
        nonlocal is_whole
        message = await receive()
        if message["type"] == "http.disconnect" and cut_off and not is_whole:
            raise cut_off
        if message["type"] == "http.request":
            is_whole = not message.get("more_body", False)
            if not take(len(message.get("body", b""))):
                raise too_large
        return message

    return counted


def _announced(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "")
    return int(text[:18]) if text.isdecimal() else 0


def _bytes_unless_older(file: Path, oldest: float) -> int:
    """Delete the file if it is old; return the bytes that it still takes."""
    try:
        found = file.lstat()
        if found.st_mtime >= oldest:
            return found.st_size
        file.unlink()
    except OSError:
        return 0  # already gone, or owned by another user
    return 0


def _remove_if_empty(folder: Path, oldest: float) -> None:
    try:
        if folder.lstat().st_mtime < oldest:
            folder.rmdir()
    except OSError:
        return
