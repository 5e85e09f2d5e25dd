"""The switch transaction: lock, gates, render and check, INTENT, commit, verify, DONE; or back to where it was.

At every instant the journal, the pointer on disk and the running balancer allow a restarted agent to finish or
revert (`recover`). The steps carry the names in `STEPS`, so that a test can stop the world at each of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lbswitch.core.model import Color, Gate, Intent, Kind, Operation, OperationState, Route, ServiceIntent
from lbswitch.errors import BalancerError, Busy, Conflict, LbswitchError, Refused, StateError, UnknownService
from lbswitch.events import Events
from lbswitch.gates import Gates
from lbswitch.ports import HealthView, Rendered, Snapshot, Store
from lbswitch.records import Records
from lbswitch.recovery import Recoveries, Recovery
from lbswitch.serving import Serving, Undo
from lbswitch.snapshots import Snapshots
from lbswitch.stopwatch import Stopwatch

STEPS = (
    "gates", "render", "check", "stage", "intent", "prepare", "install", "reload", "commit", "verify", "done", "revert",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants. `to` is None for a rollback, whose target is what was serving before.

    With `generation` it is only about what is served since that one: whoever switched meanwhile wins.
    """

    kind: Kind
    services: tuple[str, ...]
    to: Color | None = None
    weight: int = 100
    expect: Color | None = None
    reason: str = ""
    actor: str = "unknown"
    force: bool = False
    dry_run: bool = False
    generation: int | None = None


@dataclass(slots=True)
class _Move:
    """One service's part of a request on its way through the transaction."""

    operation: Operation
    before: ServiceIntent
    route: Route
    notes: list[str] = field(default_factory=list)

    @property
    def service(self) -> str:
        return self.operation.service


