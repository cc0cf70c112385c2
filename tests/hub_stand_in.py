"""A small Hugging Face Hub on the loopback address: for `snapshot_download`, `upload_folder`,
`load_dataset`, and their errors. Data sets are the repositories under `datasets/owner/name`.

Serves folders as repositories: model info, tree, and files by commit, with the Hub's own headers.
Takes new ones below `uploads`, small files in the commit and large ones by the LFS protocol.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class Repository:
    """A folder under a Hub id; `gated` shows its file list and keeps its files.

    `card` is the metadata of its README, which the Hub also shows for a gated repository.
    """

    def __init__(
        self,
        folder: Path,
        *,
        gated: bool = False,
        private: bool = False,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.card = card
        self.folder = folder
        self.private = private
        self.gated = gated
        self.commit = hashlib.sha1(str(folder).encode()).hexdigest()
        self.revisions = {"main", "v1", self.commit}

    def files(self) -> Iterator[Path]:
        return (path for path in sorted(self.folder.rglob("*")) if path.is_file())

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries of a folder, or of all folders below it, as the Hub lists them."""
        root = self.folder / under
        found = sorted(root.rglob("*") if recursive else root.iterdir()) if root.is_dir() else []
        return [_entry(path, self.folder) for path in found]


class HubStandIn:
    """The server. `requests` is what was asked; a file in `held` waits until `release` is set."""

    def __init__(self, repositories: dict[str, Repository], *, uploads: Path | None = None) -> None:
        self.repositories = repositories
        self.uploads = uploads
        self.blobs: dict[str, bytes] = {}
        self.refuses_writing = False
        self.loses: set[str] = set()
        """Files of which a commit keeps only the beginning."""
        self.breaks_after: dict[str, int] = {}
        """Files whose download ends after so many bytes, once."""
        self.stalls_after: dict[str, int] = {}
        """Files whose download waits after so many bytes until `release` is set."""
        self.ignores_ranges = False
        self.sent: list[tuple[str, int, int]] = []
        """The files that were sent: name, first byte, number of bytes."""
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


