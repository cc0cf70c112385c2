"""Signing in: the form, the sessions of signed-in users, and a refusal for everyone else.

Runs in front of Gradio, so that it covers every route. POST /login accepts the same form as
Gradio's own, so `gradio_client` with `auth=` works. Knows nothing of hosts and proxies.
"""

import html
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from string import Template

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.serving.guess_limit import GuessLimit
from ui.serving.options import Credentials

PAGE = Template(Path(__file__).with_name("login.html").read_text(encoding="utf-8"))
LONGEST_SESSION_S = 7 * 24 * 3600.0
MOST_SESSIONS = 1000
# Gradio 6.31 requests this from its own server at start.
OPEN_TO_ALL = frozenset({"/gradio_api/startup-events"})


class Sessions:
    """Signed-in users, identified by a secret in a cookie; kept until the app ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Cookies do not tell ports apart: two apps on one machine need two names.
        self.cookie = f"workbench-session-{secrets.token_hex(4)}"
        self._clock = clock
        self._names: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, name: str) -> str:
        """Open a session and return its secret."""
        token = secrets.token_urlsafe(32)
        self._names[token] = (name, self._clock() + LONGEST_SESSION_S)
        while len(self._names) > MOST_SESSIONS:
            self._names.popitem(last=False)
        return token

    def end(self, request: Request) -> None:
        """Close the session that a request belongs to."""
        self._names.pop(request.cookies.get(self.cookie, ""), None)

    def name_of(self, request: Request) -> str | None:
        """Return the user of a request; None if not signed in."""
        name, ends = self._names.get(request.cookies.get(self.cookie, ""), ("", 0.0))
        return name if name and self._clock() < ends else None


class Login:
    """Passes only requests of signed-in users."""

    def __init__(
        self,
        app: ASGIApp,
        credentials: Credentials,
        sessions: Sessions,
        *,
        path: str,
        in_frame: bool,
    ) -> None:
        self.app = app
        self.credentials = credentials
        self.sessions = sessions
        self.limit = GuessLimit()
        self.path = path
        self.in_frame = in_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path, is_read = scope["path"].rstrip("/") or "/", scope["method"] in ("GET", "HEAD")
        if path == "/login" and scope["method"] == "POST":
            response = await self.sign_in(request)
        elif path == "/logout" and is_read:
            response = self.sign_out(request)
        elif path in OPEN_TO_ALL or self.sessions.name_of(request):
            await self.app(scope, receive, send)
            return
        elif path in ("/", "/login") and is_read:
            response = self.page()
        else:
            response = JSONResponse(
                {"detail": "Not signed in. POST username and password to login."}
            )
            response.status_code = 401
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    async def sign_in(self, request: Request) -> Response:
        """Answer a sign-in attempt: with a session, an error, or the time to wait."""
        address = request.client.host if request.client else ""
        if wait := self.limit.admit(address):
            return self.refuse(request, _wait_sentence(wait), 429, wait)
        try:
            form = await request.form(max_files=0, max_fields=8)
        except HTTPException as error:
            return self.refuse(request, error.detail, error.status_code)
        name, secret = str(form.get("username", "")), str(form.get("password", ""))
        if not self.credentials.match(name, secret):
            return self.refuse(request, "The name or the password is wrong.", 401)
        self.limit.succeeded(address)
        return self.welcome(request)

    def welcome(self, request: Request) -> Response:
        """Begin a session: redirects a browser to the page, and sends JSON to a program."""
        response: Response = JSONResponse({"success": True})
        if _is_page(request):
            response = RedirectResponse(f"{self.path}/", 303)
        is_https = request.url.scheme == "https"
        response.set_cookie(
            self.sessions.cookie,
            self.sessions.begin(self.credentials.name),
            path=f"{self.path}/",
            httponly=True,
            secure=is_https,
            # The Hub shows a Space in a frame, where browsers send only such a cookie.
            samesite="none" if self.in_frame and is_https else "lax",
        )
        return response

    def refuse(self, request: Request, sentence: str, status: int, wait_s: float = 0.0) -> Response:
        """Return why the sign-in failed: as the page, or as JSON for a program."""
        response: Response = JSONResponse({"detail": sentence}, status)
        if _is_page(request):
            response = self.page(sentence, status)
        if wait_s:
            response.headers["retry-after"] = str(math.ceil(wait_s))
        return response

    def sign_out(self, request: Request) -> Response:
        """End the session and show the sign-in page."""
        self.sessions.end(request)
        response = RedirectResponse(f"{self.path}/", 303)
        response.delete_cookie(self.sessions.cookie, path=f"{self.path}/")
        return response

    def page(self, sentence: str = "", status: int = 200) -> Response:
        """Return the sign-in page."""
        note = f'<p role="alert">{html.escape(sentence)}</p>' if sentence else ""
        action = html.escape(f"{self.path}/login")
        return HTMLResponse(PAGE.substitute(note=note, action=action), status)


def _is_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _wait_sentence(wait_s: float) -> str:
    seconds = math.ceil(wait_s)
    shown = f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
    return f"Too many wrong passwords. Try again in {shown}."
