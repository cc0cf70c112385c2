"""The middleware between the network and Gradio, and its order."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.serving.body_limits import BodyLimits, TemporaryFolder
from ui.serving.forwarded import Forwarded
from ui.serving.headers import SecurityHeaders
from ui.serving.login import Login, Sessions
from ui.serving.options import Options
from ui.serving.same_origin import SameOrigin, allowed_hosts


def guarding(
    options: Options, temporary: TemporaryFolder, sessions: Sessions
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan that puts the guard in front of an app before its port opens.

    A middleware passed to Gradio 6.31 would run after Gradio's CORS, which may answer first.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        assert app.middleware_stack is not None
        app.middleware_stack = guard(app.middleware_stack, options, temporary, sessions)
        yield

    return lifespan


def guard(
    app: ASGIApp, options: Options, temporary: TemporaryFolder, sessions: Sessions
) -> ASGIApp:
    """Return the app wrapped in all checks of a request; the last one is the outermost."""
    guarded = app
    if options.credentials:
        guarded = Login(
            guarded,
            options.credentials,
            sessions,
            path=options.path,
            in_frame=options.on_space,
        )
    guarded = BodyLimits(guarded, temporary)
    guarded = SameOrigin(guarded, allowed_hosts(options), options.root_path)
    guarded = Forwarded(guarded, options.trusted_networks, options.path)
    guarded = SecurityHeaders(guarded, on_space=options.on_space)
    return HttpOnly(guarded, app)


class HttpOnly:
    """Guards HTTP requests, refuses web sockets (unused by Gradio 6.31), and passes the rest."""

    def __init__(self, guarded: ASGIApp, app: ASGIApp) -> None:
        self.guarded = guarded
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.guarded(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)
