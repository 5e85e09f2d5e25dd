"""What becomes of the operations that a crash left open: each is finished or reverted, and a restore as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lbswitch.core.model import Intent, Kind, OperationState, ServiceIntent
from lbswitch.errors import LbswitchError
from lbswitch.gates import Gates
from lbswitch.ports import OpenOperation, Store
from lbswitch.records import Records
from lbswitch.serving import Serving, Undo


@dataclass(frozen=True, slots=True)
class Recovery:
    """What becomes of one operation that a crash left open: finished, or reverted, and why.

    `together` are the services that stay together; `stands` means that there is no way back any more, since the
    configuration file is the restored one, which was put in its place after all had been seen.
    """

    open: OpenOperation
    finish: bool
    why: str
    together: tuple[str, ...] = ()
    stands: bool = False

    @property
    def service(self) -> str:
        """The service it is about."""
        return self.open.operation.service

    @property
    def serves(self) -> ServiceIntent:
        """What the service serves from now on."""
        return self.open.after if self.finish else self.open.before


class Recoveries:
    """`recover` decides, `Serving.start` acts, `conclude` ends."""

    def __init__(
        self,
        serving: Serving,
        store: Store,
        gates: Gates,
        records: Records,
        is_restored: Callable[[OpenOperation], bool | None],
    ) -> None:
        """`is_restored` says whether the configuration in use is the one of the snapshot that was being restored.

        None when the restore did not change the configuration.
        """
        self._serving = serving
        self._store = store
        self._gates = gates
        self._records = records
        self._is_restored = is_restored

    def recover(self) -> list[Recovery]:
        """What to do about the operations that a crash left open, and what their services serve until then.

        One that had moved the pointer is finished if its target is healthy, all others are reverted: starting the agent
        never moves traffic to a color that did not have it. The parts of a restore share one fate. `Serving.start` acts
        on the result, and `conclude` ends the operations when it was seen; until then they stay open, for the next
        agent if this one dies too.
        """
        on_disk = self._serving.balancer.committed()
        unfinished = self._not_outlived(self._store.unfinished())
        restored = [each for each in unfinished if each.operation.kind is Kind.RESTORE]
        decided = [self._decided(each, on_disk) for each in unfinished if each.operation.kind is not Kind.RESTORE]
        recoveries = []
        for recovery in [*decided, *self._restore(restored, on_disk)]:
            if recovery.service in self._serving.config.services:
                recoveries.append(recovery)
            else:
                why = recovery.why if recovery.together else "the service is no longer configured"
                self._close(replace(recovery, finish=False, why=why))
        return recoveries

    def _not_outlived(self, unfinished: Sequence[OpenOperation]) -> list[OpenOperation]:
        """Those that were the last of their service; what serves elsewhere is a later one's.

        The others were put back, and their end could not be written before another one was done: they are ended.
        """
        stored, last = self._store.services(), []
        for each in unfinished:
            now = stored.get(each.operation.service)
            if now is None or now.generation <= each.after.generation:
                last.append(each)
            else:
                why = f"it was put back, and another operation has moved traffic to {now.route} since"
                self._end(Recovery(each, finish=False, why=why), now)
        return last

    def _decided(self, each: OpenOperation, on_disk: Intent | None) -> Recovery:
        if each.operation.service not in self._serving.config.services:
            return Recovery(each, finish=False, why="the service is no longer configured")
        finish, why = self._is_to_be_finished(each, on_disk)
        return Recovery(each, finish, why)

    def _is_to_be_finished(self, each: OpenOperation, on_disk: Intent | None) -> tuple[bool, str]:
        if not _had_moved(each, on_disk):
            return False, "the agent ended before traffic had moved"
        before, after = each.before.route, each.after.route
        gate = self._gates.health(each.operation.service, before, after)
        if gate is None:
            return True, f"the agent ended after traffic had moved to {after}, which is healthy"
        return False, f"the agent ended after traffic had moved, and {gate.message}; back to {before}"

    def _restore(self, parts: Sequence[OpenOperation], on_disk: Intent | None) -> list[Recovery]:
        """All parts of the restore that a crash left open; there is one at most."""
        if not parts:
            return []
        together = tuple(each.operation.service for each in parts)
        restored = self._is_restored(parts[0])
        if restored is None:
            finish, why = self._all_to_be_finished(parts, on_disk)
        elif restored:
            finish, why = True, "the agent ended after all was seen and the configuration file was in its place"
        else:
            finish, why = False, "the agent ended before the configuration file was in its place"
        return [Recovery(each, finish, why, together, stands=bool(restored)) for each in parts]

    def _all_to_be_finished(self, parts: Sequence[OpenOperation], on_disk: Intent | None) -> tuple[bool, str]:
        for each in parts:
            finish, why = self._is_to_be_finished(each, on_disk)
            if not finish:
                return False, f"{each.operation.service}: {why}" if len(parts) > 1 else why
        return True, "the agent ended after traffic had moved, and all that gained it is healthy"

    def conclude(self, recoveries: Sequence[Recovery]) -> None:
        """End recovered operations; what was to be finished but is not seen at the listener is put back."""
        returned: dict[str, str] = {}
        for recovery in recoveries:
            detail = self._unseen(recovery)
            if detail is not None and recovery.finish and not recovery.stands:
                together = recovery.together or (recovery.service,)
                returned |= dict.fromkeys(together, detail)
        self._put_back([recovery for recovery in recoveries if recovery.service in returned])
        for recovery in recoveries:
            if recovery.service in returned:
                detail = returned[recovery.service]
                why = f"{recovery.why}, but it is not seen: {detail}; back to {recovery.open.before.route}"
                recovery = replace(recovery, finish=False, why=why)
            elif recovery.stands and (detail := self._unseen(recovery)) is not None:
                recovery = replace(recovery, why=f"{recovery.why}; it is not seen now: {detail}")
            self._close(recovery)

    def _unseen(self, recovery: Recovery) -> str | None:
        sight = self._serving.sights.get(recovery.service)
        if sight is None:
            return "the balancer is not running"
        return None if sight.verified else sight.detail

    def _put_back(self, recoveries: Sequence[Recovery]) -> None:
        groups = dict.fromkeys(recovery.together or (recovery.service,) for recovery in recoveries)
        for group in groups:
            before = {one.service: one.open.before for one in recoveries if one.service in group}
            with contextlib.suppress(LbswitchError):  # said by `look` and tried again by `settle`
                self._serving.put_back(Undo(before, None))

    def _close(self, recovery: Recovery) -> None:
        self._end(recovery, recovery.serves)

    def _end(self, recovery: Recovery, serves: ServiceIntent) -> None:
        operation = recovery.open.operation
        state = OperationState.DONE if recovery.finish else OperationState.REVERTED
        operation = replace(operation, notes=(*operation.notes, recovery.why))
        if not recovery.finish:
            operation = replace(operation, generation=recovery.open.before.generation, error=recovery.why)
        ended = self._records.end(operation, state)
        self._store.finish([ended], {operation.service: serves})
        self._records.tell(ended)


def _had_moved(each: OpenOperation, on_disk: Intent | None) -> bool:
    found = None if on_disk is None else on_disk.services.get(each.operation.service)
    return found is not None and found.generation == each.after.generation
