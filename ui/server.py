"""How the page is served: who may reach it, and the Gradio settings that keep it closed."""

import gc
import os
import socket
from pathlib import Path

import gradio as gr
import psutil
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from backend import Service
from ui.layout import build
from ui.loss_chart import plotly_script
from ui.safe_view import HEAD
from ui.theme import STYLE, theme

MENUS = f"<script>{Path(__file__).with_name('menus.js').read_text(encoding='utf-8')}</script>"

TEMPORARY = "temporary"
# Gradio 6.31 looks into its empty queue a thousand times a second, which alone takes 6 % of a core.
QUEUE_NAP_SECONDS = 0.02
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address."""
    return host in LOOPBACK


def open_problem(host: str, password: str, *, on_space: bool) -> str:
    """Say why the app may not be opened on this address, or nothing if it may."""
    if is_loopback(host) or on_space or password:
        return ""
    return (
        f"Not opened on {host}: anyone who can reach it could train and write files here. "
        "Add --password name:password, or set ADAPTER_WORKBENCH_PASSWORD, to open it wider."
    )


def port_problem(host: str, port: int) -> str:
    """Say why a port cannot be used, or nothing if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return (
                f"Port {port} on {host} cannot be used: {error.strerror or error}. "
                f"Is the app open already? If not, try --port {port + 1}."
            )
    return ""


def allowed_hosts(host: str, *, on_space: bool) -> list[str]:
    """Return the names under which a browser may ask, so that no other name reaches us."""
    if on_space:
        return ["*"]
    names = {*LOOPBACK, host}
    if not is_loopback(host):
        names |= {socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    return sorted(names)


def serve(
    service: Service, *, host: str, port: int, password: str, open_browser: bool, on_space: bool
) -> gr.Blocks:
    """Open the page and return at once."""
    workspace = service.settings.workspace.resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(workspace / TEMPORARY)
    gr.set_static_paths([plotly_script()])
    demo = build(service)
    hosts = allowed_hosts(host, on_space=on_space)
    demo.launch(
        server_name=host,
        server_port=port,
        auth=_credentials(password),
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        theme=theme(),
        css=STYLE,
        head=HEAD + MENUS,
        footer_links=["settings"],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        strict_cors=True,
        ssr_mode=False,
        max_file_size=service.settings.max_upload_bytes,
        allowed_paths=[str(service.settings.exports_dir.resolve())],  # zips made for download
        blocked_paths=_private(workspace),
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
    )
    demo._queue.sleep_when_free = QUEUE_NAP_SECONDS
    gc.freeze()  # the page as built stays: looking through it for garbage delays every answer
    return demo


def _private(workspace: Path) -> list[str]:
    """Return what is never served: everything but what Gradio keeps and what was packed."""
    names = ("adapters", "runs", "uploads", "session.json", "queue.json", "worker.log", "side.log")
    return [str(workspace / name) for name in names]


def _credentials(password: str) -> tuple[str, str] | None:
    name, _, secret = password.partition(":")
    return (name, secret) if password else None


def _own_addresses() -> set[str]:
    return {
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }


def default_roots(host: str) -> tuple[Path, ...]:
    """Return the folders that the page may use when nobody names any: the person's own, locally."""
    return (Path.home(),) if is_loopback(host) else ()
