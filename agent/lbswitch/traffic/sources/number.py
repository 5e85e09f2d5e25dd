"""One finite number, or words for what there is instead."""

from __future__ import annotations

import json
import math
import re

from lbswitch.core.config_problems import show

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_LONGEST = 400
_NOT_FINITE = {"nan": "NaN", "inf": "Inf", "+inf": "Inf", "-inf": "-Inf", "infinity": "Inf", "-infinity": "-Inf"}


def as_number(value: object) -> float:
    """A number, or a text that is one. Raises: ValueError with words such as `'abc', which is not a number`."""
    if isinstance(value, str):
        return _from_text(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value)
    name = {"list": "a list", "dict": "a mapping"}.get(type(value).__name__) or json.dumps(value)
    raise ValueError(f"{name}, which is not a number")


def _from_text(text: str) -> float:
    if text.lower() in _NOT_FINITE:
        raise ValueError(f"{_NOT_FINITE[text.lower()]}, which is not a finite number")
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        raise ValueError(f"{show(text)}, which is not a number" if text else "nothing, which is not a number")
    return _finite(float(text))


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("NaN, which is not a finite number" if math.isnan(number) else "a number without bounds")
    return number
