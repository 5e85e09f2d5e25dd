"""What all kinds of checks share: how they fail, and a timeout that is fair to the server."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

from lbswitch.core.durations import format_duration
from lbswitch.core.health import CheckResult

_TICKS = 4
_MOST_LATE_TICKS = 8
_SHORTEST_STALL_S = 0.02
_ATTEMPTS = 3
OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The agent or its machine ran out of something: no fault of the server."""
_SHOWN = 80


class CheckFailed(Exception):
    """The server did not pass; the message is the detail that people read."""


class Inconclusive(Exception):
    """This check says nothing about the server: the agent itself could not do it."""


class Prober(Protocol):
    """Checks one server, again and again, never two checks at a time."""

    async def check(self) -> CheckResult:
        """Check once; never takes much longer than the timeout. Raises: Inconclusive."""

    def close(self) -> None:
        """Let go of what is kept between checks."""


class Patience:
    """A timeout like `asyncio.timeout`, but time in which the event loop stood still does not count.

    The time is counted in quarters. One that comes late by its own length or more (and 20 ms at least) is waited for
    again, 8 times at most: the server may have answered long ago, and nobody looked. Raises: TimeoutError on exit.
    """

    def __init__(self, timeout_s: float) -> None:
        """Prepare; the time runs from entering."""
        self._tick_s = timeout_s / _TICKS
        self._left = _TICKS
        self._forgiven = 0
        self._expired = False
        self.stalled_s = 0.0

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a check runs in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(self._tick_s, self._tick)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self.stalled_s += max(0.0, self._loop.time() - self._timer.when())
            self._timer.cancel()
            self._timer = None
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _tick(self) -> None:
        if self._timer is None:
            return
        due, now = self._timer.when(), self._loop.time()
        if now - due >= max(self._tick_s, _SHORTEST_STALL_S) and self._forgiven < _MOST_LATE_TICKS:
            self._forgiven += 1
            self.stalled_s += now - due
            due = now
        else:
            self._left -= 1
        if self._left:
            self._timer = self._loop.call_at(due + self._tick_s, self._tick)
            return
        self._timer = None
        self._expired = True
        self._task.cancel()


async def timed(attempt: Callable[[], Awaitable[str]], timeout_s: float) -> CheckResult:
    """Run one attempt; it returns what it saw or raises CheckFailed.

    A failure during which the event loop stood still for more than half the timeout is not the server's: the attempt
    is repeated at once. Raises: Inconclusive when that does not help, or when this machine ran out of something.
    """
    loop = asyncio.get_running_loop()
    for _ in range(_ATTEMPTS):
        started = loop.time()
        patience = Patience(timeout_s)
        passed, detail = await _attempt(attempt, patience, timeout_s)
        if passed or patience.stalled_s <= timeout_s / 2:
            return CheckResult(passed, detail, (loop.time() - started) * 1000)
    raise Inconclusive(f"the agent's event loop stood still in {_ATTEMPTS} checks in a row")


async def _attempt(attempt: Callable[[], Awaitable[str]], patience: Patience, timeout_s: float) -> tuple[bool, str]:
    try:
        with patience:
            return True, await attempt()
    except CheckFailed as failure:
        return False, str(failure)
    except TimeoutError:
        return False, f"timeout after {format_duration(timeout_s)}"
    except OSError as error:
        if error.errno in OWN_TROUBLE:
            raise Inconclusive(f"the agent can't check: {error.strerror}") from error
        return False, error.strerror or str(error)


def shown(text: str | bytes) -> str:
    """The first 80 characters, with everything escaped that a terminal or a log would act on."""
    if isinstance(text, bytes):
        text = text[: 4 * _SHOWN].decode(errors="replace")
    text = text.strip()
    visible = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_SHOWN]
    )
    return visible[:_SHOWN] + "..." * (len(text) > _SHOWN or len(visible) > _SHOWN)
