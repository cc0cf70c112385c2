"""What is sent to the app is bounded: each request, and all uploads together."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend import Settings
from tests.ui.conftest import free_port
from tests.ui.fake_service import FakeService
from tests.ui.serving.conftest import opened
from ui.app.server import serve
from ui.serving.body_limits import MOST_REQUEST_BYTES, TemporaryFolder
from ui.serving.options import Credentials, Options

LARGEST = 100_000
MOST = 10 * LARGEST


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def url(workspace: Path) -> Iterator[str]:
    settings = Settings(workspace=workspace, max_upload_bytes=LARGEST)
    with FakeService(settings) as fake:
        page = serve(fake, Options(port=free_port()))
        yield page.local_url
        page.close(verbose=False)


def upload(url: str, *bodies: bytes) -> httpx.Response:
    files = [("files", (f"{n}.txt", body)) for n, body in enumerate(bodies)]
    return httpx.post(f"{url}gradio_api/upload", files=files)


def lying(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def filling(workspace: Path, age_s: float, size: int = MOST) -> Path:
    """Put a file there that is so old."""
    file = workspace / "temporary" / "abc" / "old.bin"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"0" * size)
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def test_uploads_together_are_bounded(url: str, workspace: Path) -> None:
    codes = [upload(url, os.urandom(LARGEST - 500)).status_code for _ in range(14)]
    assert codes[:9] == [200] * 9
    assert codes[-1] == 413
    assert lying(workspace / "temporary") <= MOST


def test_many_files_in_one_request_are_bounded_and_leave_nothing(url: str, workspace: Path) -> None:
    answer = upload(url, *(os.urandom(LARGEST - 1) for _ in range(20)))
    assert answer.status_code == 413
    assert answer.text.startswith("There is no room for this upload. All uploads")
    assert lying(workspace / "temporary") == 0


def test_an_upload_of_unknown_length_is_counted_as_it_arrives(url: str, workspace: Path) -> None:
    def body() -> Iterator[bytes]:
        for n in range(20):
            yield (
                (
                    f'--x\r\nContent-Disposition: form-data; name="files"; filename="{n}"\r\n\r\n'
                ).encode()
                + os.urandom(LARGEST - 1)
                + b"\r\n"
            )
        yield b"--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{url}gradio_api/upload", content=body(), headers=headers)

    assert answer.status_code in (400, 413)
    assert "no room for this upload" in answer.text
    assert lying(workspace / "temporary") == 0


def test_an_upload_that_is_cut_off_leaves_nothing(url: str, workspace: Path) -> None:
    port = httpx.URL(url).port
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 50000"
            "\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\n'.encode()
            + b"0" * 10_000
        )
        deadline = time.monotonic() + 20
        while lying(workspace / "temporary") == 0 and not list(
            (workspace / "temporary").glob("tmp*")
        ):
            assert time.monotonic() < deadline, "The upload does not begin."
            time.sleep(0.05)
    deadline = time.monotonic() + 20
    while list((workspace / "temporary").glob("tmp*")):
        assert time.monotonic() < deadline, "The part of an upload is left."
        time.sleep(0.05)


def test_room_is_made_of_old_files_alone(url: str, workspace: Path) -> None:
    filling(workspace, age_s=60)
    assert upload(url, b"x").status_code == 413
    filling(workspace, age_s=3700)
    assert upload(url, b"x").status_code == 200


def test_what_earlier_sessions_left_is_removed_at_the_start(workspace: Path) -> None:
    old = filling(workspace, age_s=25 * 3600, size=10)
    os.utime(old.parent, (time.time() - 25 * 3600,) * 2)
    young = workspace / "temporary" / "young.bin"
    young.write_bytes(b"1234")

    assert TemporaryFolder(workspace / "temporary", MOST).clean() == 4
    assert young.exists()
    assert not old.exists()


def test_a_link_in_the_folder_is_not_followed(workspace: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.bin").write_bytes(b"1")
    os.utime(outside / "mine.bin", (0, 0))
    (workspace / "temporary").mkdir(parents=True)
    (workspace / "temporary" / "link").symlink_to(outside)

    TemporaryFolder(workspace / "temporary", MOST).clean()

    assert (outside / "mine.bin").exists()


@pytest.mark.parametrize("announced", [True, False])
def test_no_other_request_may_be_large(url: str, announced: bool) -> None:
    body = b"[" + b" " * MOST_REQUEST_BYTES
    headers = {"content-type": "application/json"}
    for path in ("gradio_api/queue/join", "gradio_api/call/snapshot"):
        content = body if announced else iter([body])
        answer = httpx.post(f"{url}{path}", content=content, headers=headers)
        assert answer.status_code == 413


def test_a_sign_in_is_small(tmp_path: Path) -> None:
    with opened(tmp_path, credentials=Credentials("ann", "secret")) as url:
        for content in (b"a=" + b"0" * 20_000, iter([b"a=" + b"0" * 20_000])):
            form = {"content-type": "application/x-www-form-urlencoded"}
            answer = httpx.post(f"{url}login", content=content, headers=form)
            assert answer.status_code == 413
