"""A small Hugging Face Hub on the loopback address: enough for `snapshot_download` and its errors.

Serves folders as repositories: model info, tree, and files by commit, with the Hub's own headers.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Repository:
    """A folder under a Hub id; `gated` shows its file list and keeps its files."""

    def __init__(self, folder: Path, *, gated: bool = False) -> None:
        self.folder = folder
        self.gated = gated
        self.commit = hashlib.sha1(str(folder).encode()).hexdigest()
        self.revisions = {"main", "v1", self.commit}

    def files(self) -> Iterator[Path]:
        return (path for path in sorted(self.folder.iterdir()) if path.is_file())


class HubStandIn:
    """The server. `requests` is what was asked; a file in `held` waits until `release` is set."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.held: set[str] = set()
        self.release = threading.Event()
        self.answers_with: int | None = None
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Start to listen, on the same port as before."""
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop to listen: connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.close()
        try:
            yield
        finally:
            self.open()


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.stand_in
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        if hub.answers_with is not None:
            return self._send(hub.answers_with)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(404)

    def _api(self, id: str, rest: list[str]) -> None:
        repository = self._repository(id, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            return
        if rest[:1] == ["tree"]:
            self._send(200, json.dumps([_entry(file) for file in repository.files()]).encode())
        else:
            info = {"id": id, "modelId": id, "sha": repository.commit, "siblings": []}
            self._send(200, json.dumps(info).encode())

    def _file(self, id: str, revision: str, name: str) -> None:
        repository = self._repository(id, revision)
        if repository is None:
            return
        commit = {"X-Repo-Commit": repository.commit}
        if repository.gated:
            message = f"Access to model {id} is restricted."
            self._send(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif not (repository.folder / name).is_file():
            self._send(404, headers={"X-Error-Code": "EntryNotFound", **commit})
        else:
            if name in self.stand_in.held and self.command == "GET":
                self.stand_in.release.wait(60)
            content = (repository.folder / name).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, {"ETag": etag, **commit})

    def _repository(self, id: str, revision: str) -> Repository | None:
        repository = self.stand_in.repositories.get(id)
        if repository is None:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in repository.revisions:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": file.name, "size": len(content), "oid": blob}
