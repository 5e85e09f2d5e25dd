"""What must hold before a restore begins: the balancer, the file, the clients, what is rendered, freeze and health."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from lbswitch.core import guard
from lbswitch.core.config import ServiceConfig
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color, Gate, Intent, Kind, Route
from lbswitch.differing import differences
from lbswitch.errors import Conflict, LbswitchError
from lbswitch.gates import Gates
from lbswitch.restore_plan import Part, Plan
from lbswitch.serving import Serving
from lbswitch.snapshots import CONFIG, Archive

FORCED = ("freeze", "health", "clients", "pools", "rendering")
Facts = Mapping[tuple[str, Color], PoolFacts]
Refusal = tuple[Collection[str], Gate]


class RestoreGates:
    """Looks, and changes nothing but the plan: the files that it rendered, and the way that traffic takes."""

    def __init__(
        self,
        serving: Serving,
        gates: Gates,
        archive: Archive,
        try_out: Callable[[Mapping[str, ServiceConfig]], Facts],
        step: Callable[[str], None],
    ) -> None:
        """`try_out` checks servers that are not checked now, until each color of these services has a verdict."""
        self._serving = serving
        self._gates = gates
        self._archive = archive
        self._try_out = try_out
        self._step = step

    def refusals(self, plan: Plan) -> dict[str, Gate]:
        """The first gate that says no, by service; `force` passes those in `FORCED`, and the notes say so.

        Raises: Conflict, when a service whose traffic would move has another color live than was expected.
        """
        _expect(plan)
        for gates in (self._for_all(plan), self._for_each(plan)):
            for services, gate in gates:
                if not (plan.request.force and gate.name in FORCED):
                    return dict.fromkeys(services, gate)
                plan.notes.append(f"forced past {gate.name}: {gate.message}")
        return {}

    # -- for all at once -----------------------------------------------------------------------------------------

    def _for_all(self, plan: Plan) -> Iterator[Refusal]:
        services = [part.service for part in plan.parts]
        for look in (self._gates.balancer, lambda: _file(plan), lambda: self._clients(plan)):
            gate = look()
            if gate is not None:
                yield services, gate
        yield from ((services, gate) for gate in self._rendering(plan))

    def _clients(self, plan: Plan) -> Gate | None:
        """A service that has clients is not removed, nor moved away from them."""
        lost = guard.lost_listeners(plan.standing.config, plan.config, self._serving.usage.clients)
        return Gate("clients", "; ".join(lost)) if lost else None

    def _rendering(self, plan: Plan) -> Iterator[Gate]:
        """What is rendered today must be what was rendered then, must pass the checker, and must empty no pool."""
        self._step("render")
        try:
            other = self._rendered_otherwise(plan)
            if other is not None:
                yield other
            rendered = plan.balancer.render(plan.after)
            if rendered.revision == plan.standing.revision:
                return
            plan.files = rendered
            self._step("check")
            plan.balancer.check(rendered)
            lost = _lost_pools(plan)
        except LbswitchError as error:
            yield Gate("check", str(error))
        else:
            if lost:
                yield Gate("pools", "; ".join(lost))

    def _rendered_otherwise(self, plan: Plan) -> Gate | None:
        """Today's templates or balancer may make something else of the same. Raises: BalancerError, StateError."""
        then, facts = plan.kept.intent, plan.kept.facts
        if not facts["revision"]:
            return None
        services = {name: then.services.get(name, plan.after.services[name]) for name in plan.config.services}
        today = plan.balancer.render(Intent(services, then.generation, then.ejected))
        differs = differences(self._archive.rendered(plan.kept), today)
        if not differs:
            return None
        kind, was, version = facts["balancer"]["kind"], facts["balancer"]["version"], plan.balancer.version()
        what = "templates" if version == was else f"templates or {kind} {version} (then it was {was})"
        return Gate(
            "rendering",
            f"today's {what} render something else than snapshot {plan.kept.snapshot.id} holds, so that what served "
            f"then can't come back as it was\n{differs}",
        )

    # -- for each service ----------------------------------------------------------------------------------------

    def _for_each(self, plan: Plan) -> Iterator[Refusal]:
        for part in plan.parts:
            gate = self._gates.freeze(part.service, Kind.RESTORE)
            if gate is not None:
                yield [part.service], gate
        facts = self._facts(plan)
        for part in plan.parts:
            for gate in (self._health(plan, part, facts), self._way(plan, part, facts)):
                if gate is not None:
                    yield [part.service], gate

    def _facts(self, plan: Plan) -> Facts:
        """What checks say of servers that are not checked now, since they are not configured so."""
        unknown = {
            part.service: plan.config.services[part.service]
            for part in plan.parts
            if any(plan.changes_pool(part.service, color) for color in Color)
        }
        return self._try_out(unknown) if unknown else {}

    def _health(self, plan: Plan, part: Part, facts: Facts) -> Gate | None:
        """A color that gains traffic must be healthy, and one that gets some and is other servers than now."""
        before = None if part.before is None else part.before.route
        for color in Color:
            if plan.changes_pool(part.service, color) and part.after.route.share(color) > 0:
                gate = _ailing(color, facts[part.service, color], before)
                if gate is not None:
                    return gate
        gaining = None if before is None else part.after.route.gains_from(before)
        if before is None or gaining is None or plan.changes_pool(part.service, gaining):
            return None
        return self._gates.color(part.service, gaining, before)

    def _way(self, plan: Plan, part: Part, facts: Facts) -> Gate | None:
        """While the files change, traffic goes by the old route to the new servers or by the new route to the old."""
        if part.before is None or not part.moves:
            return None
        before, after = part.before.route, part.after.route
        used = [color for color in Color if before.share(color) > 0 and plan.changes_pool(part.service, color)]
        ailing = next((gate for color in used if (gate := _ailing(color, facts[part.service, color], before))), None)
        if ailing is None:
            return None
        part.through = replace(part.after, generation=part.before.generation)
        for color in [color for color in Color if after.share(color) > 0]:
            gate = self._gates.color(part.service, color, before)
            if gate is not None:
                no_way = f"there is no safe way from {before} to {after}: {ailing.message}"
                return replace(gate, message=f"{no_way}; and as configured now {gate.message}")
        return None


