"""A reload as the master's socket shows it: a new worker takes over, or the old one goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection

from lbswitch.balancers.haproxy_runtime import Processes, Runtime, Unanswered
from lbswitch.errors import ReloadFailed

_RELOAD_S = 30.0
_PAUSE_S = 0.01


class Handover:
    """One reload: made before it is asked for, it sees afterwards how it went."""

    def __init__(self, runtime: Runtime) -> None:
        """Remember the workers that serve now. Raises: ReloadFailed."""
        self._runtime = runtime
        try:
            self.before = runtime.processes()
        except Unanswered as error:
            raise ReloadFailed(f"HAProxy was not reloaded and serves as before: {error}") from error

    def wait(self, why: Callable[[], str]) -> None:
        """Return when a new worker answers; `why` finds words for a refusal. Raises: ReloadFailed."""
        if not until(self._is_over, _RELOAD_S):
            raise ReloadFailed(f"HAProxy did not finish its reload within {_RELOAD_S:g} s; the old worker still serves")
        try:
            now = self._runtime.processes()
        except Unanswered as error:
            raise ReloadFailed(f"HAProxy was told to reload, and does not say whether it did: {error}") from error
        if now.failed or set(now.current) <= set(self.before.workers):
            words = why()
            raise ReloadFailed(
                "HAProxy refused the new configuration; the old worker still serves" + (f": {words}" if words else "")
            )

    def _is_over(self) -> bool:
        """Whether the reload ended, well or not. Raises: Unanswered while the master runs itself anew."""
        now: Processes = self._runtime.processes()
        is_new = now.reloads != self.before.reloads
        return is_new and (now.failed > 0 or has_new_worker(self._runtime, self.before.workers))


def has_new_worker(runtime: Runtime, known: Collection[int]) -> bool:
    """Whether a worker that is not known yet answers. Raises: Unanswered."""
    new = [pid for pid in runtime.processes().current if pid not in known]
    return bool(new) and bool(runtime.ask(new[0], "show version").strip())


def until(condition: Callable[[], bool], patience_s: float) -> bool:
    """Whether it came true in time; a master that does not answer counts as not yet."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(Unanswered):
            if condition():
                return True
        time.sleep(_PAUSE_S)
    return False
