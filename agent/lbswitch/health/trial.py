"""Check servers that nobody checks yet, until it is known how they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from lbswitch.core.config import HealthConfig, ServiceConfig
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color
from lbswitch.health.monitor import HealthMonitor

_SPARE_S = 1.0
_MOST_S = 60.0


def try_out(services: Mapping[str, ServiceConfig]) -> dict[tuple[str, Color], PoolFacts]:
    """Each color of these services, checked as they say until there is a verdict. Blocks, as long as that takes.

    Call it from a thread without an event loop.
    """
    return asyncio.run(_try_out(services))


async def _try_out(services: Mapping[str, ServiceConfig]) -> dict[tuple[str, Color], PoolFacts]:
    monitor = HealthMonitor(services, lambda _key, _old, _new: None)
    await monitor.start()
    try:
        pools = [(name, color) for name in services for color in Color]
        looks = (monitor.wait_known(name, color, _patience_s(services[name].health)) for name, color in pools)
        found = await asyncio.gather(*looks)
    finally:
        await monitor.stop()
    return {
        pool: PoolFacts(PoolState(health.state.value), health.summary())
        for pool, health in zip(pools, found, strict=True)
    }


def _patience_s(health: HealthConfig) -> float:
    """The time within which a server that answers, or never does, must have a verdict."""
    times = max(health.rise, health.fall)
    return float(min(_MOST_S, times * (health.interval * (1 + health.jitter) + health.timeout) + _SPARE_S))
