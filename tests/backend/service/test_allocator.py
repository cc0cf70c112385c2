"""The allocator of processes with a model: present, or not asked for where it cannot be."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from backend.service import allocator
from backend.settings import PROJECT

BUILT = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def has_it(environment: dict[str, str]) -> bool:
    code = "import ctypes; print(hasattr(ctypes.CDLL(None), '__TBB_malloc_proxy'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""  # the linker says there what it could not find
    return done.stdout.strip() == "True"


def test_a_process_that_is_started_with_it_has_it() -> None:
    assert has_it(allocator.environment()) == BUILT
    assert not has_it({})


@pytest.mark.parametrize("folder", ["with space", "with:colon"])
def test_a_path_that_the_linker_would_split_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    class File(str):
        name = property(lambda self: Path(self).name)

        def locate(self) -> Path:
            return tmp_path / folder / self

    monkeypatch.setattr(allocator, "files", lambda name: [File(n) for n in allocator.LIBRARIES])
    assert allocator.environment() == {}


def test_without_the_library_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise allocator.PackageNotFoundError(name)

    monkeypatch.setattr(allocator, "files", missing)
    assert allocator.environment() == {}
