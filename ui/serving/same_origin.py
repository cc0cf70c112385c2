"""Refuses requests under foreign host names and from pages of other sites.

A browser reports the origin of a request in Sec-Fetch-Site (on https and localhost) and in Origin
(for all methods but GET and HEAD). Programs send neither and are allowed. The app sends no CORS
headers: its own page needs none, and Gradio 6.31 would send them to every page on localhost.
"""

import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.serving.options import LOOPBACK, Options, is_loopback

# Targets of links on other sites; the Hub returns to the second after signing in.
PAGES = ("/", "/login/callback")
DEFAULT_PORTS = {"http": 80, "https": 443}


class SameOrigin:
    """Refuses other host names and requests from other sites."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], root: str) -> None:
        self.app = app
        self.hosts = hosts
        self.root_origin = origin_of(root)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        named = [headers.get("host", ""), headers.get("x-forwarded-host", "")]
        unknown = next((name for name in named if name and not self.knows(name)), None)
        if unknown is not None or not named[0]:
            sentence = (
                f"The page is not served under this host name: {unknown or 'none was given'}."
            )
            response = PlainTextResponse(f"{sentence} Use --allow-host to allow it.", 400)
            await response(scope, receive, send)
        elif self.is_foreign(scope, headers):
            sentence = "Refused: the request comes from a page of another site."
            await PlainTextResponse(sentence, 403)(scope, receive, send)
        else:
            del headers["origin"]  # Gradio's CORS would respond to it
            await self.app(scope, receive, send)

    def knows(self, name: str) -> bool:
        """Return whether a Host header names this app."""
        host = _host_of(name)
        return "*" in self.hosts or any(
            host == known or (known.startswith("*.") and host.endswith(known[1:]))
            for known in self.hosts
            if host
        )

    def is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a page of another origin sends this, except for a link to the page."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site == "same-origin":
            return False
        if site in (None, "none"):
            return origin is not None and origin.lower() not in self.own_origins(scope, headers)
        return not (
            scope["method"] == "GET"
            and scope["path"] in PAGES
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") in ("document", "iframe")
        )

    def own_origins(self, scope: Scope, headers: Headers) -> set[str]:
        """Return the origins that the page can have in the browser."""
        named = [headers.get("host", ""), headers.get("x-forwarded-host", "")]
        origins = {origin_of(f"{scope['scheme']}://{name}") for name in named if name}
        return (origins | {self.root_origin}) - {""}


def origin_of(address: str) -> str:
    """Return an address's origin as browsers write it; empty for one without a host."""
    try:
        parts = urlsplit(address.lower())
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if parts.scheme not in DEFAULT_PORTS or not host:
        return ""
    shown = f"[{host}]" if ":" in host else host
    is_default = port in (None, DEFAULT_PORTS[parts.scheme])
    return f"{parts.scheme}://{shown}" if is_default else f"{parts.scheme}://{shown}:{port}"


def allowed_hosts(options: Options) -> list[str]:
    """Return the host names that the app accepts."""
    if options.on_space:
        return ["*"]
    names = {*LOOPBACK, options.host, *options.allow_hosts}
    names |= {_host_of(urlsplit(options.root_path).netloc)} - {""}
    if not is_loopback(options.host):
        names |= {socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    return sorted(name.lower() for name in names)


def _host_of(name: str) -> str:
    """Return the host of a Host header, without port and brackets; empty if it is none."""
    if any(c in "/\\@?#" or c.isspace() for c in name):
        return ""
    try:
        parts = urlsplit(f"//{name}")
        _ = parts.port  # raises if it is not a number
        return (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _own_addresses() -> set[str]:
    return {
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
