"""Watches what real traffic experiences after a switch, and acts on what is decided.

One round every 50 ms while anything bakes, and every half second otherwise: read the evidence, decide for every
service that bakes, act. What is decided, and how far a watch is, is in the store, so that an agent that starts goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lbswitch.bake.looking import Looking
from lbswitch.bake.story import Colors, Story, cause
from lbswitch.core.bake import (
    Action,
    Advance,
    Bake,
    BakeState,
    Freeze,
    OnBreach,
    RollBack,
    Sight,
    Tell,
    decide,
)
from lbswitch.core.bake_config import BakeConfig
from lbswitch.core.config import Config
from lbswitch.core.criteria import Severity, Verdict
from lbswitch.core.evidence import LONGEST_S, Window
from lbswitch.core.model import Color, Kind, Operation, OperationState, PoolKey
from lbswitch.errors import BalancerError, Busy, Conflict, LbswitchError
from lbswitch.events import Event, Events
from lbswitch.pauses import Bell
from lbswitch.ports import HealthView, Reader, Reading, Store
from lbswitch.serving import Serving
from lbswitch.switch import Request, Switcher

ACTOR = "lbswitch"
_TICK_S, _IDLE_S = 0.05, 0.5
_JUDGE_EVERY_S = 0.25
_AFTERWARDS_S = 2.0  # last bad answers come in after the rollback
_RETRY_S = 1.0
_JUST_S = 60.0
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Canary:
    """Percentages that a switch takes one after the other, each after `every_s` without a breach."""

    steps: tuple[int, ...]
    every_s: float


@dataclass(frozen=True, slots=True)
class _Closing:
    """A rollback whose last bad answers may still come in, until `at`."""

    at: float
    operation: int
    bake: Bake
    story: Story
    verdicts: tuple[Verdict, ...]
    decision: dict[str, Any]
    during: Window


class Bakes:
    """`resume`, then `run` until cancelled."""

    def __init__(
        self,
        serving: Serving,
        switcher: Switcher,
        store: Store,
        health: HealthView,
        looking: Looking,
        events: Events,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
        reader: Reader | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`in_thread` runs a blocking call without stopping the event loop; `clock` gives seconds since the epoch."""
        self.bakes: dict[str, Bake] = {}
        self.sights: dict[str, Sight] = {}
        self.looking = looking
        self.reader = reader
        self._serving = serving
        self._switcher = switcher
        self._store = store
        self._health = health
        self._events = events
        self._in_thread = in_thread
        self._clock = clock
        self._bell = Bell()
        self._heard: deque[Mapping[str, Any]] = deque()
        self._planned: dict[str, Canary] = {}
        self._stories: dict[str, Story] = {}
        self._judged_at: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._acting: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[str, _Closing] = {}
        self._shielded: dict[str, Color | None] = {}
        events.listen(self._hear)

    @property
    def _config(self) -> Config:
        return self._serving.config

    # -- what others ask for -------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def shown(self, service: str) -> Bake | None:
        """The last watch of a service; a rollback counts when it is done, not when it is decided."""
        bake = self.bakes.get(service)
        if bake is not None and bake.state is BakeState.ROLLED_BACK and service in self._acting:
            return replace(bake, state=BakeState.BAKING, ended_at=None)
        return bake

    def shielded(self, service: str) -> Color | None:
        """The color that is under the shield."""
        return self._shielded.get(service)

    def plan(self, service: str, canary: Canary | None) -> None:
        """The next switch of this service is the first step of a canary; None: of none."""
        if canary is None:
            self._planned.pop(service, None)
        else:
            self._planned[service] = canary

    async def heard(self) -> None:
        """Every operation that was told of until now has begun or ended its watch."""
        while self._heard:
            self._moved(self._heard.popleft())

    def watch(self, service: str, duration_s: float, on_breach: OnBreach | None) -> Bake:
        """Watch what is live now for so long, or go on for so long with the watch there is. Event loop only.

        `on_breach` None keeps what the watch, or the configuration, says. A watch that led to a rollback within the
        last minute is returned as it is, until the color is released.
        """
        now, known = self._clock(), self.bakes.get(service)
        if known is not None and self._was_just_rolled_back(known, now):
            return known
        if known is not None and not known.state.is_over:
            bake = replace(known, until=now + duration_s, duration_s=duration_s, on_breach=on_breach or known.on_breach)
        else:
            intent = self._serving.intent.services[service]
            settings = self._settings(service)
            last = self._store.history(1, service)
            bake = Bake(
                service=service,
                operation=last[0].id if last else 0,
                color=intent.route.live if not intent.route.is_split else intent.route.live.other,
                generation=intent.generation,
                since=now,
                until=now + duration_s,
                duration_s=duration_s,
                on_breach=on_breach or OnBreach.ALERT,
                on_insufficient=settings.on_insufficient,
            )
            self._begin(bake)
        self._keep(bake)
        self._bell.ring()
        return bake

    def _was_just_rolled_back(self, bake: Bake, now: float) -> bool:
        """Whoever asks a moment after a switch asks about that switch, and not about the color that is back."""
        is_recent = bake.state is BakeState.ROLLED_BACK and now - (bake.ended_at or 0.0) < _JUST_S
        is_acting = bake.service in self._acting
        return is_recent and (is_acting or PoolKey(bake.service, bake.color) in self._store.quarantined())

    # -- the loop ------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on with the watches of an agent before this one. Raises: StateError."""
        for service, document in self._store.bakes().items():
            if service in self._config.services:
                bake = Bake.from_json(service, document)
                self.bakes[service] = bake
                if not bake.state.is_over:
                    self._stories[service] = Story(bake.since, bake.color)
                elif bake.state is BakeState.ROLLED_BACK:
                    self._make_up(bake)

    def _make_up(self, bake: Bake) -> None:
        """An agent that died right after a rollback may have written neither quarantine nor record. Raises: StateError.

        One that died between deciding and rolling back has to decide again.
        """
        intent = self._serving.intent.services.get(bake.service)
        if intent is not None and intent.generation == bake.generation:
            self.bakes[bake.service] = replace(bake, state=BakeState.BAKING, ended_at=None)
            self._stories[bake.service] = Story(bake.since, bake.color)
            return
        last = next(iter(self._store.history(1, bake.service)), None)
        if last is None or (last.kind, last.actor, last.state) != (Kind.ROLLBACK, ACTOR, OperationState.DONE):
            return
        if self._store.incident(last.id) is not None:
            return
        story = Story(bake.since, bake.color)
        story.decided_at, story.committed_at = bake.ended_at, last.ended_at
        decision = {"should_rollback": True, "reason": last.reason, "severity": None, "confidence": None, "cause": None}
        self._store.quarantine(bake.service, bake.color, last.reason, last.ended_at or self._clock())
        self._store.save_incident(last.id, story.record((), Colors(None, None, None), decision, complete=False))

    async def run(self) -> None:
        """Until cancelled."""
        if self.reader is not None:
            await self._events.guard("reading the traffic", self._in_thread(self.reader.start))
        try:
            while True:
                self._bell.hush()
                await self._events.guard("watching the traffic", self._round())
                await self._bell.wait(_TICK_S if self._is_busy() else _IDLE_S)
        finally:
            if self.reader is not None:
                self.reader.close()

    def reconfigured(self, config: Config) -> None:
        """The configuration is another one now. Event loop only."""
        self.looking.keep()
        if self.reader is not None:
            self.reader.update(config)
        self._bell.ring()

    async def finish(self) -> None:
        """Wait for the automatic switches that are under way."""
        await asyncio.gather(*self._acting.values(), return_exceptions=True)

    def _is_busy(self) -> bool:
        return bool(self._closing) or any(not bake.state.is_over for bake in self.bakes.values())

    async def _round(self) -> None:
        await self.heard()
        await self._read()
        now = self._clock()
        self.looking.note_checks(now)
        for service in [name for name, bake in self.bakes.items() if not bake.state.is_over]:
            self._decide(service, now)
        for service in [name for name, closing in self._closing.items() if now >= closing.at]:
            await self._close(self._closing.pop(service))
        await self._shield()

    async def _read(self) -> None:
        if self.reader is None:
            return
        reading: Reading = await self._in_thread(self.reader.read)
        self.looking.take(reading)
        for pool, batch in reading.batches.items():
            story = self._story(pool)
            if story is not None:
                story.batch(reading.at, batch)
        for service in {request.service for request in reading.requests}:
            for color in Color:
                story = self._story(PoolKey(service, color))
                if story is not None:
                    mine = [each for each in reading.requests if (each.service, each.color) == (service, color)]
                    story.answered(mine, reading.unlisted)

    def _story(self, pool: PoolKey) -> Story | None:
        bake = self.bakes.get(pool.service)
        return self._stories.get(pool.service) if bake is not None and bake.color is pool.color else None

    # -- beginning and ending ------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """From any thread, and at once."""
        operation = event.data.get("operation")
        if not isinstance(operation, dict) or operation["state"] != OperationState.DONE or operation["dry_run"]:
            return
        self._heard.append(operation)
        self._bell.ring()

    def _moved(self, operation: Mapping[str, Any]) -> None:
        """An operation is done: its color bakes; after a way back nothing does."""
        service, kind = operation["service"], Kind(operation["kind"])
        intent = self._serving.intent.services.get(service)
        if intent is None or intent.generation != operation["generation"] or service not in self._config.services:
            return
        known, color = self.bakes.get(service), Color(operation["to"])
        planned = self._planned.pop(service, None)
        is_step = known is not None and known.color is color and operation["actor"] == ACTOR
        if known is not None and is_step and not known.state.is_over:
            self._stepped(known, operation)
        elif known is not None and not known.state.is_over and kind is Kind.FAILOVER and color is known.color.other:
            self._failed_over(known, operation)
        elif known is not None and self._is_given_up(known, color):
            self._keep(replace(known, state=BakeState.SUPERSEDED, ended_at=self._clock()))
        elif kind in (Kind.SWITCH, Kind.WEIGHT) and (color is not intent.route.live or not intent.route.is_split):
            self._begin(self._first(operation, color, planned))
        elif known is not None and not known.state.is_over and operation["actor"] != ACTOR:
            self._keep(replace(known, state=BakeState.SUPERSEDED, ended_at=self._clock()))

    def _failed_over(self, bake: Bake, operation: Mapping[str, Any]) -> None:
        """The health checks were quicker than the evidence: a rollback all the same."""
        reason = str(operation["reason"])
        after = replace(
            bake, state=BakeState.ROLLED_BACK, breaches=(*bake.breaches, reason), holding=None, ended_at=self._clock()
        )
        self._keep(after)
        action = RollBack(reason, Severity.CRITICAL, 1.0)
        sight = self.sights.get(bake.service)
        verdicts = sight.verdicts if sight is not None and sight.generation == bake.generation else ()
        at = (float(operation["started_at"]), operation["ended_at"])
        self._start(bake.service, self._conclude(bake, operation["id"], action, "health", verdicts, at))

    def _is_given_up(self, bake: Bake, color: Color) -> bool:
        """Whether a canary that never was the live color has lost its share: its traffic goes to a known one."""
        sight = self.sights.get(bake.service)
        was_live = sight.route.live if sight is not None and sight.generation == bake.generation else None
        return not bake.state.is_over and bake.color is color.other and was_live is color

    def _first(self, operation: Mapping[str, Any], color: Color, canary: Canary | None) -> Bake:
        settings, now = self._settings(operation["service"]), float(operation["ended_at"] or self._clock())
        return Bake(
            service=operation["service"],
            operation=operation["id"],
            color=color,
            generation=operation["generation"],
            since=now,
            until=now + settings.duration,
            duration_s=settings.duration,
            on_breach=settings.on_breach,
            on_insufficient=settings.on_insufficient,
            steps=() if canary is None else canary.steps,
            every_s=60.0 if canary is None else canary.every_s,
            stepped_at=now,
        )

    def _stepped(self, bake: Bake, operation: Mapping[str, Any]) -> None:
        """The canary went on: the last step bakes like any switch."""
        now = float(operation["ended_at"] or self._clock())
        self._keep(
            replace(
                bake,
                operation=operation["id"],
                generation=operation["generation"],
                stepped_at=now,
                until=now + bake.duration_s,
            )
        )

    def _begin(self, bake: Bake) -> None:
        self._stories[bake.service] = Story(bake.since, bake.color)
        self.looking.begin(bake)
        self._keep(bake)
        self._events.emit(
            "bake",
            f"{bake.color} is watched for {bake.until - bake.since:g} s",
            bake.service,
            operation_id=bake.operation,
        )

    def _keep(self, bake: Bake) -> None:
        """Remember it, also for an agent that starts."""
        self.bakes[bake.service] = bake
        with contextlib.suppress(LbswitchError):  # the store can't be written: it is repeated with the next change
            self._store.save_bake(bake.service, bake.to_json())

    def _settings(self, service: str) -> BakeConfig:
        return self._config.services[service].bake or BakeConfig()

    # -- deciding ------------------------------------------------------------------------------------------------

    def _decide(self, service: str, now: float) -> None:
        if service not in self._config.services or service not in self._serving.intent.services:
            del self.bakes[service]
            return
        if (
            service in self._acting
            or self._switcher.holder(service) is not None
            or now < self._retry_at.get(service, 0.0)
        ):
            return
        before = self.bakes[service]
        sight = self._look(before, now)
        if sight is None:
            return
        self.sights[service] = sight
        after, actions = decide(before, sight, now)
        if before.breaches and not sight.decision.should_rollback and sight.burst is None:
            self._stories[service].begin_anew()
        for action in actions:
            self._act(before, sight, action)
        if after is not before:
            self._keep(after)
        if after.state.is_over and after.state is not BakeState.ROLLED_BACK:
            self._stories.pop(service, None)

    def _look(self, bake: Bake, now: float) -> Sight | None:
        """A burst is looked for at every tick, criteria four times a second."""
        service, rescue = bake.service, bake.color.other
        burst = self.looking.burst(bake, now)
        is_due = now - self._judged_at.get(service, 0.0) >= _JUDGE_EVERY_S or now >= bake.until
        if burst is None and not is_due:
            return None
        self._judged_at[service] = now
        verdicts, decision = self.looking.judge(bake, now)
        intent = self._serving.intent.services[service]
        return Sight(
            route=intent.route,
            generation=intent.generation,
            rescue=self._health.facts(service, rescue),
            decision=decision,
            verdicts=verdicts,
            burst=burst,
            frozen=self._store.frozen().get(service),
            quarantined=self._store.quarantined().get(PoolKey(service, rescue)),
            limit=self._limit(service, now),
        )

    def _limit(self, service: str, now: float) -> str | None:
        most = self._config.services[service].failover.max_per_hour
        recent = len(self._store.automatic_since(service, now - _HOUR_S))
        if recent < most:
            return None
        return f"there were {recent} automatic switches within an hour (failover.max_per_hour {most})"

    # -- acting --------------------------------------------------------------------------------------------------

    def _act(self, bake: Bake, sight: Sight, action: Action) -> None:
        match action:
            case RollBack():
                self._start(bake.service, self._roll_back(bake, sight, action))
            case Advance(weight):
                self._start(bake.service, self._advance(bake, weight))
            case Freeze(reason):
                self._store.freeze(bake.service, reason)
                self._events.emit("latched", reason, bake.service, "error")
            case Tell(what, message, level):
                self._events.emit(what, message, bake.service, level, operation_id=bake.operation)

    def _start(self, service: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._events.guard(f"acting for {service}", work))
        self._acting[service] = task
        task.add_done_callback(lambda _done: self._acting.pop(service, None))

    async def _roll_back(self, bake: Bake, sight: Sight, action: RollBack) -> None:
        """Back at once; what takes time is written afterwards."""
        decided_at = self._clock()
        done = await self._operate(
            bake, Request(Kind.ROLLBACK, (bake.service,), reason=action.reason, actor=ACTOR, generation=bake.generation)
        )
        if done is not None:
            why = cause(sight.burst, sight.verdicts)
            await self._conclude(bake, done.id, action, why, sight.verdicts, (decided_at, done.ended_at))

    async def _conclude(
        self,
        bake: Bake,
        number: int,
        action: RollBack,
        why: str,
        verdicts: tuple[Verdict, ...],
        at: tuple[float, float | None],
    ) -> None:
        """Quarantine what was rolled back, and write the record; `at` is when it was decided and when it was done."""
        story = self._stories.setdefault(bake.service, Story(bake.since, bake.color))
        decided_at, (story.decided_at, story.committed_at) = at[0], at
        await self._in_thread(self._store.quarantine, bake.service, bake.color, action.reason, decided_at)
        decision = {
            "should_rollback": True,
            "reason": action.reason,
            "severity": str(action.severity),
            "confidence": round(action.confidence, 4),
            "cause": why,
        }
        now, pool = self._clock(), PoolKey(bake.service, bake.color)
        during = self.looking.lately(pool, now, LONGEST_S, bake.since)
        closing = _Closing(now + _AFTERWARDS_S, number, bake, story, verdicts, decision, during)
        await self._record(closing, complete=False)  # an agent that dies in the next seconds leaves this
        self._closing[bake.service] = closing
        self._events.emit(
            "rolled-back",
            f"{bake.color} was rolled back: {action.reason}",
            bake.service,
            "error",
            operation_id=number,
            decision=decision,
            recovery_ms=story.recovery_ms,
        )

    async def _advance(self, bake: Bake, weight: int) -> None:
        request = Request(
            Kind.SWITCH,
            (bake.service,),
            to=bake.color,
            weight=weight,
            reason=f"step of the canary that began with operation {bake.operation}",
            actor=ACTOR,
            generation=bake.generation,
        )
        if await self._operate(bake, request) is None:
            known = self.bakes[bake.service]
            self._keep(replace(known, steps=bake.steps, stepped_at=bake.stepped_at))

    async def _operate(self, bake: Bake, request: Request) -> Operation | None:
        """The operation if it is done; else the watch goes on, and it is tried again."""
        try:
            operations: list[Operation] = await self._in_thread(self._switcher.run, request)
        except (Busy, Conflict) as error:  # somebody else was quicker, and whoever is a person wins
            why = str(error)
        except LbswitchError as error:
            why = str(error)
        else:
            if operations[0].state is OperationState.DONE:
                return operations[0]
            gate = operations[0].gate
            why = (
                f"it was {operations[0].state}: {operations[0].error or (gate.message if gate else 'no reason given')}"
            )
        self._retry_at[bake.service] = self._clock() + _RETRY_S
        known = self.bakes[bake.service]
        if known.state is BakeState.ROLLED_BACK:
            self._keep(replace(known, state=BakeState.BAKING, ended_at=None, holding=why))
        self._events.once(f"bake {bake.service}", "holding", f"{request.kind} of {bake.color}: {why}", bake.service)
        return None

    async def _close(self, closing: _Closing) -> None:
        """The last bad answers are in."""
        if self._stories.get(closing.bake.service) is closing.story:  # not one of a switch since then
            del self._stories[closing.bake.service]
        await self._record(closing, complete=True)

    async def _record(self, closing: _Closing, *, complete: bool) -> None:
        """Write what is known; a store that can't be written keeps nothing else up."""
        old = PoolKey(closing.bake.service, closing.bake.color.other)
        after = self.looking.lately(old, self._clock(), since=closing.story.committed_at) if complete else None
        colors = Colors(self.looking.before(closing.bake.service), closing.during, after)
        record = closing.story.record(closing.verdicts, colors, closing.decision, complete=complete)
        with contextlib.suppress(LbswitchError):
            await self._in_thread(self._store.save_incident, closing.operation, record)

    # -- the shield ----------------------------------------------------------------------------------------------

    async def _shield(self) -> None:
        """Under it is the color that bakes, else the idle one: so the next switch has it from its first request on."""
        wanted = {name: self._wants_shield(name) for name in self._config.services}
        if wanted == self._shielded:
            return
        changed = {name: color for name, color in wanted.items() if self._shielded.get(name, Ellipsis) != color}
        try:
            await self._in_thread(self._serving.balancer.shield, changed)
        except BalancerError as error:
            self._events.once("shield", "shield-failed", f"the shield could not be moved: {error}", level="warning")
            return
        self._events.over("shield")
        self._shielded = wanted

    def _wants_shield(self, service: str) -> Color | None:
        intent = self._serving.intent.services.get(service)
        if intent is None or not self._settings(service).shield:
            return None
        if self._serving.balancer.why_not_shielded(service) is not None:
            return None
        if service in self._acting or self._switcher.holder(service) is not None:
            return self._shielded.get(service)  # what is about to lose its traffic still has it
        bake = self.bakes.get(service)
        return bake.color if bake is not None and not bake.state.is_over else intent.route.live.other
