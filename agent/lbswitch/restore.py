r"""Bring back a snapshot: configuration and routes, through the gates and the transaction of a switch.

    hold all services -> read and verify -> same already? -> gates -> render, compare with what was rendered then, check
    -> INTENT with a snapshot of what there is -> install, reload, move the routes, verify every service
    -> the configuration file -> DONE
                              \-> anything fails: all of it as it was, the file included

The configuration file is the commit point. It is replaced in one rename after everything was seen, so an agent that
starts after a crash reads the old file and reverts, or the restored one and finishes (`recovery`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lbswitch.core import guard
from lbswitch.core.config import Config, ServiceConfig
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color, Gate, Intent, Kind, Operation, OperationState, Route, ServiceIntent
from lbswitch.differing import differences
from lbswitch.errors import Conflict, LbswitchError, Refused, StateError
from lbswitch.ports import Balancer, Rendered, Store
from lbswitch.replacement import Replacement
from lbswitch.serving import Serving, Standing
from lbswitch.snapshots import CONFIG, Kept, Snapshots
from lbswitch.stopwatch import Stopwatch
from lbswitch.switch import Request, Switcher

STEPS = (
    "gates", "render", "check", "intent", "prepare", "install", "reload", "commit", "verify", "file", "done", "revert",
)  # fmt: skip
_FORCED = ("freeze", "health", "clients", "pools", "rendering")
Facts = Mapping[tuple[str, Color], PoolFacts]


@dataclass(slots=True)
class _Part:
    """One service's part of a restore."""

    operation: Operation
    before: ServiceIntent | None
    after: ServiceIntent
    through: ServiceIntent
    """What it serves while the files change."""

    @property
    def service(self) -> str:
        return self.operation.service

    @property
    def was(self) -> ServiceIntent:
        """What it served; of a service that is new, what it will serve."""
        return self.before or self.after


