"""What was measured: figures with their spread, counts, and what could not be measured."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity. `case` says of what, `of` compares it with the figure of that case in the same group."""

    group: str
    case: str
    unit: str
    samples: tuple[float, ...]
    of: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p5(self) -> float:
        return self.quantile(0.05)

    @property
    def p95(self) -> float:
        return self.quantile(0.95)

    def quantile(self, share: float) -> float:
        """Nearest rank."""
        return sorted(self.samples)[max(0, math.ceil(share * len(self.samples)) - 1)]

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "case": self.case,
            "unit": self.unit,
            "median": round(self.median, 3),
            "p5": round(self.p5, 3),
            "p95": round(self.p95, 3),
            "compared_with": self.of,
            "samples": [round(sample, 3) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        samples = tuple(document["samples"])
        return cls(document["group"], document["case"], document["unit"], samples, document["compared_with"])


@dataclass(frozen=True, slots=True)
class Count:
    """Things that were counted over a whole measurement, such as requests and how many of them were lost."""

    group: str
    case: str
    numbers: Mapping[str, int | str]

    def to_json(self) -> dict[str, Any]:
        return {"group": self.group, "case": self.case, **self.numbers}


@dataclass(slots=True)
class Record:
    """Everything of one run. What is added is also said on stderr at once."""

    figures: list[Figure] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, group: str, case: str, unit: str, samples: Sequence[float], of: str | None = None) -> None:
        """Nothing is recorded when there are no samples."""
        if not samples:
            return
        figure = Figure(group, case, unit, tuple(samples), of)
        self.figures.append(figure)
        ratio = self.ratio(figure)
        spread = f"{figure.median:.2f} {unit} ({figure.p5:.2f}-{figure.p95:.2f}, n={len(samples)})"
        say(f"{group}: {case}: {spread}" + (f", {ratio:g}x {of}" if ratio is not None else ""))

    def count(self, group: str, case: str, **numbers: int | str) -> None:
        self.counts.append(Count(group, case, numbers))
        say(f"{group}: {case}: " + ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in numbers.items()))

    def version(self, text: str) -> None:
        """Such as `nginx 1.22.1`; the same one may be told any number of times."""
        self.versions.add(text)

    def leave_out(self, what: str, why: str) -> None:
        if what not in self.left_out:
            say(f"left out: {what}: {why}")
        self.left_out[what] = why

    def fail(self, what: str, error: BaseException) -> None:
        """Something that should have been measured broke; the run goes on."""
        words = str(error).strip()
        if len(words) > 1500:
            words = f"{words[:300]} ... {words[-1200:]}"
        text = f"{what}: {type(error).__name__}: {words}"
        self.failures.append(text)
        say(f"FAILED: {text}")

    def find(self, group: str, case: str) -> Figure | None:
        return next((one for one in self.figures if (one.group, one.case) == (group, case)), None)

    def of_group(self, group: str) -> Iterator[Figure]:
        return (figure for figure in self.figures if figure.group == group)

    def ratio(self, figure: Figure) -> float | None:
        """Its median divided by that of what it is compared with."""
        other = self.find(figure.group, figure.of) if figure.of else None
        return round(figure.median / other.median, 2) if other is not None and other.median else None


def say(text: str) -> None:
    """To whoever waits for the end."""
    print(text, file=sys.stderr, flush=True)
