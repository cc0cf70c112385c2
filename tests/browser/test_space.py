"""On a Hugging Face Space: open to all, without paths, uploads or copies."""

from pathlib import Path

import pytest
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Visits, idle, opened_app, ready

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_space_opens_as_a_demo(browser: Browser, tmp_path: Path) -> None:
    with opened_app(tmp_path / "workspace", SPACE_ID="someone/adapter-workbench") as app:
        page = Visits(browser, app.url, []).open()
        ready(page)
        expect(page.locator("#train-upload")).to_be_disabled()
        client = app.client()
        idle(client)
        with pytest.raises(AppError, match="bundled models and data only"):
            client.predict({"source": "someone/model"}, api_name="/load_model")
        with pytest.raises(AppError, match="bundled models and data only"):
            client.predict({"name": "a", "data": "/etc/passwd"}, api_name="/train")
        page.context.close()
        client.close()
