"""Fixtures that several parts share: a workspace, and an inline service with the starter."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.service.worker_process import process_environment

os.environ.update(process_environment({}))  # before torch loads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files with slow tests come first, so that no core is left with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Let writes end short after so many bytes of a file, as a full disk does, without being root.

    The system really writes a part and refuses the rest (EFBIG instead of ENOSPC).
    """

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tmp_workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture(scope="session")
def starter_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One inline service with the starter loaded; tests give their adapters names of their own."""
    settings = Settings(workspace=tmp_path_factory.mktemp("workspace"), runtime="inline")
    with Service(settings) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=120)
        yield service


@pytest.fixture
def base_only(starter_service: Service) -> Service:
    """The shared service with the base alone answering."""
    starter_service.start(rq.SetActive(adapters=[])).result(timeout=60)
    return starter_service
