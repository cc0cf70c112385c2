"""Which paths a caller may use: the page and HTTP only the workspace and the allowed folders.

Python and the command line run with the user's own rights and are not checked here.
"""

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from backend.catalogue.packaged_models import MODEL_NAMES
from backend.errors import InvalidRequest, Unsupported
from backend.files.uploads import ADAPTER_SUFFIXES, DATA_SUFFIXES, MODEL_SUFFIXES
from backend.hub_address import gguf_file, is_address, is_url, parse
from backend.hub_names import HUB_ID, names_data_set
from backend.requests import (
    DescribeHubData,
    DownloadHubData,
    ExportRun,
    InspectAdapter,
    LoadAdapter,
    LoadModel,
    Merge,
    Preflight,
    PrepareData,
    PreviewData,
    PushAdapter,
    QuantizationTable,
    Request,
    SaveAdapter,
    Train,
)
from backend.settings import Settings

Caller = Literal["local", "page", "owner"]
"""Python and the command line; any visitor of the page; the signed-in owner of a demo."""
AnyRequest = TypeVar("AnyRequest", bound=Request)
PERMIT = "Start the app with --allow-folder and the folder's name to permit it."
OR_UPLOAD = f"{PERMIT[:-1]}, or upload the file."


def check_caller(request: Request, settings: Settings, caller: Caller = "page") -> None:
    """Raise if a request asks for something that its caller may not do."""
    if caller == "local":
        return
    demo = settings.demo and caller != "owner"
    for source in _sources(request):
        if demo and not _is_bundled(source):
            raise Unsupported(
                "This shared demo works with the bundled models and data only.",
                cure="Duplicate this Space or run the app on your own machine to use your own.",
            )
        if isinstance(request, InspectAdapter | LoadAdapter):
            _require_hub(source)
        if _is_path(request, source):
            _require_whole(source)
            require_allowed(Path(source), settings, hint=OR_UPLOAD)
    if isinstance(request, PushAdapter) and demo:
        raise Unsupported("This shared demo does not send anything to the Hub.")
    if isinstance(request, SaveAdapter | Merge | ExportRun):
        if demo:
            raise Unsupported("This shared demo does not write to folders.")
        require_allowed(Path(request.destination), settings)


def looks_like_path(source: str) -> bool:
    """Return whether a source is a path and not a Hugging Face id, by its spelling alone.

    Parts of a data set (`owner/set:configuration:split`), addresses of data sets and those of GGUF
    files on the Hub (`owner/repo:file.gguf`) are no paths.

    The files in the working folder do not matter: the page, the worker and a run with several
    processes have different working folders, and a visitor knows none of them.
    """
    if names_data_set(source) or gguf_file(source) is not None:
        return False
    return (
        source.startswith((".", "/", "~", "\\"))
        or not HUB_ID.fullmatch(source)
        or source.lower().endswith((*DATA_SUFFIXES, *ADAPTER_SUFFIXES, *MODEL_SUFFIXES))
    )


def adapter_is_path(source: str) -> bool:
    """Return whether an adapter's source is a path and not an address on the Hub, by its spelling.

    An adapter may be in a subfolder of a repository or of a zip: `owner/repo/checkpoint-20` is on
    the Hub, `some.zip/checkpoint-20` is not.
    """
    return not _is_bundled(source) and not adapter_on_hub(source)


def adapter_on_hub(source: str) -> bool:
    """Return whether an adapter's source is an address on the Hugging Face Hub."""
    if is_url(source):
        return True
    is_file = source.lower().endswith((*DATA_SUFFIXES, *ADAPTER_SUFFIXES))
    return not _is_bundled(source) and not is_file and is_address(source)


def on_hub(source: str) -> bool:
    """Return whether a source is an id on the Hugging Face Hub."""
    return not _is_bundled(source) and not looks_like_path(source)