def know_only(hub: HubStandIn, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Let processes started from now on know no other Hub, and keep its files in `home`."""
    patch.setenv("HF_ENDPOINT", hub.url)
    patch.setenv("HF_HOME", str(home))
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        patch.delenv(name, raising=False)
        patch.delenv(name.lower(), raising=False)


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
        if parts[:2] == ["api", "datasets"]:
            return self._api("/".join(parts[1:4]), parts[4:])
        if parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            return self._file("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(404)

    # -- uploads ---------------------------------------------------------------------------------

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.stand_in.requests.append(path)
        parts = path.strip("/").split("/")
        if self.stand_in.refuses_writing:
            return self._send(403)
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return self._json(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self._json(200, self._where_to_put(json.loads(body)))
        if parts[1] == "datasets":
            repository = self.stand_in.repositories["/".join(parts[1:4])]
            names = parse_qs(body.decode())["paths"]
            found = [path for name in names if (path := repository.folder / name).exists()]
            return self._json(200, [_entry(path, repository.folder) for path in found])
        id, what = "/".join(parts[2:4]), parts[4]
        if what == "preupload":
            return self._json(200, {"files": [_upload_mode(f) for f in json.loads(body)["files"]]})
        if what == "paths-info":
            names = parse_qs(body.decode())["paths"]
            files = [file for file in self._kept(id).iterdir() if file.name in names]
            folder = self._kept(id)
            return self._json(
                200, [_entry(file, folder, large=_is_large(file.name)) for file in files]
            )
        return self._commit(id, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.stand_in.blobs[self.path.rsplit("/", 1)[-1]] = content
        self._send(200, headers={"ETag": '"x"'})

    def do_DELETE(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stand_in.requests.append(f"delete {asked['organization']}/{asked['name']}")
        self.stand_in.repositories.pop(f"{asked['organization']}/{asked['name']}", None)
        self._send(200)

    def _create(self, asked: dict[str, Any]) -> None:
        id = f"{asked['organization']}/{asked['name']}"
        if id in self.stand_in.repositories:
            return self._json(409, {"error": "You already created this model repo", "url": id})
        assert self.stand_in.uploads is not None
        folder = self.stand_in.uploads / asked["name"]
        folder.mkdir(parents=True)
        private = asked.get("visibility") == "private"
        self.stand_in.repositories[id] = Repository(folder, private=private)
        return self._json(200, {"url": f"{self.stand_in.url}/{id}", "name": id})

    def _kept(self, id: str) -> Path:
        return self.stand_in.repositories[id].folder

    def _where_to_put(self, asked: dict[str, Any]) -> dict[str, Any]:
        def action(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.stand_in.url}/lfs/{oid}"}}

        return {
            "transfer": "basic",
            "objects": [{**each, "actions": action(each["oid"])} for each in asked["objects"]],
        }

    def _commit(self, id: str, lines: list[dict[str, Any]]) -> None:
        folder = self._kept(id)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            content = (
                base64.b64decode(value["content"])
                if line["key"] == "file"
                else self.stand_in.blobs[value["oid"]]
            )
            kept = content[:8] if value["path"] in self.stand_in.loses else content
            (folder / value["path"]).write_bytes(kept)
        commit = self.stand_in.repositories[id].commit
        url = f"{self.stand_in.url}/{id}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # -- answers ---------------------------------------------------------------------------------

    def _api(self, id: str, rest: list[str]) -> None:
        repository = self._repository(id, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            return
        if rest[:1] == ["tree"]:
            recursive = "recursive" in parse_qs(urlsplit(self.path).query)
            recursive = recursive and "ecursive=False" not in self.path
            under = "/".join(rest[2:])
            entries = repository.tree(under, recursive=recursive)
            if under and not entries:
                return self._send(404, headers={"X-Error-Code": "EntryNotFound"})
            self._json(200, entries)
        else:
            info = {"id": id, "modelId": id, "sha": repository.commit, "siblings": []}
            info |= {"gated": "manual" if repository.gated else False, "cardData": repository.card}
            self._json(200, info)

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
            self._send_file(name, content, commit)

    def _send_file(self, name: str, content: bytes, commit: dict[str, str]) -> None:
        """Send a file, or the range of it that was asked for."""
        hub, asked = self.stand_in, self.headers.get("Range")
        headers = {"ETag": f'"{_digest(name, content)}"', **commit}
        first, last = 0, len(content) - 1
        if asked and not hub.ignores_ranges:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first = int(start) if start else max(0, len(content) - int(end))
            last = min(last, int(end)) if start and end else last
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        body = content[first : last + 1]
        if self.command == "HEAD":
            return self._send(200, body, headers)
        broken = hub.breaks_after.pop(name, None)
        hub.sent.append((name, first, len(body) if broken is None else broken))
        stall = hub.stalls_after.get(name)
        self._send(
            206 if "Content-Range" in headers else 200, body, headers, cut=broken, stall=stall
        )

    def _repository(self, id: str, revision: str) -> Repository | None:
        repository = self.stand_in.repositories.get(id)
        if repository is None:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in repository.revisions:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def _send(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        cut: int | None = None,
        stall: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            if stall is not None:
                self.wfile.write(body[:stall])
                self.stand_in.release.wait(60)
                body = body[stall:]
            self.wfile.write(body[:cut])


def _entry(file: Path, root: Path, *, large: bool = False) -> dict[str, Any]:
    name = file.relative_to(root).as_posix()
    if file.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
    content = file.read_bytes()
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_digest(content)}
    if large or _is_kept_apart(name, content):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry


def _is_kept_apart(name: str, content: bytes) -> bool:
    """Return whether a file is not in git itself, so that the Hub states another digest."""
    return _is_large(name) or len(content) > 1024**2


def _digest(name: str, content: bytes) -> str:
    if _is_kept_apart(name, content):
        return hashlib.sha256(content).hexdigest()
    return _git_digest(content)


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if _is_large(file["path"]) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
