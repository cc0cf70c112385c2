"""How the page is served: secure Gradio settings, behind the guard."""

import gc
import os
from pathlib import Path

import gradio as gr

from backend import Service
from ui.app.layout import build
from ui.app.polling import HEAD as FIRST_LOOK
from ui.app.theme import STYLE, theme
from ui.charts.loss_chart import plotly_script
from ui.components.safe_view import HEAD
from ui.serving.body_limits import UPLOADS_AT_ONCE, TemporaryFolder
from ui.serving.guard import guarding
from ui.serving.login import Sessions
from ui.serving.options import Options

MENUS = f"<script>{Path(__file__).with_name('menus.js').read_text(encoding='utf-8')}</script>"

TEMPORARY = "temporary"
# Gradio 6.31 polls its empty queue a thousand times a second, which takes 6 % of a core.
QUEUE_NAP_SECONDS = 0.02


def serve(service: Service, options: Options, *, open_browser: bool = False) -> gr.Blocks:
    """Open the page and return at once."""
    workspace = service.settings.workspace.resolve()
    temporary = _temporary_folder(service)
    os.environ["GRADIO_TEMP_DIR"] = str(temporary.folder)
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn trusts no proxy: the guard decides
    gr.set_static_paths([plotly_script()])
    demo = build(service)
    sessions = Sessions()
    demo.launch(
        # without brackets Gradio 6.31 builds an address that it cannot open
        server_name=f"[{options.host}]" if ":" in options.host else options.host,
        server_port=options.port,
        root_path=options.root_path,
        auth_dependency=sessions.name_of if options.credentials else None,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css=STYLE,
        head=FIRST_LOOK + HEAD + MENUS,
        footer_links=["settings"],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        strict_cors=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        num_workers=0,
        max_file_size=service.settings.max_upload_bytes,
        allowed_paths=[str(service.settings.exports_dir.resolve())],  # zips made for download
        blocked_paths=_private(workspace),
        app_kwargs={"lifespan": guarding(options, temporary, sessions)},
    )
    leave_out_api(demo)
    demo._queue.sleep_when_free = QUEUE_NAP_SECONDS
    gc.freeze()  # the built page stays: scanning it for garbage would delay every answer
    return demo


def leave_out_api(demo: gr.Blocks) -> None:
    """Leave the HTTP API out of what the page gets; `/config`, which programs read, keeps it.

    Gradio 6.31 compares each component of a page with each of its events when it opens.
    """
    config = demo.config
    api = {each["id"] for each in config["components"] if each["type"] == "api"}
    public = {d["id"] for d in config["dependencies"] if d["api_visibility"] == "public"}
    page = config["page"][""]
    page["components"] = [each for each in page["components"] if each not in api]
    page["dependencies"] = [each for each in page["dependencies"] if each not in public]
    page["layout"]["children"] = [
        child for child in page["layout"]["children"] if child["id"] not in api
    ]


def _private(workspace: Path) -> list[str]:
    """Return what is never served: all of the workspace but temporary files and exports."""
    names = ("adapters", "runs", "uploads", "session.json", "queue.json", "worker.log", "side.log")
    return [str(workspace / name) for name in names]


def _temporary_folder(service: Service) -> TemporaryFolder:
    """Return the folder for Gradio's files, cleared of old files."""
    settings = service.settings
    folder = settings.workspace.resolve() / TEMPORARY
    temporary = TemporaryFolder(folder, UPLOADS_AT_ONCE * settings.max_upload_bytes)
    temporary.clean()
    return temporary