@dataclass(slots=True)
class _Plan:
    """Everything that a restore is about."""

    kept: Kept
    text: str
    config: Config
    balancer: Balancer
    after: Intent
    parts: list[_Part]
    request: Request
    standing: Standing
    file: Replacement
    files: Rendered | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def replaces_file(self) -> bool:
        """Whether the configuration file has to change."""
        return not self.file.holds(self.text.encode())

    def changes_pool(self, service: str, color: Color) -> bool:
        """Whether that color is other servers, or judged otherwise, than now."""
        old, new = self.standing.config.services.get(service), self.config.services[service]
        return old is None or (old.pool(color), old.health) != (new.pool(color), new.health)


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
        self._snapshots = snapshots
        self._load = load
        self._refuse = refuse
        self._try_out = try_out
        self._clock = clock
        self._step = on_step or (lambda _name: None)

    def run(self, number: int, request: Request) -> list[Operation]:
        """Bring back a snapshot; `request.services` is not looked at: it is about all services of both configurations.

        Gives an operation for each service that takes part. Raises: UnknownSnapshot, Refused, Conflict, Busy,
        StateError (damaged); then nothing was changed.
        """
        kept = self._snapshots.archive.read(number)
        text, config, balancer = self._configuration(kept)
        request = replace(request, services=tuple({**self._serving.config.services, **config.services}))
        with self._switcher.held(request):
            watch = Stopwatch()
            plan = self._planned(kept, text, config, balancer, request)
            if self._is_already(plan):
                return self._already(plan, watch)
            self._step("gates")
            refusals = self._refusals(plan)
            watch.lap("gates")
            if refusals:
                return self._refused(plan, refusals, watch)
            return self._rehearsed(plan, watch) if request.dry_run else self._transact(plan, watch)

    def clean(self) -> None:
        """Remove what a crash left beside the configuration file."""
        Replacement(self._path).clean()

    # -- planning ----------------------------------------------------------------------------------------------

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
            raise Refused("restart", f"{said}\n{self._by_hand(number)}, and restart the agent") from error
        return text, config, balancer

    def _by_hand(self, number: int) -> str:
        return f"by hand: lbswitch snapshots show {number} --file {CONFIG}, put that into {self._path}"

    def _planned(self, kept: Kept, text: str, config: Config, balancer: Balancer, request: Request) -> _Plan:
        standing = self._serving.stand()
        generation = max(self._store.generation(), standing.intent.generation) + 1
        routes = {name: self._route(kept, config, name) for name in config.services}
        taking_part = self._taking_part(standing, config, routes)
        after = {
            name: self._after(standing.intent, kept, config, name, generation if name in taking_part else None)
            for name in config.services
        }
        ejected = frozenset(key for key in standing.intent.ejected if config.lists(key))
        parts = [self._part(standing, request, name, after[name]) for name in taking_part]
        intent = Intent(after, max(standing.intent.generation, generation), ejected)
        file = Replacement(self._path)
        return _Plan(kept, text, config, balancer, intent, parts, request, standing, file)

    def _route(self, kept: Kept, config: Config, name: str) -> Route:
        served = kept.intent.services.get(name)
        return Route(config.services[name].initial) if served is None else served.route

    def _taking_part(self, standing: Standing, config: Config, routes: Mapping[str, Route]) -> list[str]:
        """The services that will serve something else or be configured otherwise; when there is none, all."""
        found = [
            name
            for name, route in routes.items()
            if name not in standing.intent.services
            or standing.intent.services[name].route != route
            or standing.config.services.get(name) != config.services[name]
        ]
        return found or list(routes)

    def _after(self, intent: Intent, kept: Kept, config: Config, name: str, generation: int | None) -> ServiceIntent:
        now, then = intent.services.get(name), kept.intent.services.get(name)
        route = self._route(kept, config, name)
        weighted = (
            route.is_split
            or config.services[name].weights is not None
            or any(each is not None and each.weighted for each in (now, then))
        )
        kept_generation = now.generation if now is not None else intent.generation
        return ServiceIntent(route, generation or kept_generation, weighted)

    def _part(self, standing: Standing, request: Request, name: str, after: ServiceIntent) -> _Part:
        before = standing.intent.services.get(name)
        draft = Operation(
            id=0,
            kind=Kind.RESTORE,
            service=name,
            source=after.route.live,
            target=after.route.live,
            weight=100,
            state=OperationState.OPEN,
            generation=after.generation if before is None else before.generation,
            reason=request.reason,
            actor=request.actor,
            started_at=self._clock(),
            dry_run=request.dry_run,
        )
        was = after if before is None else replace(before, weighted=after.weighted)
        return _Part(draft.moving(was.route, after.route), before, after, was)

    def _is_already(self, plan: _Plan) -> bool:
        """Same routes and same configuration, in use, on disk, and seen at every listener."""
        is_same = plan.config == plan.standing.config and not plan.replaces_file
        stays = all(part.before is not None and part.before.route == part.after.route for part in plan.parts)
        return is_same and stays and all(self._serving.look(part.service).verified for part in plan.parts)

    def _already(self, plan: _Plan, watch: Stopwatch) -> list[Operation]:
        records, timings = self._switcher.records, watch.timings()
        ended = [records.end(part.operation, OperationState.ALREADY, timings=timings) for part in plan.parts]
        return [records.record(operation) for operation in ended]

    # -- gates ---------------------------------------------------------------------------------------------------

    def _refusals(self, plan: _Plan) -> dict[str, Gate]:
        """The first gate that says no to each service; `force` passes those in `_FORCED`, and the notes say so."""
        self._expect(plan)
        for gates in (self._gates_for_all(plan), self._gates_for_each(plan)):
            for services, gate in gates:
                if plan.request.force and gate.name in _FORCED:
                    plan.notes.append(f"forced past {gate.name}: {gate.message}")
                else:
                    return dict.fromkeys(services, gate)
        return {}

    def _expect(self, plan: _Plan) -> None:
        """Raises: Conflict, when a service whose traffic would move has another color live than was expected."""
        for part in plan.parts:
            moves = part.before is not None and part.before.route != part.after.route
            expected = plan.request.expect
            if expected is not None and moves and part.was.route.live is not expected:
                raise Conflict(
                    f"{part.service}: expected {expected} to be live, but {part.was.route} is (generation "
                    f"{part.was.generation}); nothing was changed"
                )

    def _gates_for_all(self, plan: _Plan) -> Iterator[tuple[Collection[str], Gate]]:
        services = [part.service for part in plan.parts]
        looks = (self._switcher.gates.balancer, lambda: self._file_gate(plan), lambda: self._clients_gate(plan))
        for look in looks:
            gate = look()
            if gate is not None:
                yield services, gate
        yield from ((services, gate) for gate in self._rendering_gates(plan))

    def _file_gate(self, plan: _Plan) -> Gate | None:
        obstacle = plan.file.obstacle() if plan.replaces_file else None
        if obstacle is None:
            return None
        return Gate("file", f"{obstacle}; nothing was changed. {self._by_hand(plan.kept.snapshot.id)}")

    def _clients_gate(self, plan: _Plan) -> Gate | None:
        """A service that has clients is not removed, nor moved away from them."""
        lost = guard.lost_listeners(plan.standing.config, plan.config, self._serving.usage.clients)
        return Gate("clients", "; ".join(lost)) if lost else None

    def _rendering_gates(self, plan: _Plan) -> Iterator[Gate]:
        """What is rendered today must be what was rendered then, must pass the checker, and must empty no pool."""
        self._step("render")
        try:
            other = self._rendered_otherwise(plan)
            if other is not None:
                yield other
            rendered = plan.balancer.render(plan.after)
            if rendered.revision == plan.balancer.installed():
                return
            plan.files = rendered
            self._step("check")
            plan.balancer.check(rendered)
            lost = self._lost_pools(plan, rendered)
        except LbswitchError as error:
            yield Gate("check", f"{error}; nothing was changed")
        else:
            if lost:
                yield Gate("pools", "; ".join(lost))

    def _rendered_otherwise(self, plan: _Plan) -> Gate | None:
        """Today's templates, or today's balancer, may make something else of the same configuration. Raises: ..."""
        then, facts = plan.kept.intent, plan.kept.facts
        if not facts["revision"]:
            return None
        services = {name: then.services.get(name, plan.after.services[name]) for name in plan.config.services}
        today = plan.balancer.render(Intent(services, then.generation, then.ejected))
        differs = differences(self._snapshots.archive.rendered(plan.kept), today)
        if not differs:
            return None
        version, was = plan.balancer.version(), facts["balancer"]["version"]
        what = "templates" if version == was else f"templates or {facts['balancer']['kind']} {version} (then {was})"
        return Gate(
            "rendering",
            f"today's {what} render other bytes than snapshot {plan.kept.snapshot.id} holds, so what served then can't "
            f"come back as it was; nothing was changed\n{differs}\n--force restores with what they render today",
        )

    def _lost_pools(self, plan: _Plan, rendered: Rendered) -> list[str]:
        installed = plan.standing.revision
        if installed is None:
            return []
        before = plan.balancer.pools(plan.balancer.read(installed))
        return guard.lost_pools(before, plan.balancer.pools(rendered), plan.config)

    def _gates_for_each(self, plan: _Plan) -> Iterator[tuple[Collection[str], Gate]]:
        for part in plan.parts:
            gate = self._switcher.gates.freeze(part.service, Kind.RESTORE)
            if gate is not None:
                yield [part.service], gate
        facts = self._facts(plan)
        for part in plan.parts:
            gate = self._health_gate(plan, part, facts) or self._way_gate(plan, part, facts)
            if gate is not None:
                yield [part.service], gate

    def _facts(self, plan: _Plan) -> Facts:
        """What checks say of servers that are not checked now, because they are not configured."""
        unknown = {
            part.service: plan.config.services[part.service]
            for part in plan.parts
            if any(plan.changes_pool(part.service, color) for color in Color)
        }
        return self._try_out(unknown) if unknown else {}

    def _health_gate(self, plan: _Plan, part: _Part, facts: Facts) -> Gate | None:
        """A color that gains traffic must be healthy, and one whose servers are others now, too."""
        after, before = part.after.route, None if part.before is None else part.before.route
        for color in Color:
            if (part.service, color) in facts and plan.changes_pool(part.service, color) and after.share(color) > 0:
                gate = _gate_of(color, facts[part.service, color], before)
                if gate is not None:
                    return gate
        if before is None or after.gains_from(before) is None:
            return None
        return self._known_gate(plan, part, after, before)

    def _known_gate(self, plan: _Plan, part: _Part, after: Route, before: Route) -> Gate | None:
        gaining = after.gains_from(before)
        if gaining is None or plan.changes_pool(part.service, gaining):
            return None
        return self._switcher.gates.color(part.service, gaining, before)

    def _way_gate(self, plan: _Plan, part: _Part, facts: Facts) -> Gate | None:
        """While the files change, traffic goes by the old route to the new servers or by the new route to the old."""
        if part.before is None or part.before.route == part.after.route:
            return None
        before, after = part.before.route, part.after.route
        used = [color for color in Color if before.share(color) > 0 and plan.changes_pool(part.service, color)]
        ailing = next((gate for color in used if (gate := _gate_of(color, facts[part.service, color], before))), None)
        if ailing is None:
            return None
        part.through = replace(part.after, generation=part.was.generation)
        for color in Color:
            gate = self._switcher.gates.color(part.service, color, before) if after.share(color) > 0 else None
            if gate is not None:
                return replace(
                    gate, message=f"on the way there is nowhere to go: {ailing.message}, and now {gate.message}"
                )
        return None

    # -- ends before anything has begun --------------------------------------------------------------------------

    def _refused(self, plan: _Plan, refusals: Mapping[str, Gate], watch: Stopwatch) -> list[Operation]:
        """All or nothing."""
        name, first = next(iter(refusals.items()))
        others = Gate(first.name, f"not restored because {name} was refused: {first.message}")
        records, timings, notes = self._switcher.records, watch.timings(), tuple(plan.notes)
        return [
            records.record(
                records.end(
                    part.operation,
                    OperationState.REFUSED,
                    gate=refusals.get(part.service, others),
                    timings=timings,
                    notes=notes,
                )
            )
            for part in plan.parts
        ]

    def _rehearsed(self, plan: _Plan, watch: Stopwatch) -> list[Operation]:
        watch.lap("render")
        notes = (*plan.notes, *_would(plan))
        end, timings = self._switcher.records.end, watch.timings()
        return [end(part.operation, OperationState.DONE, timings=timings, notes=notes) for part in plan.parts]

    # -- the transaction -------------------------------------------------------------------------------------------

    def _transact(self, plan: _Plan, watch: Stopwatch) -> list[Operation]:
        has_begun = False
        with self._serving.mutex:
            self._refuse_other_ground(plan)
            try:
                self._begin(plan)
                watch.lap("render")
                has_begun = True
                through = {**plan.after.services, **{part.service: part.through for part in plan.parts}}
                self._serving.adopt(plan.config, plan.balancer, plan.after, through, plan.files)
                watch.lap("commit")
                self._serving.verify(plan.after.services, reloaded=plan.files is not None)
                watch.lap("verify")
                self._step("file")
                if plan.replaces_file:
                    plan.file.apply()
                self._step("done")
                ended = self._completed(plan, watch)
                self._store.finish(ended, {part.service: part.after for part in plan.parts})
            except LbswitchError as error:
                return self._failed(plan, error, watch, has_begun=has_begun)
            finally:
                plan.file.clean()
        self._forget_removed(plan)
        self._switcher.records.tell(*ended)
        return ended

    def _refuse_other_ground(self, plan: _Plan) -> None:
        """The gates looked at what is configured and installed. Raises: Conflict when that has changed meanwhile."""
        now, then = self._serving.stand(), plan.standing
        if now.config is not then.config or now.revision != then.revision:
            raise Conflict("another change of the configuration came between; nothing was changed, try again")
        plan.after = plan.after.with_ejected(frozenset(key for key in now.intent.ejected if plan.config.lists(key)))

    def _begin(self, plan: _Plan) -> None:
        """The new file is staged and INTENT is on disk before anything moves. Raises: StateError."""
        if plan.replaces_file:
            plan.file.stage(plan.text.encode())
        snapshot = self._snapshots.draft(str(Kind.RESTORE), restores=plan.kept.snapshot.id)
        self._step("intent")
        drafts = [replace(part.operation, generation=part.after.generation) for part in plan.parts]
        before = {part.service: part.was for part in plan.parts}
        after = {part.service: part.after for part in plan.parts}
        for part, begun in zip(plan.parts, self._store.begin(drafts, before, after, snapshot), strict=True):
            part.operation = begun

    def _completed(self, plan: _Plan, watch: Stopwatch) -> list[Operation]:
        end, timings, notes = self._switcher.records.end, watch.timings(), (*plan.notes, *_did(plan))
        return [end(part.operation, OperationState.DONE, timings=timings, notes=notes) for part in plan.parts]

    def _forget_removed(self, plan: _Plan) -> None:
        """What is intended is that of the configured services alone; left-overs do no harm."""
        try:
            self._store.save_services(plan.after.services, plan.after.generation)
        except StateError as error:
            plan.notes.append(str(error))

    def _failed(self, plan: _Plan, error: LbswitchError, watch: Stopwatch, *, has_begun: bool) -> list[Operation]:
        """Put everything back, the file first, and say how that went."""
        state, message = OperationState.REVERTED, f"{error}; all is as it was before"
        if has_begun:
            try:
                plan.file.revert()
                self._serving.forgo(plan.standing)
            except LbswitchError as second:
                state, message = OperationState.FAILED, f"{error}; putting back failed too: {second}"
        watch.lap("verify")
        return self._ended_badly(plan, state, message, watch)

    def _ended_badly(self, plan: _Plan, state: OperationState, message: str, watch: Stopwatch) -> list[Operation]:
        records, timings, notes = self._switcher.records, watch.timings(), tuple(plan.notes)
        ended = [
            records.end(
                replace(part.operation, generation=part.was.generation),
                state,
                error=message,
                timings=timings,
                notes=notes,
            )
            for part in plan.parts
        ]
        if plan.parts[0].operation.id == 0:
            return [records.record(operation) for operation in ended]
        records.finish_or_keep(ended, {part.service: part.before for part in plan.parts if part.before is not None})
        records.tell(*ended)
        return ended


def _gate_of(color: Color, facts: PoolFacts, serving: Route | None) -> Gate | None:
    if facts.state is PoolState.HEALTHY:
        return None
    still = "nothing was changed" if serving is None else f"{serving} is still serving"
    return Gate("health", f"{color} of the snapshot is {facts.state}: {facts.summary}; {still}")


def _would(plan: _Plan) -> Iterator[str]:
    """For a dry run."""
    yield "would change rendered files and reload" if plan.files is not None else "would reload nothing"
    if plan.replaces_file:
        yield f"would replace {plan.file.path}"
    yield from (f"would remove {name}" for name in _removed(plan))


def _did(plan: _Plan) -> Iterator[str]:
    yield f"snapshot {plan.kept.snapshot.id} is restored"
    yield from (f"{name} was removed: the snapshot does not have it" for name in _removed(plan))


def _removed(plan: _Plan) -> Sequence[str]:
    return sorted(plan.standing.config.services.keys() - plan.config.services.keys())
