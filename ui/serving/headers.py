"""The security headers of every response, including errors and static files."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = {
    "default-src": "'self'",
    "base-uri": "'self'",
    "object-src": "'none'",
    "form-action": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data: blob:",
    # Gradio 6.31 has inline scripts, and compiles the templates of HTML components to functions.
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "frame-ancestors": "'self'",
}
HUB_FRAMES = "'self' https://huggingface.co https://*.hf.space"


class SecurityHeaders:
    """Adds the headers to every response."""

    def __init__(self, app: ASGIApp, *, on_space: bool) -> None:
        self.app = app
        policy = {**POLICY, "frame-ancestors": HUB_FRAMES} if on_space else POLICY
        self.headers = {
            "content-security-policy": "; ".join(f"{k} {v}" for k, v in policy.items()),
            "x-content-type-options": "nosniff",
            # With no-referrer a browser would not send the origin of the sign-in form.
            "referrer-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)
