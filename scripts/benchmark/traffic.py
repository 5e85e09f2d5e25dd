"""The load of every comparison: what is sent, and what the load generator says of each switch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Self

from scripts.benchmark.native import NativeLoad

RATE = 4000
KEPT = 32
NEW_SHARE = 0.5
STREAMS = 20
STREAM_S = 5
WEBSOCKETS = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of one switch; times in ms after the command was sent.

    `last_old_ms` is when the last request began that the old color answered, 0 when there was none.
    """

    first_new_ms: float | None
    last_old_ms: float
    worst_ms: float
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """What clients saw of everything.

    `lost_on` says on which kind of connection (`kept`, `new`), of the last hundred losses of each turn.
    """

    answered: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    lost_on: Mapping[str, int] = field(default_factory=dict)
    streams_done: int = 0
    streams_broken: int = 0
    websockets_opened: int = 0
    websockets_broken: int = 0
    reopened: int = 0
    skipped: int = 0

    @property
    def broken(self) -> int:
        return self.streams_broken + self.websockets_broken

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(_sum(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)))


def _sum(one: Any, other: Any) -> Any:
    """Of numbers, or of two counts by kind."""
    if isinstance(one, Mapping):
        return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in sorted({*one, *other})}
    return one + other


@dataclass(slots=True)
class Traffic:
    """Requests, streams and WebSockets to a port while the block runs; `seen` and `totals` are known after it."""

    port: int
    rate: int = RATE
    kept: int = KEPT
    new_share: float = NEW_SHARE
    streams: int = STREAMS
    websockets: int = WEBSOCKETS
    _load: NativeLoad = field(init=False)
    _last: Mapping[str, Any] = field(init=False, default_factory=dict)

    def switched(self, old: str, new: str, at_ns: int) -> None:
        """From here on answers of `old` are late; `at_ns` is the monotonic clock when the command was sent."""
        self._load.switch(old, new, at_ns)

    def answered(self) -> int:
        """How many requests were answered until now."""
        return totals_of(self._load.report()).answered

    @property
    def seen(self) -> list[Seen]:
        """Every switch, in order. After the block."""
        return [_seen(phase) for phase in self._last["phases"] if phase.get("to")]

    @property
    def totals(self) -> Totals:
        """After the block."""
        return totals_of(self._last)

    def __enter__(self) -> Self:
        self._load = NativeLoad(
            self.port,
            rate=self.rate,
            kept=self.kept,
            new_share=self.new_share,
            streams=self.streams,
            stream_seconds=STREAM_S,
            websockets=self.websockets,
        )
        self._load.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._last = self._load.stop()
        finally:
            self._load.close()


def totals_of(report: Mapping[str, Any]) -> Totals:
    totals = report["totals"]
    return Totals(
        answered=sum(totals["answered"].values()),
        lost={kind: count for kind, count in sorted(totals["lost"].items()) if count},
        lost_on=Counter(one["what"] for one in report["failures"] if one["what"] in ("kept", "new")),
        streams_done=totals["streams_done"],
        streams_broken=totals["streams_broken"],
        websockets_opened=totals["ws_opened"],
        websockets_broken=totals["ws_broken"],
        reopened=totals["reopened"],
        skipped=totals["skipped"],
    )


def _seen(phase: Mapping[str, Any]) -> Seen:
    return Seen(
        first_new_ms=phase["first_new_ms"],
        last_old_ms=max(0.0, phase["last_old_ms"] or 0.0),
        worst_ms=phase["latency_ms"]["max"] or 0.0,
        lost={kind: count for kind, count in phase["lost"].items() if count},
    )
