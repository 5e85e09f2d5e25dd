"""The one request that must not wait: a switch, decoded without FastAPI's general way, which takes half a millisecond.

Whatever is not exactly right is handed to FastAPI's route of the same path, which says what is wrong with it. That
route is also what the OpenAPI document describes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from lbswitch.api.schemas import CanaryBody

Act = Callable[[str, CanaryBody, Request, str | None], Awaitable[Response]]
_LONGEST_KEY = 200


def add_switch(app: FastAPI, path: str, act: Act) -> None:
    """Answer POST requests to `path` (which has a `name`) by `act`, before FastAPI sees them."""

    async def endpoint(request: Request) -> Response:
        content = await request.body()
        key = request.headers.get("idempotency-key")
        if request.headers.get("content-type") == "application/json" and (key is None or 0 < len(key) <= _LONGEST_KEY):
            try:
                body = CanaryBody.model_validate_json(content)
            except ValidationError:
                return _Slowly(app, content)
            return await act(request.path_params["name"], body, request, key)
        return _Slowly(app, content)

    app.router.routes.insert(0, Route(path, endpoint, methods=["POST"], include_in_schema=False))


class _Slowly(Response):
    """The answer of the next route that matches."""

    def __init__(self, app: FastAPI, content: bytes) -> None:
        super().__init__()
        self._routes = app.router.routes[1:]
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def again() -> Message:
            return {"type": "http.request", "body": self._content, "more_body": False}

        del receive
        for route in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                await route.handle(scope, again, send)
                return
