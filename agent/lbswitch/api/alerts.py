"""`/v1/alerts`: who is alerted of what, what became of it, and a test."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from lbswitch.agent import Agent
from lbswitch.api import problems
from lbswitch.core.alerts import AlertDesk
from lbswitch.errors import InvalidRequest

_INVALID: dict[int | str, dict[str, Any]] = {
    422: {"description": "Invalid request", "content": {problems.MEDIA_TYPE: {}}}
}


class TestBody(BaseModel):
    """Which target; without one all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: str | None = Field(None, min_length=1, max_length=64)


def add_alerts(app: FastAPI, agent: Agent) -> None:
    """Add the routes."""

    @app.get("/v1/alerts", responses=_INVALID)
    async def alerts(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> dict[str, Any]:
        """Targets, and the newest alerts with what became of them."""
        return await asyncio.to_thread(_desk(agent).document, limit)

    @app.post("/v1/alerts/test", responses=_INVALID)
    async def test(body: Annotated[TestBody, Body(default_factory=TestBody)]) -> dict[str, Any]:
        """Send a test alert through the outbox, and wait for what becomes of it."""
        results = await asyncio.to_thread(_desk(agent).test, body.target)
        return {"delivered": all(each["delivered"] for each in results), "results": results}


def _desk(agent: Agent) -> AlertDesk:
    """Raises: InvalidRequest."""
    if agent.alerts is None:
        raise InvalidRequest("this agent sends no alerts")
    return agent.alerts
