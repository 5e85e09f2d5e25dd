"""Watches that disk and processes stay as lbswitch made them; says what does not, and puts it right if asked to.

`agent.on_drift: report` touches nothing. `repair` writes again what somebody changed, but does not fight: what is
changed again and again is left, and said.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from lbswitch.core.config import OnDrift
from lbswitch.errors import LbswitchError
from lbswitch.events import Events
from lbswitch.pauses import Bell, let_operations_pass
from lbswitch.ports import Difference
from lbswitch.serving import Serving

_LOOK_EVERY_S, _AT_MOST_S = 1.0, 3.0
_PAUSES = 300  # of the processor time that a look took: a third of a percent
_BREATH_S = 0.02  # between two looks, however often files are touched
_BREATHS = 5  # of the time that a look took, at least, however often somebody marks
_TOLD_APART = 5  # more differences than this are one event
_LOOKED_AT = 5  # services, at their listeners
_REPAIRS, _WITHIN_S = 5, 600.0
_RETRY_S, _MOST_RETRY_S = 5.0, 60.0
_HINTS = {
    OnDrift.REPORT: "; lbswitch apply puts it back, lbswitch status --detail shows it",
    OnDrift.REPAIR: "; it is put back now",
}

Key = tuple[str, str, str | None, str]


class DriftWatch:
    """`run` until cancelled; `mark` from any thread makes it look at once."""

    def __init__(
        self,
        serving: Serving,
        events: Events,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
        clock: Callable[[], float] = time.monotonic,
        is_at_work: Callable[[float], bool] = lambda _within_s: False,
    ) -> None:
        """`clock` gives seconds that only grow; `is_at_work` says whether an operation runs or ended just now."""
        self.found: tuple[Difference, ...] = ()
        self.by_service: Mapping[str | None, list[Difference]] = {}
        self._serving = serving
        self._events = events
        self._in_thread = in_thread
        self._clock = clock
        self._is_at_work = is_at_work
        self._bell = Bell()
        self._noticed: dict[Key, float] = {}
        self._repairs: dict[tuple[str, str, str | None], deque[float]] = {}
        self._cost_s = 0.0  # processor time of the last glance, in seconds
        self._retry_at = 0.0
        self._retry_pause_s = _RETRY_S

    def mark(self) -> None:
        """Something was changed: look soon. From any thread; without effect while `run` does not run."""
        self._bell.ring()

    async def run(self) -> None:
        """Every second, every three where a look costs much, and whenever somebody marks."""
        while True:
            self._bell.hush()
            await let_operations_pass(self._is_at_work)
            await self._events.guard("looking for drift", self._in_thread(self.look))
            await asyncio.sleep(max(_BREATH_S, _BREATHS * self._cost_s))
            await self._bell.wait(min(_AT_MOST_S, max(_LOOK_EVERY_S, _PAUSES * self._cost_s)))

    def look(self) -> None:
        """Look once, say what is new and what is over, and repair if that is asked for. Blocks.

        Looks twice: at first without keeping operations waiting; what is new then, once more between operations.
        """
        self._serving.balancer.remind()
        began = time.thread_time()
        found = self._serving.glance()
        self._cost_s = time.thread_time() - began
        if {_key(each) for each in found} != self._noticed.keys():
            found = self._serving.differences()
        self._tell(found)
        if found and self._serving.config.agent.on_drift is OnDrift.REPAIR:
            self._repair(found)

    # -- saying ------------------------------------------------------------------------------------------------

    def _tell(self, found: Sequence[Difference]) -> None:
        now = self._clock()
        new = {_key(each): each for each in found if _key(each) not in self._noticed}
        over = [each for each in self.found if _key(each) not in {_key(other) for other in found}]
        self._keep(found)
        self._noticed = {key: at for key, at in self._noticed.items() if key in {_key(each) for each in found}}
        self._noticed |= dict.fromkeys(new, now)
        self._emit("drift", list(new.values()), "error", _HINTS[self._serving.config.agent.on_drift])
        self._emit("drift-over", list({_key(each): each for each in over}.values()), "info", "")
        services = self._serving.intent.services
        named = {each.service: None for each in (*new.values(), *over) if each.service is not None}
        for service in [name for name in named if name in services][:_LOOKED_AT]:
            self._serving.look(service)  # so that "verified" in the status says the same

    def _keep(self, found: Sequence[Difference]) -> None:
        by_service: dict[str | None, list[Difference]] = {}
        for each in found:
            by_service.setdefault(each.service, []).append(each)
        self.found, self.by_service = tuple(found), by_service

    def _emit(self, type_: str, differences: Sequence[Difference], level: str, hint: str) -> None:
        what = "as intended again, it was: " if type_ == "drift-over" else ""
        if len(differences) <= _TOLD_APART:
            for each in differences:
                drift = [each.to_json()]
                self._events.emit(type_, f"{what}{each.what}{hint}", each.service, level, drift=drift)
            return
        shown = "; ".join(each.what for each in differences[:3])
        message = f"{what}{len(differences)} differences: {shown}; and {len(differences) - 3} more{hint}"
        self._events.emit(type_, message, None, level, drift=[each.to_json() for each in differences])

    # -- repairing ---------------------------------------------------------------------------------------------

    def _repair(self, found: Sequence[Difference]) -> None:
        if not self._may_repair(found):
            return
        noticed = min(self._noticed[_key(each)] for each in found)
        try:
            repaired = self._serving.repair()
        except LbswitchError as error:
            self._retry_at = self._clock() + self._retry_pause_s
            self._retry_pause_s = min(self._retry_pause_s * 2, _MOST_RETRY_S)
            self._events.once("repair", "repair-failed", f"drift could not be repaired: {error}; it is tried again")
            return
        self._retry_pause_s = _RETRY_S
        self._events.over("repair")
        now = self._clock()
        for each in {_thing(each) for each in found}:
            self._repairs.setdefault(each, deque(maxlen=_REPAIRS)).append(now)
        took_ms = (now - noticed) * 1000
        shown = "; ".join(repaired[:3]) + (f"; and {len(repaired) - 3} more" if len(repaired) > 3 else "")
        message = f"repaired {took_ms:.0f} ms after it was noticed: {shown}"
        drift = [each.to_json() for each in found]
        self._noticed = {}
        self._keep(())
        self._events.emit("repaired", message, _only_service(found), "warning", drift=drift, took_ms=round(took_ms, 3))

    def _may_repair(self, found: Sequence[Difference]) -> bool:
        """Not while somebody changes the same things again and again; then say so, once."""
        now = self._clock()
        if now < self._retry_at:
            return False
        self._repairs = {thing: times for thing, times in self._repairs.items() if times[-1] > now - _WITHIN_S}
        fought = [each for each in found if self._is_fought(each, now)]
        if len(fought) < len(found):
            return True
        self._events.once(
            f"fight {fought[0].thing}",
            "drift-not-repaired",
            f"repaired {_REPAIRS} times in {_WITHIN_S / 60:g} minutes and changed again each time: {fought[0].what}. "
            f"Another program changes it, so it is only reported for now: find that program, then lbswitch apply",
            fought[0].service,
        )
        return False

    def _is_fought(self, difference: Difference, now: float) -> bool:
        times = self._repairs.get(_thing(difference))
        return times is not None and len(times) == _REPAIRS and times[0] > now - _WITHIN_S


def _key(difference: Difference) -> Key:
    """What makes it the same difference: not pids or times, which the sentence may hold."""
    return (difference.where, difference.thing, difference.service, difference.diff)


def _thing(difference: Difference) -> tuple[str, str, str | None]:
    return (difference.where, difference.thing, difference.service)


def _only_service(found: Sequence[Difference]) -> str | None:
    services = {each.service for each in found}
    return services.pop() if len(services) == 1 else None
