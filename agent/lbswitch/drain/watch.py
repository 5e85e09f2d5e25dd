"""Counts what is still open to colors that lost their traffic until nothing is, and closes what the policy says."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lbswitch.core.config import Leftover
from lbswitch.core.drain import closing_pause_s
from lbswitch.core.model import Color, Drain, DrainState, Kind, Operation, OperationState, PoolKey
from lbswitch.drain.following import Closing, Following
from lbswitch.errors import BalancerError, Busy, Refused, UnknownService
from lbswitch.events import Event, Events
from lbswitch.pauses import Bell, let_operations_pass
from lbswitch.ports import Held, Store
from lbswitch.serving import Serving
from lbswitch.switch import Switcher

_RETRY_S = 1.0
_TRIES = 5
_AT_ONCE = 100  # connections that are closed while a switch has to wait
_FRESH_S = 0.2
_FRESH_SHARE = 20.0


class DrainWatch:
    """`resume`, then `run` until cancelled. Everything but `run` may be called from any thread, and may block."""

    def __init__(
        self,
        serving: Serving,
        switcher: Switcher,
        store: Store,
        events: Events,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since the epoch, `monotonic` seconds that only grow.

        `by_service` is what drains now, `over` what was last found drained, `closed` counts connections that were ended
        on purpose since the start.
        """
        self.by_service: dict[str, Following] = {}
        self.over: dict[str, Following] = {}
        self.closed: Counter[PoolKey] = Counter()
        self._serving = serving
        self._switcher = switcher
        self._store = store
        self._events = events
        self._in_thread = in_thread
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._heard: deque[Mapping[str, Any]] = deque()
        self._unsaved: dict[int, Drain] = {}
        self._counted_at = float("-inf")
        self._took_s = 0.0
        self._bell = Bell()
        events.listen(self._hear)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """An operation was told of; whoever tells it waits for this, so only the first of many wakes us."""
        operation = event.data.get("operation")
        if not isinstance(operation, dict) or operation["state"] != OperationState.DONE or operation["dry_run"]:
            return
        self._heard.append(operation)
        if len(self._heard) == 1:
            self._bell.ring()

    async def run(self) -> None:
        """Count for as long as anything drains, often at first; sleep until an operation otherwise."""
        while True:
            self._bell.hush()
            await let_operations_pass(self._switcher.is_at_work)
            await self._events.guard("counting what drains", self._in_thread(self.step))
            await self._bell.wait(self._pause_s())

    def _pause_s(self) -> float | None:
        """Until the next count; None when there is nothing to count."""
        now, following = self._monotonic(), list(self.by_service.values())
        pauses = [each.pause_s(now, self._took_s) for each in following]
        soon_s = closing_pause_s(0, 0.0, self._took_s)
        pauses += [max(soon_s, at - now) for each in following if (at := self._closes_at(each)) is not None]
        if self._unsaved or self._heard:
            pauses.append(_RETRY_S)
        return min(pauses, default=None)

    def resume(self) -> None:
        """Go on with what an agent before this one left. Raises: StateError."""
        with self._lock:
            self._heard.clear()  # all of it is in the store
            for operation in self._store.draining():
                if operation.drain is not None:
                    self._leave(operation.service)
                    self._go_on(self._following(operation.to_json(), operation.drain))
        self._bell.ring()

    def _go_on(self, following: Following) -> None:
        route = self._route(following.pool.service)
        if route is not None and route[following.pool.color] > 0:
            self._end(following, DrainState.SUPERSEDED)
        else:
            self.by_service[following.pool.service] = following

    def step(self) -> None:
        """Take in what operations did, count once for all services, and close what is due. Raises: StateError."""
        with self._lock:
            self._take_in()
            if self.by_service:
                self._count(list(self.by_service.values()))
                for each in list(self.by_service.values()):
                    self._close_due(each)
            self._save()

    # -- what operations did -----------------------------------------------------------------------------------

    def _take_in(self) -> None:
        while self._heard:
            told = self._heard.popleft()
            before = self.by_service.get(told["service"])
            if told["drain"] is not None or (before is not None and _share(told, before.pool.color) > 0):
                self._leave(told["service"])
            if told["drain"] is not None:
                self.by_service[told["service"]] = self._following(told, Drain.from_json(told["drain"]))
        configured = self._serving.config.services
        self.over = {name: each for name, each in self.over.items() if name in configured}
        for service in [name for name in self.by_service if name not in configured]:
            self._end(self.by_service.pop(service), DrainState.SUPERSEDED, "the service is no longer configured")

    def _following(self, told: Mapping[str, Any], drain: Drain) -> Following:
        ago_s = max(0.0, self._clock() - told["ended_at"])
        pool = PoolKey(told["service"], drain.color)
        return Following(pool, drain, self._monotonic() - ago_s, Kind(told["kind"]), told["id"])

    def _leave(self, service: str) -> None:
        """The service moved: nobody waits any more for what drained there before."""
        self.over.pop(service, None)
        before = self.by_service.pop(service, None)
        if before is not None:
            self._end(before, DrainState.SUPERSEDED)

    def _end(self, following: Following, state: DrainState, note: str | None = None) -> None:
        drain = following.ended(state, note)
        if following.operation is not None:
            self._unsaved[following.operation] = drain

    def _save(self) -> None:
        """Raises: StateError; then it is tried again."""
        if self._unsaved:
            self._store.save_drains(self._unsaved)
            self._unsaved = {}

    # -- counting ----------------------------------------------------------------------------------------------

    def _held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        began = self._monotonic()
        held = self._serving.balancer.draining.held(pools)
        self._took_s = self._monotonic() - began
        return held

    def _count(self, following: Collection[Following]) -> None:
        held = self._held([each.pool for each in following])
        self._counted_at = now = self._monotonic()
        for each in following:
            before = each.drain
            each.count(held.get(each.pool), now)
            if each.drain.state is DrainState.DRAINED:
                self._drained(each)
            elif each.unknown == _TRIES:
                self._tell("drain-unknown", each.left, each, "info")
                self._keep(each)
            elif before.most == 0 < each.drain.most:
                self._keep(each)

    def _drained(self, following: Following) -> None:
        service = following.pool.service
        self.over[service] = self.by_service.pop(service)
        self._end(following, DrainState.DRAINED)
        self._tell("drained", following.what_ended, following, "info")

    def _keep(self, following: Following) -> None:
        """Write it with its operation, although it is not over."""
        if following.operation is not None:
            self._unsaved[following.operation] = following.drain

    def _tell(self, type_: str, message: str, following: Following, level: str) -> None:
        self._events.emit(type_, message, following.pool.service, level, drain=following.to_json())

    # -- closing -----------------------------------------------------------------------------------------------

    def _closes_at(self, following: Following) -> float | None:
        """When the policy has closing begin, in seconds that only grow; None when it does not, or it has begun."""
        settings = self._serving.config.services.get(following.pool.service)
        if settings is None or following.kind is None or following.closing is not None or not following.can_close:
            return None
        if settings.drain.leftover(following.kind) is not Leftover.CLOSE:
            return None
        return following.since + settings.drain.close_after

    def _close_due(self, following: Following) -> None:
        now, service = self._monotonic(), following.pool.service
        begins_at = self._closes_at(following)
        is_known = following.drain.open is not None or following.unknown >= _TRIES
        if begins_at is not None and now >= begins_at and following.drain.open != 0 and is_known:
            why = self._why_not_closed(following)
            if why is None:
                self._begin_closing(following, self._serving.config.services[service].drain.close_over)
            else:
                self._give_up_closing(following, why)
        most = following.to_close(now)
        try:
            while most > 0:
                closed = self._close(following, min(most, _AT_ONCE))
                following.note_closed(closed)
                self.closed[following.pool] += closed
                most = most - closed if closed else 0
        except BalancerError as error:
            following.failures += 1
            if following.failures >= _TRIES:
                self._give_up_closing(following, str(error))

    def _why_not_closed(self, following: Following) -> str | None:
        why = self._serving.balancer.draining.why_not_closed()
        return why or ("they can't be counted" if following.drain.open is None else None)

    def _begin_closing(self, following: Following, over_s: float) -> None:
        following.closing = Closing(following.drain.open or 0, self._monotonic(), over_s)
        self._tell("drain-closing", f"{following.left}; closing within {over_s:g} s", following, "info")

    def _give_up_closing(self, following: Following, why: str) -> None:
        """They are left to end by themselves; that is said once."""
        following.can_close, following.closing = False, None
        following.drain = replace(following.drain, note=f"not closed: {why}")
        self._tell("not-closed", f"{following.left}, and can't be closed: {why}", following, "warning")
        self._keep(following)

    def _close(self, following: Following, most: int) -> int:
        """Only between operations, and never what has traffic. Raises: BalancerError."""
        mutex = self._serving.mutex
        if self._switcher.is_at_work() or not mutex.acquire(blocking=False):
            return 0
        try:
            route = self._route(following.pool.service)
            if route is None or route[following.pool.color] > 0:
                return 0
            return self._serving.balancer.draining.close(following.pool, most)
        finally:
            mutex.release()

    def close(self, service: str, over_s: float | None = None, color: Color | None = None) -> dict[str, Any]:
        """Begin to close what is left on the color without traffic, spread over `drain.close_over` or another time.

        Gives the document of `document`. Raises: UnknownService, Busy, Refused (then nothing is closed).
        """
        holder = self._switcher.holder(service)
        if holder is not None:
            raise Busy(f"{service}: a {holder.kind} by {holder.actor} is running; nothing was closed, try again")
        with self._lock:
            self._take_in()
            pool = self._pool_to_close(service, color)
            following = self.by_service.get(service) or Following(pool, Drain(pool.color), self._monotonic())
            self._count_one(following)
            why = self._why_not_closed(following)
            if why is not None:
                raise Refused("drain", f"{service}: {following.left}, and can't be closed: {why}")
            if following.drain.open:
                self.by_service[service] = following
                following.can_close, following.failures = True, 0
                settings = self._serving.config.services[service].drain
                self._begin_closing(following, settings.close_over if over_s is None else over_s)
            self._save()
        self._bell.ring()
        return self.documents([service])[service]

    def _count_one(self, following: Following) -> None:
        if following.pool.service in self.by_service:
            self._count([following])
        else:
            following.count(self._held([following.pool]).get(following.pool), self._monotonic())

    def _pool_to_close(self, service: str, color: Color | None) -> PoolKey:
        """Raises: UnknownService, Refused."""
        route = self._route(service)
        if route is None:
            raise UnknownService(f"the service {service} is just being added or removed; ask again")
        idle = _idle(route)
        if color is not None and route[color] > 0:
            raise Refused("drain", f"{service}: {color} gets {route[color]}% of the traffic; nothing was closed")
        if idle is None:
            shares = " and ".join(f"{each} {share}%" for each, share in route.items())
            raise Refused("drain", f"{service}: both colors get traffic ({shares}); nothing was closed")
        return PoolKey(service, idle)

    def _route(self, service: str) -> dict[Color, int] | None:
        intent = self._serving.intent.services.get(service)
        if intent is None or service not in self._serving.config.services:
            return None
        return {color: intent.route.share(color) for color in Color}

    # -- showing -----------------------------------------------------------------------------------------------

    def shown(self, operation: Operation) -> Operation:
        """The operation with its drain as it is now, which the history learns only when it is over."""
        following = self.by_service.get(operation.service)
        if following is None or following.operation != operation.id:
            return operation
        return replace(operation, drain=following.drain)

    def documents(self, services: Collection[str]) -> dict[str, dict[str, Any]]:
        """What is open to each service's color without traffic, counted now or a moment ago."""
        with self._lock:
            self._take_in()
            if self.by_service and self._monotonic() - self._counted_at > max(_FRESH_S, self._took_s * _FRESH_SHARE):
                self._count(list(self.by_service.values()))
            self._save()
            return dict(self._documents(services))

    def _documents(self, services: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        routes = {name: route for name in services if (route := self._route(name)) is not None}
        idle = {name: PoolKey(name, color) for name, route in routes.items() if (color := _idle(route)) is not None}
        others = [pool for name, pool in idle.items() if name not in self.by_service]
        held = self._held(others) if others else {}
        for name in routes:
            following = self.by_service.get(name)
            if following is None and name in idle:
                following = self._looked_at(idle[name], held.get(idle[name]))
            yield name, {"service": name, **(_NOTHING if following is None else following.to_json())}

    def _looked_at(self, pool: PoolKey, held: tuple[Held, ...] | None) -> Following:
        """What is open to a color that nobody waits for; with what is remembered of its drain, when it is none."""
        before = self.over.get(pool.service)
        if before is not None and before.pool == pool and held == ():
            return before
        found = Following(pool, Drain(pool.color), self._monotonic())
        found.count(held, self._monotonic())
        if found.drain.open == 0:
            found.ended(DrainState.DRAINED)
        return found


_NOTHING: dict[str, Any] = {
    **Drain(Color.BLUE).to_json(), "color": None, "state": "none", "operation": None, "closing": None,
}  # fmt: skip
"""Both colors get traffic."""


def _share(operation: Mapping[str, Any], color: Color) -> int:
    """What a color gets after it."""
    weight: int = operation["weight"]
    return weight if operation["to"] == color else 100 - weight


def _idle(route: Mapping[Color, int]) -> Color | None:
    return next((color for color, share in route.items() if share == 0), None)