def _expect(plan: Plan) -> None:
    """Raises: Conflict."""
    expected = plan.request.expect
    for part in plan.parts:
        if expected is not None and part.moves and part.was.route.live is not expected:
            raise Conflict(
                f"{part.service}: expected {expected} to be live, but {part.was.route} is (generation "
                f"{part.was.generation}); nothing was changed"
            )


def _file(plan: Plan) -> Gate | None:
    obstacle = plan.file.obstacle() if plan.replaces_file else None
    return None if obstacle is None else Gate("file", f"{obstacle}; {by_hand(plan.kept.snapshot.id, plan.file.path)}")


def by_hand(number: int, path: object) -> str:
    """How a person puts the configuration back."""
    return f"by hand: lbswitch snapshots show {number} --file {CONFIG}, and put that into {path}, then restore again"


def _lost_pools(plan: Plan) -> list[str]:
    """Raises: StateError."""
    if plan.standing.revision is None or plan.files is None:
        return []
    before = plan.balancer.pools(plan.balancer.read(plan.standing.revision))
    return guard.lost_pools(before, plan.balancer.pools(plan.files), plan.config)


def _ailing(color: Color, facts: PoolFacts, serving: Route | None) -> Gate | None:
    if facts.state is PoolState.HEALTHY:
        return None
    still = "it does not serve yet" if serving is None else f"{serving} is still serving"
    return Gate("health", f"{color} of the snapshot is {facts.state}: {facts.summary}; {still}")
