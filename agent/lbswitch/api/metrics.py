"""Prometheus metrics, read from the agent when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbswitch.agent import Agent
from lbswitch.core.health import PoolHealth
from lbswitch.core.model import Color, OperationState
from lbswitch.errors import UnknownService
from lbswitch.events import Event

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Services(Collector):
    """Gauges of every service."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        agent = self._agent
        share = GaugeMetricFamily(
            "lbswitch_share_percent", "Intended share of the traffic", labels=["service", "color"]
        )
        healthy = GaugeMetricFamily("lbswitch_healthy_servers", "Healthy servers", labels=["service", "color"])
        total = GaugeMetricFamily("lbswitch_servers", "Configured servers", labels=["service", "color"])
        generation = GaugeMetricFamily("lbswitch_generation", "Generation that is served", labels=["service"])
        verified = GaugeMetricFamily("lbswitch_verified", "1 when the listener shows it", labels=["service"])
        frozen = GaugeMetricFamily("lbswitch_frozen", "1 while frozen", labels=["service"])
        drift = GaugeMetricFamily("lbswitch_drift", "Differences from what is intended", labels=["where"])
        for where in ("disk", "running"):
            drift.add_metric([where], sum(each.where == where for each in agent.drift.found))
        latched = agent.store.frozen()
        for name, intent in agent.serving.intent.services.items():
            pools = _pools(agent, name)
            for color, pool in pools.items():
                share.add_metric([name, color], intent.route.share(color))
                healthy.add_metric([name, color], pool.healthy)
                total.add_metric([name, color], pool.total)
            sight = agent.serving.sights.get(name)
            generation.add_metric([name], intent.generation)
            verified.add_metric([name], float(sight is not None and sight.verified))
            frozen.add_metric([name], float(name in latched))
        yield from (share, healthy, total, generation, verified, frozen, drift)


class _Drains(Collector):
    """What is left on colors without traffic, and in workers from before reloads."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        drain, labels = self._agent.drain, ["service", "color"]
        left = GaugeMetricFamily(
            "lbswitch_draining_connections", "Connections to a color that lost its traffic; absent: unknown",
            labels=labels,
        )  # fmt: skip
        for service, following in {**drain.over, **drain.by_service}.items():
            if following.drain.open is not None:
                left.add_metric([service, following.pool.color], following.drain.open)
        closed = CounterMetricFamily(
            "lbswitch_closed_connections", "Connections that were ended because their color lost its traffic",
            labels=labels,
        )  # fmt: skip
        for pool, count in list(drain.closed.items()):
            closed.add_metric([pool.service, pool.color], count)
        workers = GaugeMetricFamily(
            "lbswitch_old_workers", "Workers of the balancer from before reloads", len(self._agent.old_workers.found)
        )
        yield from (left, closed, workers)


def _pools(agent: Agent, service: str) -> dict[Color, PoolHealth]:
    """None of a service that is just being added: it is not checked yet."""
    try:
        return {color: agent.monitor.pool(service, color) for color in Color}
    except UnknownService:
        return {}


class Metrics:
    """The registry of one agent."""

    def __init__(self, agent: Agent) -> None:
        """Count the agent's operations from now on."""
        self._registry = CollectorRegistry()
        self._registry.register(_Services(agent))
        self._registry.register(_Drains(agent))
        labels = ["service", "kind", "state"]
        self._operations = Counter("lbswitch_operations", "Operations that ended", labels, registry=self._registry)
        self._seconds = Histogram(
            "lbswitch_operation_seconds", "Duration of completed operations", ["kind"], buckets=_BUCKETS_S,
            registry=self._registry,
        )  # fmt: skip
        self._repairs = Counter("lbswitch_repairs", "Times that drift was put right", registry=self._registry)
        agent.events.listen(self._count)

    def _count(self, event: Event) -> None:
        if event.type == "repaired":
            self._repairs.inc()
        operation = event.data.get("operation")
        if operation is None:
            return
        self._operations.labels(operation["service"], operation["kind"], operation["state"]).inc()
        if operation["state"] == OperationState.DONE:
            self._seconds.labels(operation["kind"]).observe(operation["timings_ms"]["total"] / 1000)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
