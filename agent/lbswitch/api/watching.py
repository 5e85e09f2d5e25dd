"""Watches on what was switched to: how they are going, how to begin one, and the record of a rollback."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from lbswitch.agent import Agent
from lbswitch.api import documents
from lbswitch.api.schemas import MonitorBody
from lbswitch.core.bake import OnBreach
from lbswitch.errors import UnknownOperation, UnknownService


def add_watching(app: FastAPI, agent: Agent, problems: dict[int | str, dict[str, Any]]) -> None:
    """Serve these routes; `problems` describe errors in the OpenAPI document."""

    @app.post("/v1/services/{name}/monitor", responses=problems)
    async def monitor(name: str, body: MonitorBody) -> dict[str, Any]:
        """Attach to the watch that a switch has begun, or begin one on what is live; returns it."""
        if name not in agent.config.services or name not in agent.serving.intent.services:
            known = ", ".join(sorted(agent.config.services))
            raise UnknownService(f"there is no service {name!r}; known: {known}")
        agent.bakes.watch(name, body.duration, OnBreach.ROLLBACK if body.auto_rollback else None)
        return documents.bake(agent, name) or {}

    @app.get("/v1/operations/{operation_id}/incident", responses=problems)
    async def incident(operation_id: int) -> dict[str, Any]:
        """The record of a rollback that the agent decided on: timeline, criteria, and what the bad color answered."""
        found = await agent.in_thread(agent.store.incident, operation_id)
        if found is None:
            raise UnknownOperation(f"operation {operation_id} has no record of an incident")
        return dict(found)
