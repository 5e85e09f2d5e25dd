"""Bounds in time: nothing of a run that nobody watches may hang."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class TooLong(Exception):
    """What was allowed so many seconds took longer."""


@contextlib.contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Raises TooLong inside the block when its time is over. Main thread only; not to be nested."""

    def over(_: int, __: object) -> None:
        raise TooLong(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_cleanly_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: what was started is stopped first."""

    def interrupt(_: int, __: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
