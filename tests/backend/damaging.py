"""Ways in which a file of the workspace can be damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest

Way = Callable[[Path], None]


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zeros(file: Path) -> None:
    file.write_bytes(b"\0" * 512)


def cut_off(file: Path) -> None:
    content = file.read_bytes() if file.is_file() else b'{"state": "running", "step": 12'
    file.write_bytes(content[: len(content) // 2])


def another_shape(file: Path) -> None:
    file.write_text('"valid JSON of a wrong shape"', encoding="utf-8")


def not_utf8(file: Path) -> None:
    file.write_bytes(b'{"\xff\xfe": 1}')


def a_folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()
    (file / "inside").write_text("mine", encoding="utf-8")


def a_dangling_link(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(file.with_name("gone"))


WAYS: dict[str, Way] = {
    way.__name__: way for way in (empty, zeros, cut_off, another_shape, not_utf8, a_folder)
}


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let reading files of this name fail, as without permission (root is never refused)."""
    original = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == name:
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", read)


def content_of(file: Path) -> object:
    return file.read_bytes() if file.is_file() else sorted(each.name for each in file.iterdir())
