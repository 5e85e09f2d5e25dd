"""The Status document of the contract (DESIGN 7.3), built from what the agent knows.

Only `detailed` asks others: disk, listeners and workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lbswitch import __version__
from lbswitch.agent import Agent
from lbswitch.core.config_text import notes
from lbswitch.core.model import Color, Intent, PoolKey, Route, ServiceIntent
from lbswitch.errors import LbswitchError, UnknownService
from lbswitch.serving import Serving


def status(agent: Agent, itself: Mapping[str, Any]) -> dict[str, Any]:
    """All services, and the agent itself, which `about` describes."""
    return {
        "services": dict(_services(agent)),
        "agent": itself,
    }


def _services(agent: Agent) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that all parts know: one that is just being added or removed by another thread is left out."""
    for name in agent.config.services:
        with contextlib.suppress(UnknownService):
            yield name, service(agent, name)


def detailed(agent: Agent, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What is intended, on disk and running for each of these services, looked at now. Blocks."""
    serving = agent.serving
    intent, balancer = serving.intent, serving.balancer
    workers = balancer.routes()
    try:
        committed = balancer.committed()
    except LbswitchError:
        committed = None
    on_disk = {} if committed is None else committed.services
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in names if name in intent.services):
        wanted = intent.services[name]
        found[name] = {
            "intended": _served(wanted, balancer.intended_revision()),
            "on_disk": _served(on_disk.get(name), balancer.installed()),
            "running": {**_running(serving, name, wanted), "workers": _workers(workers, name)},
        }
    return found


def _served(intent: ServiceIntent | None, revision: str | None) -> dict[str, Any]:
    """Where requests go, and by which rendered files; all but those are None where nobody can say."""
    if intent is None:
        return {**dict.fromkeys(("live", "weight", "weights", "generation")), "revision": revision}
    return {
        "live": str(intent.route.live),
        "weight": intent.route.weight,
        "weights": {str(color): intent.route.share(color) for color in Color},
        "generation": intent.generation,
        "revision": revision,
    }


def _running(serving: Serving, name: str, wanted: ServiceIntent) -> dict[str, Any]:
    """What the listener answers; `live` is None and `error` says why when it does not."""
    try:
        seen = serving.ask(name)
    except LbswitchError as error:
        return {**_served(None, None), "error": str(error)}
    route = Route(wanted.route.live).with_share(Color.GREEN, seen.share_green)
    return {**_served(ServiceIntent(route, seen.generation), seen.revision), "error": None}


def _workers(workers: Mapping[int, Intent], name: str) -> list[dict[str, Any]]:
    """What each worker would serve, where workers have a copy of their own."""
    return [{"pid": pid, **_served(routes.services.get(name), None)} for pid, routes in workers.items()]


def about(agent: Agent) -> dict[str, Any]:
    """The agent: version, configuration, balancer, which is asked: blocks."""
    balancer = agent.serving.balancer
    running = balancer.is_running()
    error, files_error = agent.edits.config_error, agent.serving.files_problem
    valid = error is None and files_error is None
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started_at": agent.started_at,
        "config": {"path": str(agent.config_path), "valid": valid, "error": error, "files_error": files_error},
        "balancer": {
            "kind": str(agent.config.balancer.kind),
            "version": balancer.version(),
            "running": running,
            "why_down": None if running else balancer.why_not_started(),
            "revision": balancer.installed(),
            **_old_workers(agent),
        },
        "drift": [each.to_json() for each in agent.drift.by_service.get(None, ())],
        "notes": [
            *notes(agent.config),
            *balancer.warnings(),
            *agent.edits.notes,
            *_sources(agent),
            *_alert_notes(agent),
        ],
    }


def _alert_notes(agent: Agent) -> list[str]:
    return [] if agent.alerts is None else agent.alerts.notes()


def _sources(agent: Agent) -> list[str]:
    """Metrics that can't be read now, as sentences."""
    problems = {} if agent.sources is None else agent.sources.problems
    return [f"source {name} gives no value: {why}" for name, why in sorted(problems.items())]


def _old_workers(agent: Agent) -> dict[str, Any]:
    """Workers from before reloads, when somebody looked last, and why connections can't be closed if they are to be."""
    found = agent.old_workers.found
    return {
        "old_workers": len(found),
        "lingering": [{"pid": one.pid, "age_s": round(one.age_s, 1), "connections": one.connections} for one in found],
        "why_not_closed": agent.old_workers.why_not_closed,
    }


def service(agent: Agent, name: str) -> dict[str, Any]:
    """One service's object. Raises: UnknownService; also for a moment, while it is being added or removed."""
    try:
        return _service(agent, name)
    except (KeyError, UnknownService) as error:
        if agent.edits.is_applying or name not in agent.config.services:
            raise UnknownService(f"the service {name} is just being added or removed; ask again") from error
        raise


def _service(agent: Agent, name: str) -> dict[str, Any]:
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
        "bake": bake(agent, name),
        "shield": None if (shield := agent.bakes.shielded(name)) is None else str(shield),
        "quarantined": quarantined(agent, name),
        "drain": None if (drain := agent.drain.by_service.get(name)) is None else drain.to_json(),
        "drift": [each.to_json() for each in agent.drift.by_service.get(name, ())],
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
    """What is known about how a color behaves: the health checks since the agent started, and real traffic."""
    servers = agent.monitor.pool(name, color).servers
    return {
        "source": "health checks and traffic",
        "checks": sum(server.checks for server in servers),
        "failed": sum(server.failed for server in servers),
        "traffic": traffic(agent, name, color),
    }


def quarantined(agent: Agent, name: str) -> dict[str, str]:
    """Colors that were rolled back and get no traffic until they are released, with the reason."""
    return {str(pool.color): why for pool, why in agent.store.quarantined().items() if pool.service == name}


def bake(agent: Agent, name: str) -> dict[str, Any] | None:
    """The last watch on a service with what is seen now; None when there was none."""
    found = agent.bakes.shown(name)
    if found is None:
        return None
    sight = agent.bakes.sights.get(name)
    is_seen = sight is not None and sight.generation == found.generation
    return {
        **found.to_json(),
        "verdicts": [verdict.to_json() for verdict in sight.verdicts] if sight is not None and is_seen else [],
        "decision": sight.decision.to_json() if sight is not None and is_seen else None,
    }


def traffic(agent: Agent, name: str, color: Color) -> dict[str, Any]:
    """What real traffic experienced on a color in the last ten seconds; `problem` says why nothing is known."""
    window = agent.bakes.looking.lately(PoolKey(name, color), agent.bakes.now())
    reader = agent.bakes.reader
    return {**window.to_json(), "problem": None if reader is None else reader.problem}
