"""Headers of reverse proxies: applied if the proxy is trusted, and otherwise removed.

Afterwards the request has the real client, the scheme of the browser, and the path of the app,
whether the proxy strips its own path prefix or keeps it.
"""

from collections.abc import Sequence
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

# Gradio 6.31 builds the page's own address from the last one, from any sender.
SAID_BY_PROXIES = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")


class Forwarded:
    """Takes client, scheme and host only from trusted proxies."""

    def __init__(self, app: ASGIApp, trusted: Sequence[str], path: str) -> None:
        self._proxied = ProxyHeadersMiddleware(RootPath(app, path), list(trusted))  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        is_trusted = client is not None and client[0] in self._proxied.trusted_hosts
        scope["headers"] = _cleaned(Headers(scope=scope), is_trusted)
        await self._proxied(scope, receive, send)  # type: ignore[arg-type]


class RootPath:
    """Removes the path prefix of a proxy if the proxy did not."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self.path and path == self.path:
            # The page's own addresses are relative and need the slash.
            await RedirectResponse(f"{path}/")(scope, receive, send)
            return
        if self.path and path.startswith(f"{self.path}/"):
            path = path[len(self.path) :]
            scope.update(path=path, raw_path=quote(path).encode())
        scope["root_path"] = ""  # Gradio got the path at launch; its routes do not include it
        await self.app(scope, receive, send)


def _cleaned(headers: Headers, is_trusted: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers without proxy headers, or with one value each if trusted."""
    kept = [(name, value) for name, value in headers.raw if name.decode() not in SAID_BY_PROXIES]
    if is_trusted:
        if clients := ", ".join(headers.getlist("x-forwarded-for")):
            kept.append((b"x-forwarded-for", clients.encode("latin-1")))
        # The first of several proxies saw the browser. Gradio uses the first value, uvicorn all.
        for name in ("x-forwarded-host", "x-forwarded-proto"):
            if first := headers.get(name, "").partition(",")[0].strip():
                kept.append((name.encode(), first.encode("latin-1")))
    return kept