def resolved(request: AnyRequest, caller: Caller = "local") -> AnyRequest:
    """Return the request with absolute paths, since the engine has another working folder.

    From Python and the command line, a name that exists in the working folder is a path, even if
    it could also be a Hub id. From the page such a name is always a Hub id.
    """
    changes: dict[str, Any] = {}
    if isinstance(request, InspectAdapter | LoadAdapter):
        _require_hub(request.source)
    for field in ("source", "data", "held_out"):
        source = getattr(request, field, None)
        if source and _is_named_path(request, source, caller):
            changes[field] = _whole(source)
    if getattr(request, "destination", ""):
        changes["destination"] = _whole(request.destination)  # type: ignore[attr-defined]
    if isinstance(request, Preflight):
        changes["train"] = resolved(request.train, caller)
    return request.model_copy(update=changes)


def _is_path(request: Request, source: str) -> bool:
    """Return whether a request's source is a path; adapters have addresses that others have not."""
    if isinstance(request, InspectAdapter | LoadAdapter):
        return adapter_is_path(source)
    return not _is_bundled(source) and looks_like_path(source)


def _is_named_path(request: Request, source: str, caller: Caller) -> bool:
    if _is_bundled(source):
        return False
    return _is_path(request, source) or (caller == "local" and _exists(source))


def _require_hub(source: str) -> None:
    """Raise InvalidRequest for an address of another site, or of no adapter on the Hub."""
    if is_url(source):
        parse(source)
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        raise InvalidRequest(
            f"{source[:200]!r} is an address of another site.",
            cure="Download the adapter there, then give its folder or zip.",
        )


def _exists(source: str) -> bool:
    """Return whether a name exists in the working folder; a URL never does."""
    return not is_url(source) and Path(source).exists()


def _whole(path: str) -> str:
    return str(_expanded(Path(path)).absolute())


def _require_whole(source: str) -> None:
    """Raise InvalidRequest for a relative path: a visitor of the page knows no working folder.

    URLs and chains of them (`https://`, `hf://`, `zip://...::...`) are rejected here too.
    """
    if not _expanded(Path(source)).is_absolute():
        raise InvalidRequest(
            f"{source!r} is not a bundled set, an absolute path or a Hub id.",
            cure="Use an absolute path (/home/...) or an id such as owner/name.",
        )


def _expanded(path: Path) -> Path:
    """Return a path with `~` replaced; raises InvalidRequest if it is not a valid path."""
    if "\0" in str(path):
        raise InvalidRequest(f"{str(path)!r} is not a valid path.", cure="Type it again.")
    try:
        return path.expanduser()
    except RuntimeError:  # what pathlib says of `~nobody`
        raise InvalidRequest(
            f"{str(path)!r} starts with the home of a user who does not exist here.",
            cure="Use an absolute path (/home/...).",
        ) from None


def require_allowed(path: Path, settings: Settings, *, hint: str = PERMIT) -> None:
    """Raise InvalidRequest if a path is outside the folders that the page may use."""
    real = _real(path)
    workspace = settings.workspace.expanduser().resolve()
    if real.is_relative_to(workspace):
        return
    for root in (r.expanduser().resolve() for r in settings.allowed_roots):
        if real.is_relative_to(root) and not _is_hidden(real.relative_to(root)):
            return
    raise InvalidRequest(
        f"The page may not use {path}.",
        cure=hint,
    )


def _real(path: Path) -> Path:
    """Return the resolved path; raises InvalidRequest if its links form a loop."""
    expanded = _expanded(path)
    try:
        return expanded.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        raise InvalidRequest(
            f"{path} cannot be resolved: its links form a loop, or it is too long.",
            cure="Give the file or folder itself.",
        ) from None


def _sources(request: Request) -> list[str]:
    if isinstance(request, LoadModel | InspectAdapter | LoadAdapter | QuantizationTable):
        return [request.source]
    if isinstance(request, Preflight):
        request = request.train
    if isinstance(request, Train | PrepareData):
        return [request.data, *([request.held_out] if request.held_out else [])]
    if isinstance(request, PreviewData | DescribeHubData | DownloadHubData):
        return [request.data]
    return []


def _is_bundled(source: str) -> bool:
    """Return whether a source is a base by name, or a name in the starter kit or the library.

    Such a source is neither a path nor a Hub id.
    """
    return source in MODEL_NAMES or source.startswith(("starter:", "library:"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
