"""Keep web pages out: a browser on this host must not become somebody else's remote control.

The TCP listener has no tokens, so a page could send it requests (with its `Origin`), or read it under a name that it
makes resolve to 127.0.0.1 (with that name as `Host`). Programs send neither.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lbswitch.api import problems
from lbswitch.errors import NotAllowed

_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class NoBrowsers:
    """ASGI middleware; requests over the unix socket (client port 0) pass."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or hand on."""
        reason = _reason_to_refuse(scope) if scope["type"] == "http" else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await problems.respond(problems.problem(NotAllowed(reason)))(scope, receive, send)


def _reason_to_refuse(scope: Scope) -> str | None:
    client = scope.get("client")
    if client is None or client[1] == 0:
        return None
    headers = Headers(scope=scope)
    if "origin" in headers:
        return "requests of web pages (with an Origin header) are not answered"
    host = headers.get("host", "").lower()
    name = host[: host.index("]") + 1] if "]" in host else host.partition(":")[0]
    if name not in _LOCAL_NAMES:
        return f"Host is {name!r}; this address is asked as localhost, 127.0.0.1 or [::1] only"
    return None
