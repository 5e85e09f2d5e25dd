"""What a restore is about: the two configurations, and each service's part with what it served and will serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Kind, Operation, OperationState, Route, ServiceIntent
from lbswitch.ports import Balancer, Rendered
from lbswitch.replacement import Replacement
from lbswitch.serving import Standing
from lbswitch.snapshots import Kept
from lbswitch.switch import Request


@dataclass(slots=True)
class Part:
    """One service's part; `through` is what it serves while the files change."""

    operation: Operation
    before: ServiceIntent | None
    after: ServiceIntent
    through: ServiceIntent

    @property
    def service(self) -> str:
        """Its name."""
        return self.operation.service

    @property
    def was(self) -> ServiceIntent:
        """What it served; of a service that is new, what it will serve."""
        return self.before or self.after

    @property
    def moves(self) -> bool:
        """Whether traffic that it has goes elsewhere."""
        return self.before is not None and self.before.route != self.after.route


@dataclass(slots=True)
class Plan:
    """Everything that a restore is about; `files` are what has to be installed, once that is known."""

    kept: Kept
    text: str
    config: Config
    balancer: Balancer
    after: Intent
    parts: list[Part]
    request: Request
    standing: Standing
    file: Replacement
    files: Rendered | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def replaces_file(self) -> bool:
        """Whether the configuration file has to change."""
        return not self.file.holds(self.text.encode())

    @property
    def through(self) -> dict[str, ServiceIntent]:
        """What every service of the restored configuration serves while the files change."""
        return {**self.after.services, **{part.service: part.through for part in self.parts}}

    @property
    def removed(self) -> Sequence[str]:
        """Services that will be gone."""
        return sorted(self.standing.config.services.keys() - self.config.services.keys())

    def changes_pool(self, service: str, color: Color) -> bool:
        """Whether that color is other servers, or judged otherwise, than now."""
        old, new = self.standing.config.services.get(service), self.config.services[service]
        return old is None or (old.pool(color), old.health) != (new.pool(color), new.health)


@dataclass(frozen=True, slots=True)
class Planner:
    """Works out the routes and generations of a restore. Reads nothing and changes nothing."""

    kept: Kept
    config: Config
    standing: Standing
    request: Request
    generation: int
    """The one that services which take part get."""
    now: float

    def parts(self) -> list[Part]:
        """The services that will serve something else or be configured otherwise; when there is none, all."""
        names = [name for name in self.config.services if self._changes(name)]
        return [self._part(name) for name in names or self.config.services]

    def after(self, parts: Sequence[Part]) -> Intent:
        """What is served afterwards. Which servers are left out is a matter of their health now."""
        others = {name: self._after(name, self._kept_generation(name)) for name in self.config.services}
        ejected = frozenset(key for key in self.standing.intent.ejected if self.config.lists(key))
        return Intent({**others, **{part.service: part.after for part in parts}}, self.generation, ejected)

    def _changes(self, name: str) -> bool:
        now = self.standing.intent.services.get(name)
        is_configured_so = self.standing.config.services.get(name) == self.config.services[name]
        return now is None or now.route != self._route(name) or not is_configured_so

    def _route(self, name: str) -> Route:
        then = self.kept.intent.services.get(name)
        return Route(self.config.services[name].initial) if then is None else then.route

    def _after(self, name: str, generation: int) -> ServiceIntent:
        """A service that was once rendered for weights stays so: workers of before and after find what they need."""
        known = (self.standing.intent.services.get(name), self.kept.intent.services.get(name))
        weighted = any(each is not None and each.weighted for each in known)
        route, settings = self._route(name), self.config.services[name]
        return ServiceIntent(route, generation, weighted or route.is_split or settings.weights is not None)

    def _kept_generation(self, name: str) -> int:
        now = self.standing.intent.services.get(name)
        return self.generation if now is None else now.generation

    def _part(self, name: str) -> Part:
        before, after = self.standing.intent.services.get(name), self._after(name, self.generation)
        through = after if before is None else replace(before, weighted=after.weighted)
        draft = _draft(name, self.request, through, self.now)
        return Part(draft.moving(through.route, after.route), before, after, through)


def _draft(name: str, request: Request, serves: ServiceIntent, now: float) -> Operation:
    return Operation(
        id=0,
        kind=Kind.RESTORE,
        service=name,
        source=serves.route.live,
        target=serves.route.live,
        weight=serves.route.weight,
        state=OperationState.OPEN,
        generation=serves.generation,
        reason=request.reason,
        actor=request.actor,
        started_at=now,
        dry_run=request.dry_run,
    )
