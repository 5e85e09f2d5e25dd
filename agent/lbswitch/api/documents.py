"""The Status document of the contract (DESIGN 7.3), built from what the agent knows; asks nobody."""

from __future__ import annotations

import os
from typing import Any

from lbswitch import __version__
from lbswitch.agent import Agent
from lbswitch.core.config_text import notes
from lbswitch.core.model import Color


def status(agent: Agent) -> dict[str, Any]:
    """All services, and the agent itself."""
    return {
        "services": {name: service(agent, name) for name in agent.config.services},
        "agent": about(agent),
    }


def about(agent: Agent) -> dict[str, Any]:
    """The agent: version, configuration, balancer."""
    balancer = agent.serving.balancer
    error, files_error = agent.upkeep.config_error, agent.serving.files_problem
    valid = error is None and files_error is None
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started_at": agent.started_at,
        "config": {"path": str(agent.config_path), "valid": valid, "error": error, "files_error": files_error},
        "balancer": {
            "kind": str(agent.config.balancer.kind),
            "version": balancer.version(),
            "running": balancer.is_running(),
            "revision": balancer.installed(),
        },
        "notes": [*notes(agent.config), *balancer.warnings()],
    }


def service(agent: Agent, name: str) -> dict[str, Any]:
    """One service's object."""
    intent = agent.serving.intent.services[name]
    sight = agent.serving.sights.get(name)
    verified = sight is not None and sight.verified and not agent.upkeep.balancer_is_down
    holder = agent.switcher.holder(name)
    settings = agent.config.services[name]
    return {
        "live": str(intent.route.live),
        "weight": intent.route.weight,
        "weights": {str(color): intent.route.share(color) for color in Color},
        "generation": intent.generation,
        "verified": verified,
        "frozen": agent.store.frozen().get(name),
        "previous": agent.switcher.previous(name),
        "problem": agent.automatic.problems.get(name) or (sight.detail if sight and not verified else None),
        "bake": None,
        "operation": None if holder is None else {"kind": str(holder.kind), "actor": holder.actor},
        "bind": settings.bind,
        "mode": str(settings.mode),
        "switching": str(agent.config.switching(name)),
        **{str(color): pool(agent, name, color) for color in Color},
        "evidence": {str(color): evidence(agent, name, color) for color in Color},
    }


def pool(agent: Agent, name: str, color: Color) -> dict[str, Any]:
    """A color: how many servers are healthy, and each of them."""
    health = agent.monitor.pool(name, color)
    return {
        "state": health.state.value,
        "healthy": health.healthy,
        "total": health.total,
        "servers": [
            {
                "address": server.address,
                "healthy": server.state.value == "healthy",
                "state": server.state.value,
                "last_error": server.last_error,
                "checks": server.checks,
                "failed": server.failed,
                "latency_ms": None if server.latency_ms is None else round(server.latency_ms, 3),
            }
            for server in health.servers
        ],
    }


def evidence(agent: Agent, name: str, color: Color) -> dict[str, Any]:
    """What is known about how a color behaves: in this version the health checks since the agent started."""
    servers = agent.monitor.pool(name, color).servers
    return {
        "source": "health checks",
        "checks": sum(server.checks for server in servers),
        "failed": sum(server.failed for server in servers),
    }
