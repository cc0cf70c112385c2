"""What the served page hands out, wherever the workspace lies."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from gradio.processing_utils import move_files_to_cache

from backend import Settings
from tests.ui.conftest import free_port
from tests.ui.fake_service import FakeService
from ui.app.server import serve
from ui.serving.options import Options


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    with FakeService(Settings(workspace=tmp_path / "home" / "workspace")) as fake:
        fake.add_adapter("good one")
        yield fake


@pytest.fixture
def served(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[gr.Blocks]:
    """A page whose workspace lies outside what Gradio serves by itself."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    demo = serve(service, Options(port=free_port()))
    token = LocalContext.blocks.set(demo)
    yield demo
    LocalContext.blocks.reset(token)
    demo.close(verbose=False)


def handed_out(demo: gr.Blocks, file: Path) -> Path:
    """Give a file to a download button as a handler's answer, and return what is served."""
    button = next(b for b in demo.blocks.values() if isinstance(b, gr.DownloadButton))
    data = button.postprocess(str(file)).model_dump()
    served = move_files_to_cache(data, button, postprocess=True, keep_in_cache=True)
    return Path(served["path"])


def test_a_packed_adapter_can_be_downloaded(served: gr.Blocks, service: FakeService) -> None:
    packed = service.pack_adapter("good one")

    assert handed_out(served, packed).read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("name", ["session.json", "adapters/a.json", "runs/r/output.log", "mine"])
def test_nothing_else_of_the_workspace_is_handed_out(
    served: gr.Blocks, service: FakeService, name: str
) -> None:
    file = service.settings.workspace / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("private")

    with pytest.raises(InvalidPathError):
        handed_out(served, file)


def test_a_browser_gets_the_page_without_the_http_api(served: gr.Blocks) -> None:
    page = httpx.get(f"{served.local_url}config?page=").json()
    programs = httpx.get(f"{served.local_url}config").json()

    assert public(page) == set()
    assert "train" in public(programs)
    assert {each["type"] for each in page["components"]} & {"api"} == set()
    assert {each["id"] for each in page["components"]} >= set(ids(page["layout"]))


def public(config: dict[str, Any]) -> set[str]:
    """Return the names of the endpoints that programs may call."""
    found = config["dependencies"]
    return {each["api_name"] for each in found if each["api_visibility"] == "public"}


def ids(node: dict[str, Any]) -> Iterator[int]:
    """Return the components of a layout."""
    for child in node.get("children") or ():
        yield child["id"]
        yield from ids(child)
