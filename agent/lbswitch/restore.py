r"""Bring back a snapshot: configuration and routes, through the gates and the transaction of a switch.

    hold all services -> read and verify -> same already? -> gates -> render, compare with what was rendered then, check
    -> INTENT with a snapshot of what there is -> install, reload, move the routes, verify every service
    -> the configuration file -> DONE
                              \-> anything fails: all of it as it was, the file included

The configuration file is the commit point. It is replaced in one rename after everything was seen, so an agent that
starts after a crash reads the old file and reverts, or the restored one and finishes (`recovery`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lbswitch.core.config import Config, ServiceConfig
from lbswitch.core.model import Gate, Kind, Operation, OperationState
from lbswitch.errors import Conflict, LbswitchError, Refused, StateError
from lbswitch.ports import Balancer, Store
from lbswitch.replacement import Replacement
from lbswitch.restore_gates import Facts, RestoreGates, by_hand
from lbswitch.restore_plan import Part, Plan, Planner
from lbswitch.serving import Serving
from lbswitch.snapshots import Kept, Snapshots
from lbswitch.stopwatch import Stopwatch
from lbswitch.switch import Request, Switcher

STEPS = (
    "gates", "render", "check", "intent", "prepare", "install", "reload", "commit", "verify", "file", "done", "revert",
)  # fmt: skip


class Restorer:
    """Runs restores. Blocks; call it from worker threads."""

    def __init__(
        self,
        config_path: Path,
        serving: Serving,
        store: Store,
        switcher: Switcher,
        snapshots: Snapshots,
        load: Callable[[str], tuple[Config, Balancer]],
        refuse: Callable[[Config, Config], None],
        try_out: Callable[[Mapping[str, ServiceConfig]], Facts],
        clock: Callable[[], float] = time.time,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        """`load` reads a configuration's text and makes its balancer; `refuse` raises for what needs a restart.

        `try_out` checks servers that are not checked now, until each color of these services has a verdict.
        """
        self._path = config_path
        self._serving = serving
        self._store = store
        self._switcher = switcher
        self._records = switcher.records
        self._snapshots = snapshots
        self._load = load
        self._refuse = refuse
        self._clock = clock
        self._step = on_step or (lambda _name: None)
        self._gates = RestoreGates(serving, switcher.gates, snapshots.archive, try_out, self._step)

    def run(self, number: int, request: Request) -> list[Operation]:
        """Bring back a snapshot; `request.services` is not looked at: it is about all services of both configurations.

        Gives an operation for each service that takes part. Raises: UnknownSnapshot, Refused, Conflict, Busy,
        StateError (damaged); then nothing was changed.
        """
        kept = self._snapshots.archive.read(number)
        text, config, balancer = self._configuration(kept)
        request = replace(request, services=tuple({**self._serving.config.services, **config.services}))
        with self._switcher.held(request):
            return self._run(self._plan(kept, text, config, balancer, request))

    def clean(self) -> None:
        """Remove what a crash left beside the configuration file."""
        Replacement(self._path).clean()

    def _run(self, plan: Plan) -> list[Operation]:
        watch = Stopwatch()
        if self._is_already(plan):
            return self._end(plan, OperationState.ALREADY, watch)
        self._step("gates")
        refusals = self._gates.refusals(plan)
        watch.lap("gates")
        if refusals:
            return self._end(plan, OperationState.REFUSED, watch, gates=_all_or_nothing(plan, refusals))
        if plan.request.dry_run:
            plan.notes += _would(plan)
            return self._end(plan, OperationState.DONE, watch)
        return self._transact(plan, watch)

    # -- planning ------------------------------------------------------------------------------------------------

    def _configuration(self, kept: Kept) -> tuple[str, Config, Balancer]:
        """What the snapshot was configured to. Raises: Refused."""
        number = kept.snapshot.id
        text = self._snapshots.archive.config_text(kept)
        if text is None:
            raise Refused("configuration", f"snapshot {number} holds no configuration; nothing was changed")
        try:
            config, balancer = self._load(text)
        except LbswitchError as error:
            raise Refused("configuration", f"snapshot {number} can't be used with this version: {error}") from error
        try:
            self._refuse(self._serving.config, config)
        except LbswitchError as error:
            said = str(error).replace("nothing of the file was applied", "nothing was changed")
            raise Refused("restart", f"{said}\n{by_hand(number, self._path)}, then restart the agent") from error
        return text, config, balancer

    def _plan(self, kept: Kept, text: str, config: Config, balancer: Balancer, request: Request) -> Plan:
        standing = self._serving.stand()
        generation = max(self._store.generation(), standing.intent.generation) + 1
        planner = Planner(kept, config, standing, request, generation, self._clock())
        parts = planner.parts()
        after = planner.after(parts)
        return Plan(kept, text, config, balancer, after, parts, request, standing, Replacement(self._path))

    def _is_already(self, plan: Plan) -> bool:
        """Same routes and same configuration, in use, on disk, and seen at every listener."""
        if plan.config != plan.standing.config or plan.replaces_file or any(part.moves for part in plan.parts):
            return False
        return all(self._serving.look(part.service).verified for part in plan.parts)

    # -- the transaction -----------------------------------------------------------------------------------------

    def _transact(self, plan: Plan, watch: Stopwatch) -> list[Operation]:
        has_begun = False
        with self._serving.mutex:
            self._refuse_other_ground(plan)
            try:
                self._begin(plan)
                watch.lap("render")
                has_begun = True
                ended = self._adopt(plan, watch)
            except Exception as error:
                return self._failed(plan, self._records.unforeseen(error), watch, has_begun=has_begun)
            finally:
                plan.file.clean()
        self._forget_removed(plan)
        self._records.tell(*ended)
        return ended

    def _refuse_other_ground(self, plan: Plan) -> None:
        """The gates looked at what is configured and installed. Raises: Conflict when that has changed meanwhile."""
        now, then = self._serving.stand(), plan.standing
        if now.config is not then.config or now.revision != then.revision:
            raise Conflict("another change of the configuration came between; nothing was changed, try again")
        plan.after = plan.after.with_ejected(frozenset(key for key in now.intent.ejected if plan.config.lists(key)))

    def _begin(self, plan: Plan) -> None:
        """The new file is staged and INTENT is on disk before anything moves. Raises: StateError."""
        if plan.replaces_file:
            plan.file.stage(plan.text.encode())
        self._step("intent")
        snapshot = self._snapshots.draft(str(Kind.RESTORE), restores=plan.kept.snapshot.id)
        drafts = [replace(part.operation, generation=part.after.generation) for part in plan.parts]
        before = {part.service: part.was for part in plan.parts}
        after = {part.service: part.after for part in plan.parts}
        for part, begun in zip(plan.parts, self._store.begin(drafts, before, after, snapshot), strict=True):
            part.operation = begun

    def _adopt(self, plan: Plan, watch: Stopwatch) -> list[Operation]:
        """Serve it, see it, and only then replace the file. Raises: BalancerError, StateError."""
        self._serving.adopt(plan.config, plan.balancer, plan.after, plan.through, plan.files)
        watch.lap("commit")
        self._serving.verify(plan.after.services, reloaded=plan.files is not None)
        watch.lap("verify")
        self._step("file")
        if plan.replaces_file:
            plan.file.apply()
        self._step("done")
        notes, timings = (*plan.notes, *_did(plan)), watch.timings()
        ended = [
            self._records.end(part.operation, OperationState.DONE, notes=notes, timings=timings) for part in plan.parts
        ]
        self._store.finish(ended, {part.service: part.after for part in plan.parts})
        return ended

    def _forget_removed(self, plan: Plan) -> None:
        """Only the services that are configured are intended; rows of others are not looked at, so it may fail."""
        with contextlib.suppress(StateError):
            self._store.save_services(plan.after.services, plan.after.generation)

    def _failed(self, plan: Plan, error: LbswitchError, watch: Stopwatch, *, has_begun: bool) -> list[Operation]:
        """Put everything back, the file first, and say how that went."""
        state, message = OperationState.REVERTED, f"{error}; all is as it was before"
        if has_begun:
            try:
                plan.file.revert()
                self._serving.forgo(plan.standing)
            except Exception as second:
                why = self._records.unforeseen(second)
                state, message = OperationState.FAILED, f"{error}; putting back failed too: {why}"
        watch.lap("verify")
        return self._end(plan, state, watch, error=message)

    def _end(
        self,
        plan: Plan,
        state: OperationState,
        watch: Stopwatch,
        *,
        gates: Mapping[str, Gate] | None = None,
        error: str | None = None,
    ) -> list[Operation]:
        """Nothing has changed, or nothing any more; into the history, or to the end of what has begun there."""
        timings, notes = watch.timings(), tuple(plan.notes)
        ended = [
            self._records.end(
                replace(part.operation, generation=_generation(part, state)),
                state,
                gate=(gates or {}).get(part.service),
                error=error,
                timings=timings,
                notes=notes,
            )
            for part in plan.parts
        ]
        if plan.parts[0].operation.id == 0:
            return [self._records.record(operation) for operation in ended]
        before = {part.service: part.before for part in plan.parts if part.before is not None}
        self._records.finish_or_keep(ended, before)
        self._records.tell(*ended)
        return ended


def _generation(part: Part, state: OperationState) -> int:
    """A rehearsal tells the generation that there would be."""
    return part.after.generation if state is OperationState.DONE else part.was.generation


def _all_or_nothing(plan: Plan, refusals: Mapping[str, Gate]) -> dict[str, Gate]:
    """One refused service keeps all where they are."""
    name, first = next(iter(refusals.items()))
    others = Gate(first.name, f"not restored because {name} was refused: {first.message}")
    return {part.service: refusals.get(part.service, others) for part in plan.parts}


def _would(plan: Plan) -> Iterator[str]:
    """For a dry run."""
    yield "would change rendered files and reload" if plan.files is not None else "would reload nothing"
    if plan.replaces_file:
        yield f"would replace {plan.file.path}"
    yield from (f"would remove {name}" for name in plan.removed)


def _did(plan: Plan) -> Sequence[str]:
    removed = [f"{name} was removed: the snapshot does not have it" for name in plan.removed]
    return [f"snapshot {plan.kept.snapshot.id} is restored", *removed]
