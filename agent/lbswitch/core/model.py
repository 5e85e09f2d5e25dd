"""The words of lbswitch as values: color, route, generation, intent, observation, operation.

Everything here is frozen and free of I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Self


class Color(StrEnum):
    """One of the two pools of a service."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> Color:
        """The color that this one is not."""
        return Color.GREEN if self is Color.BLUE else Color.BLUE


class Kind(StrEnum):
    """What an operation does."""

    SWITCH = "switch"
    ROLLBACK = "rollback"
    FAILOVER = "failover"
    WEIGHT = "weight"
    RESTORE = "restore"

    @property
    def is_way_back(self) -> bool:
        """Whether a broken template or a freeze by hand must not stand in its way."""
        return self in (Kind.ROLLBACK, Kind.FAILOVER)


class OperationState(StrEnum):
    """How an operation ended; `open` is only ever seen in the journal of a running or crashed agent."""

    OPEN = "open"
    DONE = "done"
    ALREADY = "already"
    REFUSED = "refused"
    REVERTED = "reverted"
    FAILED = "failed"


class ServerKey(NamedTuple):
    """One upstream server: the service, the color and the address it is listed under."""

    service: str
    color: Color
    address: str


class PoolKey(NamedTuple):
    """The servers of one color of a service."""

    service: str
    color: Color


@dataclass(frozen=True, slots=True)
class Route:
    """Where a service's traffic goes: `weight` percent (0..100) to `live`, the rest to the other color."""

    live: Color
    weight: int = 100

    @property
    def is_split(self) -> bool:
        """Whether both colors get traffic."""
        return self.weight != 100

    def share(self, color: Color) -> int:
        """Percent of the traffic that `color` gets, 0..100."""
        return self.weight if color is self.live else 100 - self.weight

    def with_share(self, color: Color, percent: int) -> Route:
        """Give `color` that percentage; `live` moves only when a color gets everything."""
        if percent == 100:
            return Route(color)
        if percent == 0:
            return Route(color.other)
        return Route(self.live, percent if color is self.live else 100 - percent)

    def gains_from(self, before: Route) -> Color | None:
        """The color whose share of the traffic is larger here than it was before; None when nothing moves."""
        return next((color for color in Color if self.share(color) > before.share(color)), None)

    def __str__(self) -> str:
        if not self.is_split:
            return str(self.live)
        return f"{self.live} {self.weight}% / {self.live.other} {100 - self.weight}%"


@dataclass(frozen=True, slots=True)
class ServiceIntent:
    """What one service should serve, and since which generation.

    `weighted` says that its configuration is rendered so that weights move without a reload.
    """

    route: Route
    generation: int
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """What the whole balancer should serve; `generation` grows with every change of it.

    `ejected` are servers that fail their checks and are left out of their pool; never a whole pool.
    """

    services: Mapping[str, ServiceIntent]
    generation: int
    ejected: frozenset[ServerKey] = field(default_factory=frozenset)

    def with_services(self, services: Mapping[str, ServiceIntent], generation: int | None = None) -> Intent:
        """The same with these services changed; the generation is theirs if it is newer."""
        merged = MappingProxyType({**self.services, **services})
        newest = max([self.generation, *(service.generation for service in services.values())])
        return replace(self, services=merged, generation=newest if generation is None else generation)

    def with_ejected(self, ejected: frozenset[ServerKey]) -> Intent:
        """The same routes with these servers left out."""
        return replace(self, ejected=ejected)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the service's own listener said about one request.

    The color it would have gone to, the generation of the pointer or map that chose it, the revision of the
    configuration that the worker runs, and green's share of the traffic in percent.
    """

    color: Color
    generation: int
    revision: str
    share_green: int

    def shows(self, intent: ServiceIntent, revision: str) -> bool:
        """Whether this answer is what the intent and the rendered revision would give."""
        return (
            self.generation == intent.generation
            and self.revision == revision
            and self.share_green == intent.route.share(Color.GREEN)
            and intent.route.share(self.color) > 0
        )


@dataclass(frozen=True, slots=True)
class Gate:
    """A check that said no before anything was changed."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the steps of an operation took, in milliseconds."""

    gates: float = 0.0
    render: float = 0.0
    commit: float = 0.0
    verify: float = 0.0
    total: float = 0.0

    def to_json(self) -> dict[str, float]:
        """The `timings_ms` object of the contract."""
        return {name: round(getattr(self, name), 3) for name in ("gates", "render", "commit", "verify", "total")}


