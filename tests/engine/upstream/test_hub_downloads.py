"""What huggingface_hub does with a download that is interrupted."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import file_download

from tests.engine.upstream.still import assert_still


def test_an_interrupted_download_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(url: str, file: Any, **options: Any) -> None:
        file.write(b"the beginning")
        raise ConnectionError

    monkeypatch.setattr(file_download, "http_get", break_off)

    with pytest.raises(ConnectionError):
        file_download._download_to_tmp_and_move(
            incomplete_path=tmp_path / "blob.incomplete", destination_path=tmp_path / "blob",
            url_to_download="http://127.0.0.1", headers={}, expected_size=100, filename="x",
            force_download=False, etag="x", xet_file_data=None,
        )  # fmt: skip

    assert_still(
        not list(tmp_path.iterdir()),
        "the beginning of a file, which it removes",
        "resumed_download.py (fetch)",
        huggingface_hub,
    )
