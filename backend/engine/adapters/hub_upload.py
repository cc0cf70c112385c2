"""Uploading an adapter to the Hugging Face Hub.

Names of local folders are removed before, and the uploaded files are verified afterwards. Knows
nothing of the session.
"""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.adapters.saving import TEMPLATE
from backend.engine.core.job_control import Control
from backend.engine.methods.config_validation import CONFIG
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import InvalidRequest, NotFound, Unsupported, VerificationFailed, WorkbenchError
from backend.hub_names import HUB_ID
from backend.library import Library
from backend.permissions import looks_like_path
from backend.requests import PushAdapter
from backend.results import AdapterInfo, PushedAdapter

CARD = "README.md"
LOCAL_PATH = re.compile(r"(?<!\S)(?:~|\.{0,2})/\S*?([^/\s]+)/?(?=\s|$)")


def push(request: PushAdapter, control: Control, *, library: Library) -> PushedAdapter:
    """Upload an adapter; a repository created for it is deleted again where that fails.

    Raises Unsupported without a Hub login, InvalidRequest where the name is invalid or taken,
    NotFound where the Hub cannot be reached, and VerificationFailed.
    """
    info = library.get(request.name)
    if get_token() is None:
        raise Unsupported(
            "There is no Hub login on this machine.",
            cure="Run 'hf auth login' once, or start the app with HF_TOKEN set, then try again.",
        )
    with tempfile.TemporaryDirectory() as room:
        folder = public_copy(library, info, Path(room) / "adapter")
        try:
            return _send(request, info, folder, control)
        except WorkbenchError:
            raise
        except Exception as error:
            raise _explain(error, request.repo_id) from error


def public_copy(library: Library, info: AdapterInfo, folder: Path) -> Path:
    """Copy an adapter's files; local paths become plain names. Raises VerificationFailed."""
    kept = library.folder(info.id)
    folder.mkdir(parents=True)
    for name in (WEIGHTS, CONFIG, CARD, TEMPLATE):
        if (kept / name).is_file():
            shutil.copyfile(kept / name, folder / name)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = str(config.get("base_model_name_or_path") or "")
    public_base = base if is_hub_id(base) else _public_name(info.base_name, base)
    config["base_model_name_or_path"] = public_base
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    _public_card(folder / CARD, info, base, public_base)
    public = {"data": _public_source(info.data), "recipe": without_paths(info.recipe)}
    library.write_sidecar(folder, info.model_copy(update={**public, "run_id": None}))
    _require_public(folder, library.folder(info.id).parent)
    return folder


def is_hub_id(source: str) -> bool:
    """Tell whether a base is a Hub id, which others can load by its name."""
    return "/" in source and HUB_ID.fullmatch(source) is not None and not looks_like_path(source)


def _public_name(name: str, folder: str) -> str:
    """Return what others may call a local base: a packaged model has a Hub id."""
    model = PACKAGED_MODELS.get(name)
    is_packaged = model is not None and Path(folder).name == model.folder
    return model.hub_id if model is not None and is_packaged else name


def without_paths(text: str) -> str:
    """Return a text in which every path is reduced to its last part."""
    return LOCAL_PATH.sub(r"\1", text)


def _public_source(source: str) -> str:
    return Path(source).name if looks_like_path(source) else source


def _public_card(card: Path, info: AdapterInfo, base: str, public_base: str) -> None:
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    for private, public in ((info.data, _public_source(info.data)), (base, public_base)):
        text = text.replace(private, public) if private else text
    if is_hub_id(public_base):
        text = text.replace(
            "library_name: peft\n", f"library_name: peft\nbase_model: {public_base}\n", 1
        )
    card.write_text("\n".join(map(without_paths, text.split("\n"))), encoding="utf-8")


def _require_public(folder: Path, library: Path) -> None:
    """Raise VerificationFailed where a file still contains a local folder name."""
    private = {str(Path.home()), str(library), str(folder.parent)}
    for file in (folder / CARD, folder / CONFIG, folder / "workbench.json"):
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if any(place in text for place in private if len(place) > 1):
            raise VerificationFailed(
                f"{file.name} contains names of folders on this machine.",
                cure="Save a copy, fix that file, and upload the folder yourself.",
            )


def _send(request: PushAdapter, info: AdapterInfo, folder: Path, control: Control) -> PushedAdapter:
    hub = HfApi()
    control.progress(f"Creating {request.repo_id} on the Hub", force=True)
    there = hub.repo_exists(request.repo_id)
    if there and not request.replace:
        raise InvalidRequest(
            f"{request.repo_id} already exists on the Hub.",
            cure="Choose another name, or turn on Replace.",
        )
    repo_id = hub.create_repo(request.repo_id, private=request.private, exist_ok=there).repo_id
    try:
        control.check_stop()
        control.progress(f"Uploading {info.name} to {repo_id}", force=True)
        commit = hub.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"{info.name}, {info.method}"
        )
        control.progress("Verifying the upload", force=True)
        files = sorted(file for file in folder.iterdir() if file.is_file())
        _require_arrived(hub, repo_id, str(commit.oid), files)
    except BaseException:
        if not there:
            hub.delete_repo(repo_id, missing_ok=True)
        raise
    return PushedAdapter(
        repo_id=repo_id,
        url=f"{hub.endpoint}/{repo_id}",
        commit=str(commit.oid),
        files=[file.name for file in files],
        bytes=sum(file.stat().st_size for file in files),
    )


def _require_arrived(hub: HfApi, repo_id: str, commit: str, files: list[Path]) -> None:
    """Compare the Hub's digests with those of the sent files; raises VerificationFailed."""
    found = hub.get_paths_info(repo_id, [file.name for file in files], revision=commit)
    there = {each.path: each for each in found if isinstance(each, RepoFile)}
    for file in files:
        arrived = there.get(file.name)
        if arrived is None or not _is_same(file, arrived):
            raise VerificationFailed(f"{file.name} on the Hub differs from the uploaded file.")


def _is_same(file: Path, arrived: RepoFile) -> bool:
    content = file.read_bytes()
    if arrived.lfs is not None:
        return arrived.lfs.sha256 == hashlib.sha256(content).hexdigest()
    blob = b"blob %d\0" % len(content) + content
    return arrived.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _explain(error: Exception, repo_id: str) -> WorkbenchError:
    if isinstance(error, HFValidationError):
        return InvalidRequest(
            f"{repo_id!r} is not a valid name on the Hub.",
            cure="Use a name such as your-name/pirate: letters, digits, - _ and . only.",
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return Unsupported(
                f"You have no permission to write to {repo_id} on the Hub.",
                cure="Use your own name or your organisation's, and a token with write permission "
                "('hf auth login').",
                details=str(error),
            )
        return NotFound(
            f"The Hub did not accept {repo_id} (status {status}).",
            cure="Try again later.",
            details=str(error),
        )
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return NotFound(
            "The Hub cannot be reached.",
            cure="Check the internet connection, then try again.",
            details=str(error),
        )
    raise error
