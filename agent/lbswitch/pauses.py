"""How the agent's slower loops wait: for a bell that any thread may ring, and for operations to have passed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_AFTERWARDS_S = 0.1  # then inotify has told of what an operation did, too
_AT_MOST_S = 1.0
_BREATH_S = 0.02


class Bell:
    """Wakes the loop that waits for it. It is not heard before that loop has called `hush`."""

    def __init__(self) -> None:
        """Silent."""
        self._rung = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def ring(self) -> None:
        """From any thread; without effect while nobody listens."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rung.set)

    def hush(self) -> None:
        """What rings from now on ends the next `wait`. Called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._rung.clear()

    async def wait(self, at_most_s: float | None) -> None:
        """Until it rings, or that many seconds have passed; None waits for ever."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._rung.wait()
        except TimeoutError:
            return


async def let_operations_pass(
    is_at_work: Callable[[float], bool], afterwards_s: float = _AFTERWARDS_S, at_most_s: float = _AT_MOST_S
) -> None:
    """Wait until no operation runs or ended within `afterwards_s`: it needs the processor for itself.

    Operations that come one after the other can't put anybody off for longer than `at_most_s`.
    """
    deadline = time.monotonic() + at_most_s
    while is_at_work(afterwards_s) and time.monotonic() < deadline:
        await asyncio.sleep(_BREATH_S)
