"""Addresses of an adapter on the Hugging Face Hub: an id with a subfolder and a revision, or a URL.

`owner/repo`, `owner/repo/sub/folder`, `owner/repo@revision`, both together in any order, and what
people copy out of a browser. Also those of one GGUF file: `owner/repo:file.gguf`,
`owner/repo/file.gguf`, or its URL. Decides by the spelling alone; asks no Hub, looks at no disk.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from backend.errors import InvalidRequest
from backend.files.uploads import MODEL_SUFFIXES

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
NAMES = (*HOSTS, "hf:")
OTHER_KINDS = {"datasets": "a data set", "spaces": "a Space", "collections": "a collection"}
VIEWS = ("tree", "blob", "resolve", "raw", "commit", "edit", "blame")
OF_FILES = ("blob", "resolve", "raw", "edit", "blame")
"""The views whose path ends in a file; the adapter is the folder around it."""
DEEPEST = 12
_OWNED = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FOLDER = re.compile(r"[A-Za-z0-9_][\w.=+, -]{0,119}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+=-]{0,119}(/[\w.+=-]{1,120}){0,4}", re.ASCII)
_SPECIAL = re.compile(r"refs/(pr|convert|heads|tags)/[^/]+")
_FORM = "Use owner/repo, owner/repo/subfolder, owner/repo@revision, or the page's address."


class HubAddress(NamedTuple):
    """A place on the Hub; `revision` is None for the newest, `folder` is empty for the top."""

    repo_id: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        place = f"{self.repo_id}/{self.folder}" if self.folder else self.repo_id
        return f"{place}@{self.revision}" if self.revision else place

    def below(self, folder: str) -> "HubAddress":
        """Return the address of a folder of the same repository."""
        return self._replace(folder=folder)


class HubFile(NamedTuple):
    """One file on the Hub; `revision` is None for the newest."""

    repo_id: str
    file: str
    revision: str | None = None


def gguf_file(source: str) -> HubFile | None:
    """Return the GGUF file on the Hub that a source is the address of; None where it is none."""
    text = source.strip().split("?", 1)[0].split("#", 1)[0]
    if not text.lower().endswith(MODEL_SUFFIXES):
        return None
    whole, colon, file = text.rpartition(":")
    if colon and "/" in whole and not file.startswith("//"):
        text = f"{whole}/{file}"  # owner/repo:sub/file.gguf
    text, slash, name = text.rpartition("/")
    if not slash or not _FOLDER.fullmatch(name) or ".." in name:
        return None
    try:
        found = parse(f"{text}/{name}") if _names_view(text) else parse(text)
    except InvalidRequest:
        return None
    if "/" not in found.repo_id:
        return None
    return HubFile(found.repo_id, f"{found.folder}/{name}".lstrip("/"), found.revision)


def _names_view(text: str) -> bool:
    """Return whether an address is that of a file's page, where `parse` leaves its file out."""
    return is_url(text) and any(f"/{view}/" in f"{text}/" for view in OF_FILES)


def is_url(source: str) -> bool:
    """Return whether a source is spelled as an address of the Hub's own pages or of `hf://`."""
    scheme, colon, rest = source.strip().partition("://")
    if not colon:
        return source.strip().lower().startswith(tuple(f"{host}/" for host in HOSTS))
    if scheme.lower() == "hf":
        return True
    return scheme.lower() in ("http", "https") and _host(rest) in HOSTS


def is_address(source: str) -> bool:
    """Return whether a source is an adapter's address on the Hub, and not a path on this machine.

    A URL of the Hub counts even if nothing can be read there; `parse` gives the reason.
    """
    if is_url(source):
        return True
    try:
        parse(source)
    except InvalidRequest:
        return False
    return True


def parse(source: str) -> HubAddress:
    """Return what an address names; raises InvalidRequest where it names no repository."""
    if not is_url(source):
        return _from_id(source, source)
    text = source.strip()
    if text.lower().startswith("hf://"):
        rest = text[5:].removeprefix("models/")
        _require_model(rest.split("/", 1)[0], source)
        return _from_id(rest.strip("/"), source)
    return _from_page(text, source)


def _from_page(text: str, source: str) -> HubAddress:
    """Read https://huggingface.co/owner/repo/tree/revision/sub/folder."""
    whole = text if "://" in text else f"https://{text}"
    try:
        path = urlsplit(whole).path
    except ValueError:
        raise _no_address(source) from None
    parts = [unquote(part) for part in path.split("/") if part]
    parts = parts[1:] if parts[:1] == ["models"] else parts
    if parts:
        _require_model(parts[0], source)
    view = next((at for at in (2, 1) if len(parts) > at and parts[at] in VIEWS), len(parts))
    named, rest = parts[:view], parts[view + 1 :]
    if len(named) > 2 and view == len(parts):
        raise _no_address(source)
    revision: str | None
    if rest and "/" in rest[0]:  # a branch's name may have a slash, which is escaped in a URL
        revision, folders = rest[0], rest[1:]
    else:
        revision, folders = _split_revision("/".join(rest))
    if view < len(parts) and parts[view] in OF_FILES and folders:
        folders = folders[:-1]
    return _checked("/".join(named), folders, revision, source)


def _from_id(text: str, source: str) -> HubAddress:
    """Read owner/repo@revision/sub and owner/repo/sub@revision."""
    before, at, after = text.rstrip("/").partition("@")
    parts = before.split("/")
    named, folders = parts[:2], parts[2:]
    if not at:
        return _checked("/".join(named), folders, None, source)
    if folders:
        return _checked("/".join(named), folders, after, source)
    revision, folders = _split_revision(after)
    return _checked("/".join(named), folders, revision or "", source)


def _split_revision(text: str) -> tuple[str | None, list[str]]:
    """Split `revision/sub/folder`; of the revisions with a slash only the Hub's own are known."""
    if not text:
        return None, []
    special = _SPECIAL.match(text)
    revision = unquote(special.group() if special else text.split("/", 1)[0])
    rest = text[len(special.group()) :] if special else text.partition("/")[2]
    return revision, [part for part in rest.split("/") if part]


def _checked(repo_id: str, folders: list[str], revision: str | None, source: str) -> HubAddress:
    owner_and_name = repo_id.split("/")
    good = (
        len(owner_and_name) <= 2
        and all(_OWNED.fullmatch(part) and ".." not in part for part in owner_and_name)
        and len(folders) <= DEEPEST
        and all(_FOLDER.fullmatch(part) and ".." not in part for part in folders)
        and not any(part.lower().endswith(".zip") for part in (*owner_and_name, *folders))
        and (revision is None or (_REVISION.fullmatch(revision) and ".." not in revision))
    )
    if not good:
        raise _no_address(source)
    return HubAddress(repo_id, "/".join(folders), revision)


def _require_model(first: str, source: str) -> None:
    if first in OTHER_KINDS:
        raise InvalidRequest(
            f"{source[:200]!r} is {OTHER_KINDS[first]} on the Hub, and not an adapter.",
            cure="Use the address of the adapter's own repository.",
        )


def _no_address(source: str) -> InvalidRequest:
    return InvalidRequest(f"{source[:200]!r} names no adapter on the Hub.", cure=_FORM)


def _host(rest: str) -> str:
    """Return the host of a URL without its scheme, without a port and a user."""
    return re.split(r"[/?#]", rest, maxsplit=1)[0].lower()