class DrainState(StrEnum):
    """How far the connections to a color that lost its traffic have come."""

    DRAINING = "draining"
    DRAINED = "drained"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"

    @property
    def is_over(self) -> bool:
        """Whether nobody counts any more."""
        return self in (DrainState.DRAINED, DrainState.SUPERSEDED)


class Remaining(NamedTuple):
    """Connections that one worker has open to the servers of a color; `old` is a worker from before a reload.

    `pid` is None where nobody can tell which worker.
    """

    pid: int | None
    old: bool
    open: int


@dataclass(frozen=True, slots=True)
class Drain:
    """What an operation left on the color that it took all traffic from.

    `open` is None before the first count and where nobody can know; `most` is the largest count so far, `closed` how
    many connections were ended on purpose, and `drained_ms` counts from the end of the operation.
    """

    color: Color
    open: int | None = None
    workers: tuple[Remaining, ...] = ()
    state: DrainState = DrainState.DRAINING
    most: int = 0
    closed: int = 0
    drained_ms: float | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The `drain` object of an Operation."""
        return {
            "color": str(self.color),
            "open": self.open,
            "workers": [worker._asdict() for worker in self.workers],
            "state": str(self.state),
            "most": self.most,
            "closed": self.closed,
            "drained_ms": self.drained_ms,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(
            **{
                **document,
                "color": Color(document["color"]),
                "workers": tuple(Remaining(**worker) for worker in document["workers"]),
                "state": DrainState(document["state"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """One switch, rollback, failover, weight change or restore, as history and API show it.

    `weight` is the percentage `target` gets; times are seconds since the epoch (UTC); `snapshot` is the number of the
    one that was taken before, if any was. `drain` is None unless a color lost all its traffic.
    """

    id: int
    kind: Kind
    service: str
    source: Color
    target: Color
    weight: int
    state: OperationState
    generation: int
    reason: str
    actor: str
    gate: Gate | None = None
    error: str | None = None
    timings: Timings = Timings()
    started_at: float = 0.0
    ended_at: float | None = None
    notes: tuple[str, ...] = ()
    dry_run: bool = False
    snapshot: int | None = None
    drain: Drain | None = None

    @property
    def leaves(self) -> Color | None:
        """The color that has no traffic any more when this is done, but had some; None when there is none."""
        return self.source if self.weight == 100 and self.source is not self.target else None

    def ended(self, state: OperationState, *, now: float, **changes: Any) -> Self:
        """This operation, over; from now on what it left behind drains."""
        is_moved = state is OperationState.DONE and not self.dry_run
        drain = Drain(self.leaves) if is_moved and self.leaves is not None else None
        return replace(self, state=state, ended_at=now, drain=drain, **changes)

    def moving(self, before: Route, after: Route) -> Self:
        """This operation with `source`, `target` and `weight` as the traffic moves.

        `target` is the color that gains, with `weight` percent afterwards; when nothing moves both are the live one.
        """
        target = after.gains_from(before) or after.live
        source = target if before == after else target.other
        return replace(self, source=source, target=target, weight=after.share(target))

    def to_json(self) -> dict[str, Any]:
        """The Operation document of the contract (DESIGN 7.3), with our additions."""
        return {
            "id": self.id,
            "kind": str(self.kind),
            "service": self.service,
            "from": str(self.source),
            "to": str(self.target),
            "weight": self.weight,
            "state": str(self.state),
            "generation": self.generation,
            "reason": self.reason,
            "actor": self.actor,
            "gate": None if self.gate is None else {"name": self.gate.name, "message": self.gate.message},
            "error": self.error,
            "notes": list(self.notes),
            "dry_run": self.dry_run,
            "snapshot": self.snapshot,
            "drain": None if self.drain is None else self.drain.to_json(),
            "timings_ms": self.timings.to_json(),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }
