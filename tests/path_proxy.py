"""A small reverse proxy that serves an app under a path, as nginx or Caddy would."""

import http.client
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}


@dataclass
class Proxy:
    """How requests are passed on."""

    target: str
    path: str
    strips: bool
    """Whether the app is asked without the path."""
    forwards: bool
    """Whether host and scheme are told in headers; else the Host header is passed on as it is."""
    client: str = "203.0.113.7"
    """The address that it tells as the client's."""
    url: str = ""
    failures: list[str] = field(default_factory=list)

    def headers_for(self, headers: Any) -> dict[str, str]:
        """Return the headers that the app gets."""
        passed = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        passed["X-Forwarded-For"] = self.client
        if self.forwards:
            passed["X-Forwarded-Host"] = headers["Host"]
            passed["X-Forwarded-Proto"] = "http"
            passed["Host"] = urlsplit(self.target).netloc
        return passed


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread of its own."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser leaves when it likes
            super().handle_error(request, client_address)


@contextmanager
def proxied(
    target: str, path: str = "/workbench", *, strips: bool = True, forwards: bool = True
) -> Iterator[Proxy]:
    """Serve an app under a path on a port of its own."""
    proxy = Proxy(target, path, strips, forwards)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            relay(self, proxy)

        do_POST = do_HEAD = do_OPTIONS = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}{path}/"
    yield proxy
    server.shutdown()
    server.server_close()
    thread.join(10)


def relay(handler: BaseHTTPRequestHandler, proxy: Proxy) -> None:
    """Pass a request on, and the answer back piece by piece."""
    address = urlsplit(handler.path)
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    if not (address.path == proxy.path or address.path.startswith(f"{proxy.path}/")):
        proxy.failures.append(handler.path)
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    path = handler.path.removeprefix(proxy.path) if proxy.strips else handler.path
    connection = http.client.HTTPConnection(urlsplit(proxy.target).netloc, timeout=600)
    try:
        headers = proxy.headers_for(handler.headers)
        connection.request(handler.command, path or "/", body or None, headers)
        give_back(handler, connection.getresponse())
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True  # the browser has gone
    finally:
        connection.close()


def give_back(handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse) -> None:
    """Send an answer on as it comes, so that streams stay streams."""
    handler.send_response_only(answer.status, answer.reason)
    for name, value in answer.getheaders():
        if name.lower() not in HOP_BY_HOP:
            handler.send_header(name, value)
    is_bare = handler.command == "HEAD" or answer.status in (204, 304)
    is_chunked = answer.length is None and not is_bare
    if is_chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not is_bare and (piece := answer.read1(65536)):
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        handler.wfile.flush()
    if is_chunked:
        handler.wfile.write(b"0\r\n\r\n")
