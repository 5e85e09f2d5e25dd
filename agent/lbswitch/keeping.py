"""The work on snapshots that no operation should wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from lbswitch.events import Events
from lbswitch.snapshots import Snapshots

_EVERY_S = 5.0
_PRUNE_EVERY_S = 60.0


async def keep_snapshots(
    snapshots: Snapshots, events: Events, in_thread: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    """Write beforehand what the next snapshot needs, and forget old ones, until cancelled."""
    prune_at = time.monotonic()
    while True:
        await events.guard("preparing a snapshot", in_thread(snapshots.warm))
        if time.monotonic() >= prune_at:
            prune_at = time.monotonic() + _PRUNE_EVERY_S
            await events.guard("removing old snapshots", in_thread(snapshots.prune, time.time()))
        await asyncio.sleep(_EVERY_S)