class Switcher:
    """Runs operations, one at a time for a service. Blocks; call it from worker threads."""

    def __init__(
        self,
        serving: Serving,
        store: Store,
        health: HealthView,
        events: Events,
        clock: Callable[[], float] = time.time,
        on_step: Callable[[str], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`clock` gives seconds since the epoch; `on_step` is told each step's name before it is taken.

        Without `snapshots` none are taken.
        """
        self._serving = serving
        self._store = store
        self._snapshots = snapshots
        self._clock = clock
        self.gates = Gates(serving, store, health)
        self.records = Records(store, events, clock)
        self._step = on_step or (lambda _name: None)
        self._holders: dict[str, Request] = {}
        self._holders_lock = threading.Lock()
        self._ended_at = float("-inf")
        self._last = ""  # the service that moved last
        self._ahead = ThreadPoolExecutor(1, "stage")

    def holder(self, service: str) -> Request | None:
        """The request that holds this service now."""
        return self._holders.get(service)

    def prepare_way_back(self) -> None:
        """Write ahead what undoing the last move needs: it is what comes next, and what has to be quickest.

        Nothing is done while others work. Raises: CommitFailed, StateError.
        """
        service, mutex = self._last, self._serving.mutex
        if self._holders or not mutex.acquire(blocking=False):
            return
        try:
            before = self._serving.intent.services.get(service)
            if before is None or self._serving.needs_files(service):
                return
            live = before.route.live
            route = Route(live if before.route.is_split else live.other)
            after = {service: ServiceIntent(route, self._next_generation(), before.weighted)}
            self._serving.balancer.prepare_ahead(self._serving.intent.with_services(after))
            if self._snapshots is not None:
                self._snapshots.warm()
        finally:
            mutex.release()

    def is_at_work(self, within_s: float = 0.0) -> bool:
        """Whether an operation is under way, or ended so short a time ago."""
        return bool(self._holders) or time.monotonic() - self._ended_at < within_s

    def run(self, request: Request) -> list[Operation]:
        """Carry out a request; every outcome but the ones raised is an Operation, in the order of the services.

        Raises: UnknownService, Busy, Conflict; then nothing was changed or recorded.
        """
        for service in request.services:
            if service not in self._serving.config.services:
                known = ", ".join(sorted(self._serving.config.services))
                raise UnknownService(f"there is no service {service!r}; known: {known}")
            if service not in self._serving.intent.services:
                raise Busy(f"{service}: it is just being added; nothing was changed, try again")
        with self.held(request):
            return self._run(request)

    @contextmanager
    def held(self, request: Request) -> Iterator[None]:
        """Nobody else works on these services meanwhile. Raises: Busy, naming who does."""
        with self._holders_lock:
            for service in request.services:
                holder = self._holders.get(service)
                if holder is not None:
                    raise Busy(
                        f"{service}: a {holder.kind} by {holder.actor} is running; nothing was changed, try again"
                    )
            self._holders.update(dict.fromkeys(request.services, request))
        try:
            yield
        finally:
            with self._holders_lock:
                for service in request.services:
                    del self._holders[service]
                self._ended_at = time.monotonic()

    def _run(self, request: Request) -> list[Operation]:
        watch = Stopwatch()
        moves, settled = self._plan(request)
        self._step("gates")
        refusals = {move.service: gate for move in moves if (gate := self._refusal(request, move)) is not None}
        watch.lap("gates")
        if refusals:
            ended = [self._refuse(move, refusals, watch) for move in moves]
        elif not moves:
            ended = []
        elif request.dry_run:
            ended = self._rehearse(moves, request, watch)
        else:
            ended = self._transact(moves, request, watch)
        settled = [self.records.record(replace(done, timings=watch.timings())) for done in settled]
        by_service = {operation.service: operation for operation in [*ended, *settled]}
        return [by_service[service] for service in request.services]

    # -- planning and gates ----------------------------------------------------------------------------------

    def _plan(self, request: Request) -> tuple[list[_Move], list[Operation]]:
        """What has to move, and the operations that are over before they began (`already`, refused rollbacks)."""
        moves, settled = [], []
        for service in request.services:
            before = self._serving.intent.services[service]
            if request.generation not in (None, before.generation):
                raise Conflict(
                    f"{service}: generation {before.generation} is served and no longer {request.generation}; nothing "
                    "was changed"
                )
            draft = self._draft(request, service, before)
            try:
                target = request.to or self._rollback_target(service, before.route)
            except Refused as error:
                settled.append(self.records.end(draft, OperationState.REFUSED, gate=Gate(error.gate, str(error))))
                continue
            route = before.route.with_share(target, request.weight)
            draft = replace(draft, target=target, kind=_kind(request, before.route, route))
            if route == before.route and self._serving.look(service).verified:
                same = replace(draft, source=before.route.live)
                settled.append(self.records.end(same, OperationState.ALREADY))
                continue
            if request.expect is not None and before.route.live is not request.expect:
                raise Conflict(
                    f"{service}: expected {request.expect} to be live, but {before.route} is (generation "
                    f"{before.generation}); nothing was changed"
                )
            moves.append(_Move(draft.moving(before.route, route), before, route))
        return moves, settled

    def _draft(self, request: Request, service: str, before: ServiceIntent) -> Operation:
        live = before.route.live
        return Operation(
            id=0,
            kind=request.kind,
            service=service,
            source=live,
            target=live,
            weight=request.weight,
            state=OperationState.OPEN,
            generation=before.generation,
            reason=request.reason,
            actor=request.actor,
            started_at=self._clock(),
            dry_run=request.dry_run,
        )

    def previous(self, service: str) -> Color | None:
        """The color a rollback would go to, or None when there is none."""
        try:
            return self._rollback_target(service, self._serving.intent.services[service].route)
        except Refused:
            return None

    def _rollback_target(self, service: str, route: Route) -> Color:
        """What was serving before: of a split the live color, else the color that the last switch left."""
        if route.is_split:
            return route.live
        last = self._store.last_move(service)
        if last is None or last.target is not route.live:
            raise Refused("previous", f"nothing was serving before {route.live}, so there is nothing to roll back to")
        if last.kind.is_way_back:
            raise Refused(
                "previous",
                f"{route.live} is live because of {last.kind} {last.id}, which left {last.source}; "
                f"to go forward again say lbswitch {last.source}",
            )
        return last.source

    def _refusal(self, request: Request, move: _Move) -> Gate | None:
        """The first gate that says no; `force` passes all but the impossible, and the operation says so."""
        impossible = self.gates.balancer() or self.gates.weights(move.service, move.route)
        if impossible is not None:
            return impossible
        listener = None if request.kind.is_way_back else self.gates.listener(move.service)
        freeze = self.gates.freeze(move.service, request.kind)
        quarantine = self.gates.quarantine(move.service, move.before.route, move.route)
        for gate in (listener, freeze, quarantine, self.gates.health(move.service, move.before.route, move.route)):
            if gate is None:
                continue
            if not request.force:
                return gate
            move.notes.append(f"forced past {gate.name}: {gate.message}")
        return None

    def _refuse(self, move: _Move, refusals: Mapping[str, Gate], watch: Stopwatch) -> Operation:
        """All or nothing: one refused service keeps the others of the same request where they are."""
        gate = refusals.get(move.service)
        if gate is None:
            name, first = next(iter(refusals.items()))
            gate = Gate(first.name, f"not switched because {name} was refused: {first.message}")
        ended = self.records.end(move.operation, OperationState.REFUSED, gate=gate, timings=watch.timings())
        return self.records.record(ended)

    # -- the transaction -------------------------------------------------------------------------------------

    def _rehearse(self, moves: list[_Move], request: Request, watch: Stopwatch) -> list[Operation]:
        """--dry-run: everything up to INTENT, and nothing kept."""
        try:
            files = self._files(self._after(moves), moves, request)
            note = "would change rendered files and reload" if files is not None else "would reload nothing"
            state, error = OperationState.DONE, None
        except LbswitchError as failure:
            note, state, error = "would fail", OperationState.REVERTED, str(failure)
        watch.lap("render")
        return [
            self.records.end(move.operation, state, error=error, notes=(*move.notes, note), timings=watch.timings())
            for move in moves
        ]

    def _after(self, moves: Sequence[_Move]) -> dict[str, ServiceIntent]:
        generation = self._next_generation()
        return {
            move.service: ServiceIntent(move.route, generation, move.before.weighted or move.route.is_split)
            for move in moves
        }

    def _next_generation(self) -> int:
        return max(self._store.generation(), self._serving.intent.generation) + 1

    def _files(self, after: Mapping[str, ServiceIntent], moves: Sequence[_Move], request: Request) -> Rendered | None:
        """The files that must change. Broken templates never stand in the way back, if it needs no files.

        An automatic one does not even look whether somebody edited any: a check may take a minute.
        """
        rendered_otherwise = any(
            self._serving.needs_files(move.service) or after[move.service].weighted != move.before.weighted
            for move in moves
        )
        if request.kind is Kind.FAILOVER and not rendered_otherwise:
            return None
        try:
            return self._serving.changed_files(self._serving.intent.with_services(after))
        except BalancerError as error:
            if not request.kind.is_way_back or rendered_otherwise:
                raise
            for move in moves:
                move.notes.append(f"the rendered files were left as they are: {error}")
            return None

    def _transact(self, moves: list[_Move], request: Request, watch: Stopwatch) -> list[Operation]:
        undo: Undo | None = None
        after: dict[str, ServiceIntent] = {}
        try:
            with self._serving.mutex:
                self._catch_up(moves)
                after = self._after(moves)
                files = self._files(after, moves, request)
                watch.lap("render")
                intent = self._serving.intent.with_services(after)
                with self._staged(intent, files):
                    self._begin(moves, after, request)
                undo = self._serving.undo_for(after, files)
                self._serving.move(intent, files, gently=request.kind is not Kind.FAILOVER)
                watch.lap("commit")
                if files is not None:
                    self._serving.verify(after, reloaded=True)
            if files is None:
                self._serving.verify(after)
            watch.lap("verify")
            self._step("done")
            ended = self._completed(moves, watch)
            self._store.finish(ended, after)
            self._last = moves[0].service
        except Exception as error:
            return self._failed(moves, undo, self.records.unforeseen(error), watch)
        self.records.tell(*ended)
        return ended

    def _catch_up(self, moves: Sequence[_Move]) -> None:
        """The configuration may have changed since the plan was made. Raises: StateError."""
        for move in moves:
            before = self._serving.intent.services.get(move.service)
            if before is None or move.service not in self._serving.config.services:
                raise StateError(f"{move.service} was taken out of the configuration meanwhile")
            move.before = before

    @contextmanager
    def _staged(self, intent: Intent, files: Rendered | None) -> Iterator[None]:
        """Meanwhile the balancer does in another thread what it can do ahead: INTENT and that both wait for the disk.

        Raises: CommitFailed at the end, and what was raised meanwhile; then nothing is prepared.
        """
        if files is not None:
            yield
            return
        self._step("stage")
        if self._serving.balancer.is_ahead(intent):  # `commit` has less left to do than two threads hold up each other
            yield
            return
        ahead = self._ahead.submit(self._serving.balancer.prepare, intent)
        try:
            yield
            ahead.result()
        except BaseException:
            wait([ahead])
            self._serving.balancer.forget()
            raise

    def _begin(self, moves: list[_Move], after: Mapping[str, ServiceIntent], request: Request) -> None:
        """INTENT is on disk before anything moves, and with it the snapshot.

        A disk that has no room for the snapshot never stands in the way back.
        """
        self._step("intent")
        drafts = [replace(move.operation, generation=after[move.service].generation) for move in moves]
        before = {move.service: move.before for move in moves}
        try:
            begun = self._store.begin(drafts, before, after, self._snapshot(request))
        except StateError as error:
            if not request.kind.is_way_back or self._snapshots is None:
                raise
            begun = self._store.begin(drafts, before, after)
            for move in moves:
                move.notes.append(f"no snapshot was taken: {error}")
        for move, operation in zip(moves, begun, strict=True):
            move.operation = operation

    def _snapshot(self, request: Request) -> Snapshot | None:
        """What there is before the operation. Raises: StateError."""
        return None if self._snapshots is None else self._snapshots.draft(str(request.kind))

    def _completed(self, moves: Sequence[_Move], watch: Stopwatch) -> list[Operation]:
        timings = watch.timings()
        return [
            self.records.end(move.operation, OperationState.DONE, timings=timings, notes=tuple(move.notes))
            for move in moves
        ]

    def _failed(self, moves: list[_Move], undo: Undo | None, error: LbswitchError, watch: Stopwatch) -> list[Operation]:
        """Put everything back and say how that went."""
        serving = " and ".join(sorted({f"{move.service} on {move.before.route}" for move in moves[:3]}))
        state, message = OperationState.REVERTED, f"{error}; still serving: {serving}"
        if undo is not None:
            try:
                self._serving.put_back(undo)
            except Exception as second:
                state = OperationState.FAILED
                why = self.records.unforeseen(second)
                message = f"{error}; putting back failed too: {why}; intended is: {serving}"
        watch.lap("verify")
        timings = watch.timings()
        ended = [
            self.records.end(
                replace(move.operation, generation=move.before.generation),
                state,
                error=message,
                timings=timings,
                notes=tuple(move.notes),
            )
            for move in moves
        ]
        if moves[0].operation.id == 0:
            return [self.records.record(operation) for operation in ended]
        self.records.finish_or_keep(ended, {move.service: move.before for move in moves})
        self.records.tell(*ended)
        return ended

    # -- after a crash, and what a full disk did not take --------------------------------------------------------

    def recover(self) -> list[Recovery]:
        """See `Recoveries.recover`."""
        return self._recoveries().recover()

    def conclude(self, recoveries: Sequence[Recovery]) -> None:
        """See `Recoveries.conclude`."""
        self._recoveries().conclude(recoveries)

    def _recoveries(self) -> Recoveries:
        is_restored = (lambda _open: None) if self._snapshots is None else self._snapshots.is_restored
        return Recoveries(self._serving, self._store, self.gates, self.records, is_restored)

    def record_late(self) -> None:
        """Try again to record what a full disk did not take."""
        self.records.write_late()


def _kind(request: Request, before: Route, after: Route) -> Kind:
    if request.kind is not Kind.SWITCH:
        return request.kind
    only_shares = after.is_split or (before.is_split and before.live is after.live)
    return Kind.WEIGHT if only_shares else Kind.SWITCH
