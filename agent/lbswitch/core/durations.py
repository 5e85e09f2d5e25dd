"""Durations as people write them. Quick to import: the command line reads some, too."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS_S = {"d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_LONGEST_S = 366 * 86400.0
DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|s|m|h|d)")


def parse_duration(text: object) -> float:
    """Seconds in `250ms`, `1s`, `5m`, `2h` or `30d`; a year at most. Raises: ValueError."""
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("is not a duration: write a number and a unit, such as 250ms, 1s, 5m, 2h or 30d")
    seconds = float(Decimal(match[1]) * _UNITS_S[match[2]])
    if seconds > _LONGEST_S:
        raise ValueError("is longer than 366d")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact way to write it: `500ms`, `1s`, `5m`, `90s`; `parse_duration` reads the same number."""
    if seconds == 0:
        return "0s"
    exact = Decimal(repr(float(seconds)))
    for unit, length in _UNITS_S.items():
        amount = exact / length
        if amount >= 1 and amount == amount.to_integral_value():
            return f"{amount:.0f}{unit}"
    unit = "ms" if exact < 1 else "s"
    return f"{exact / _UNITS_S[unit]:f}{unit}"
