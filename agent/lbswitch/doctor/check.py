"""A check: its name, what it looks at, and where it makes sense."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lbswitch.core.config import BalancerKind, Config
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, Severity

Run = Callable[[Case], Iterable[Finding]]
"""Looks, and yields what it found. Raises: NotChecked when it could not look."""


@dataclass(frozen=True, slots=True)
class Check:
    """`title` says what it finds. `worst` is the most severe that it says."""

    id: str
    title: str
    worst: Severity
    run: Run
    kind: BalancerKind | None = None
    whose: Literal["managed", "guest"] | None = None

    def applies(self, config: Config | None) -> bool:
        """Whether it makes sense here; without a valid configuration nobody knows."""
        if config is None:
            return True
        if self.kind is not None and config.balancer.kind is not self.kind:
            return False
        return self.whose is None or (self.whose == "managed") == config.balancer.managed
