"""A page on a service without a model, open to whoever the options let in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend import Settings
from backend import requests as rq
from tests.ui.conftest import free_port
from tests.ui.fake_service import FakeService
from ui.app.server import serve
from ui.serving.options import Credentials, Options

NAME, SECRET = "ann", "correct horse: battery"


@contextmanager
def opened(workspace: Path, **options: object) -> Iterator[str]:
    """Serve a page with these options; yields its address."""
    with FakeService(Settings(workspace=workspace), step_seconds=0.002) as fake:
        page = serve(fake, Options(port=free_port(), **options))
        fake.start(rq.LoadModel()).result(timeout=10)
        yield page.local_url
        page.close(verbose=False)


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that asks for no password."""
    with opened(tmp_path_factory.mktemp("open")) as url:
        yield url


@pytest.fixture
def closed_page(tmp_path: Path) -> Iterator[str]:
    """A page that asks for a password, and at which nobody has guessed yet."""
    with opened(tmp_path / "closed", credentials=Credentials(NAME, SECRET)) as url:
        yield url
