"""How operations get into the history and are told: the same for switches, restores and what a crash left open."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from lbswitch.core.model import Operation, OperationState, ServiceIntent
from lbswitch.errors import LbswitchError, StateError
from lbswitch.events import Events
from lbswitch.ports import Store

_UNRECORDED = 1000
_LEVELS = {OperationState.DONE: "info", OperationState.ALREADY: "info", OperationState.REFUSED: "warning"}


class Records:
    """Writes how operations ended, and tells everybody."""

    def __init__(self, store: Store, events: Events, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self._store = store
        self._events = events
        self._clock = clock
        self._late: list[tuple[list[Operation], dict[str, ServiceIntent]]] = []
        self._unrecorded: deque[Operation] = deque(maxlen=_UNRECORDED)

    def end(self, operation: Operation, state: OperationState, **changes: object) -> Operation:
        """This operation, over; nothing is written yet."""
        return operation.ended(state, now=self._clock(), **changes)

    def record(self, operation: Operation) -> Operation:
        """Into the history, unless it is a rehearsal; a store that fails now must not hide the outcome."""
        if operation.dry_run:
            return operation
        try:
            operation = self._store.record(operation)
        except StateError as error:
            self._unrecorded.append(operation)
            self._events.emit("history-not-written", f"{error}; it will be tried again", operation.service, "error")
        self.tell(operation)
        return operation

    def finish_or_keep(self, ended: list[Operation], services: dict[str, ServiceIntent]) -> None:
        """Write how they ended; what can't be written now is kept for `write_late`."""
        try:
            self._store.finish(ended, services)
        except StateError as error:
            self._late.append((ended, services))
            self._events.emit("history-not-written", f"{error}; it will be tried again", ended[0].service, "error")

    def write_late(self) -> None:
        """Try again to record what a full disk did not take."""
        while self._late:
            ended, services = self._late[0]
            try:
                self._store.finish(ended, {**services, **self._moved_since(ended)})
            except StateError:
                return
            del self._late[0]
        with suppress(IndexError, StateError):
            while True:
                self._store.record(self._unrecorded[0])
                self._unrecorded.popleft()

    def _moved_since(self, ended: Sequence[Operation]) -> dict[str, ServiceIntent]:
        """What later operations have left, of the services of these. Raises: StateError."""
        stored = self._store.services()
        begun = [found for each in ended if (found := self._store.operation(each.id)) is not None]
        return {
            each.service: now
            for each in begun
            if (now := stored.get(each.service)) is not None and now.generation > each.generation
        }

    def unforeseen(self, error: Exception) -> LbswitchError:
        """The error itself if it is one of ours; else one that says so, after the log has got the traceback.

        A bug in the middle of a switch has to be put back like everything else that goes wrong there.
        """
        if isinstance(error, LbswitchError):
            return error
        found = LbswitchError(f"unexpected {type(error).__name__}: {error}; please report it")
        self._events.emit("bug", str(found), None, "error", traceback="".join(traceback.format_exception(error)))
        return found

    def tell(self, *operations: Operation) -> None:
        """Say to log and listeners how these ended."""
        for operation in operations:
            level = _LEVELS.get(operation.state, "error")
            told = operation.to_json()
            self._events.emit(str(operation.kind), describe(operation), operation.service, level, operation=told)


def describe(operation: Operation) -> str:
    """The one sentence about an operation that log, history and alerts share."""
    what = f"{operation.service}: {operation.kind} {operation.source} -> {operation.target}"
    share = "" if operation.weight == 100 else f" {operation.weight}%"
    why = f" because {operation.reason}" if operation.reason else ""
    if operation.state is OperationState.DONE and operation.timings.total == 0:
        return f"{what}{share} done, {'; '.join(operation.notes)}"
    if operation.state is OperationState.DONE:
        return f"{what}{share} done in {operation.timings.total:.1f} ms, generation {operation.generation}{why}"
    if operation.state is OperationState.ALREADY:
        return f"{operation.service}: {operation.target}{share} already serves, generation {operation.generation}"
    if operation.gate is not None:
        return f"{what}{share} refused by {operation.gate.name}: {operation.gate.message}"
    return f"{what}{share} {operation.state}: {operation.error}"


def still_serving(services: Sequence[str]) -> str:
    """`shop on blue and blog on green`, of the first three."""
    return " and ".join(sorted(set(services[:3])))
