"""One page on a service without a model, and fresh services for tests that change them."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from backend import Settings
from backend import requests as rq
from tests.ui.fake_service import FakeService
from ui.app.server import serve
from ui.serving.options import Options


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    """A service with the starter loaded."""
    with FakeService(Settings(workspace=tmp_path / "w"), step_seconds=0.001) as fake:
        fake.start(rq.LoadModel()).result(timeout=10)
        yield fake


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeService]:
    """A service whose page is open; `url` is where."""
    workspace = tmp_path_factory.mktemp("workspace")
    with FakeService(Settings(workspace=workspace), step_seconds=0.002) as fake:
        page = serve(fake, Options(port=free_port()))
        fake.start(rq.LoadModel()).result(timeout=10)
        fake.url = page.local_url
        yield fake
        page.close(verbose=False)


@pytest.fixture
def client(served: FakeService) -> Iterator[Client]:
    client = Client(served.url, verbose=False)
    yield client
    client.close()
