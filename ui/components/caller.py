"""Who sends a request: on a Space the signed-in owner may do more than a visitor.

Gradio keeps the Hugging Face profile of a signed-in user in a signed session cookie. It is read
here for all handlers and endpoints, so that none needs a `gr.OAuthProfile` argument.
"""

import time
from collections.abc import Mapping
from typing import Any

from gradio.context import LocalContext

from backend import Caller, Settings


def caller(settings: Settings) -> Caller:
    """Return the caller of the current handler."""
    if not settings.owner:
        return "page"
    return "owner" if _signed_in_name() == settings.owner else "page"


def _signed_in_name() -> str:
    """Return the Hugging Face name behind the current request; empty if not signed in."""
    info = _session().get("oauth_info")
    if not isinstance(info, Mapping) or (info.get("expires_at") or time.time()) < time.time():
        return ""
    profile = info.get("userinfo")
    return str(profile.get("preferred_username", "")) if isinstance(profile, Mapping) else ""


def _session() -> Mapping[str, Any]:
    """Return the request's signed session; Gradio wraps Starlette's request in its own."""
    asked = LocalContext.request.get(None)
    scope = getattr(getattr(asked, "request", None), "scope", None)
    session = scope.get("session") if isinstance(scope, Mapping) else None
    return session if isinstance(session, Mapping) else {}
