"""Latencies in constant memory: a log-linear histogram with a stated error.

Each doubling of the value is cut into 32 buckets of equal width, as HdrHistogram does it (Gil Tene, hdrhistogram.org).
A bucket is reported by its middle, so a value is off by 1/64 of itself at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

LEAST_MS = 0.01
MOST_MS = 3.6e6
_PER_DOUBLING = 32
RELATIVE_ERROR = 1 / (2 * _PER_DOUBLING)
"""How far a reported value may be from the true one, as a share of the true one: 1.6 %."""


def _raw(value_ms: float) -> int:
    mantissa, exponent = math.frexp(value_ms)  # 0.5 <= mantissa < 1
    return exponent * _PER_DOUBLING + int(mantissa * 2 * _PER_DOUBLING)


_FIRST = _raw(LEAST_MS)
_LAST = _raw(MOST_MS) - _FIRST
BUCKETS = _LAST + 1


class Histogram:
    """How many values fell into each bucket. Values are in ms; beyond 0.01 .. 3.6e6 they count as the nearest of these.

    Only buckets that hold something take memory; there are `BUCKETS` at most.
    """

    __slots__ = ("_count", "_counts")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """How many values there are."""
        return self._count

    @staticmethod
    def index(value_ms: float) -> int:
        """The bucket of a value, 0 .. BUCKETS - 1. Raises: ValueError for a value that is no number."""
        if LEAST_MS < value_ms < MOST_MS:
            return _raw(value_ms) - _FIRST
        if math.isnan(value_ms):
            raise ValueError("a latency that is no number has no bucket")
        return 0 if value_ms <= LEAST_MS else _LAST

    @staticmethod
    def bounds(index: int) -> tuple[float, float]:
        """The least value of a bucket and the least of the next one, in ms."""
        exponent, step = divmod(index + _FIRST - _PER_DOUBLING, _PER_DOUBLING)
        unit = math.ldexp(1.0, exponent) / (2 * _PER_DOUBLING)
        return (step + _PER_DOUBLING) * unit, (step + _PER_DOUBLING + 1) * unit

    @staticmethod
    def middle(index: int) -> float:
        """What is reported for the values of a bucket, in ms."""
        low, high = Histogram.bounds(index)
        return (low + high) / 2

    def add(self, value_ms: float, count: int = 1) -> None:
        """Take in `count` equal values. Raises: ValueError for no number or a negative count."""
        self.add_bucket(self.index(value_ms), count)

    def add_bucket(self, index: int, count: int) -> None:
        """Take in `count` values of a bucket that `index` gave. Raises: ValueError."""
        if count < 0 or not 0 <= index <= _LAST:
            raise ValueError(f"{count} values in bucket {index}: 0 or more belong into 0 to {_LAST}")
        if count:
            self._counts[index] = self._counts.get(index, 0) + count
            self._count += count

    def merge(self, other: Histogram) -> None:
        """Take in all values of another one."""
        counts = self._counts
        for index, count in other._counts.items():
            counts[index] = counts.get(index, 0) + count
        self._count += other._count

    def buckets(self) -> list[tuple[int, int]]:
        """Index and count of each bucket that holds something, ascending."""
        return sorted(self._counts.items())

    def quantile(self, q: float) -> float | None:
        """The least value that at least the share `q` of all does not exceed, in ms; None when empty.

        It is within RELATIVE_ERROR of the true one (nearest rank). Raises: ValueError unless 0 <= q <= 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is from 0 to 1, not {q}")
        rank = max(1, math.ceil(q * self._count))
        below = 0
        for index, count in self.buckets():
            below += count
            if below >= rank:
                return self.middle(index)
        return None

    def at_least(self, value_ms: float) -> int:
        """How many values are reported as `value_ms` or more."""
        return sum(count for index, count in self._counts.items() if self.middle(index) >= value_ms)

    def to_json(self) -> dict[str, Any]:
        """Buckets as pairs of index and count."""
        return {"buckets": [list(bucket) for bucket in self.buckets()]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Histogram:
        """What `to_json` wrote. Raises: ValueError, KeyError or TypeError when it did not."""
        return cls.of(document["buckets"])

    @classmethod
    def of(cls, buckets: Iterable[tuple[int, int]]) -> Histogram:
        """A histogram with these buckets. Raises: ValueError."""
        histogram = cls()
        for index, count in buckets:
            histogram.add_bucket(index, count)
        return histogram

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Histogram({self.buckets()})"
