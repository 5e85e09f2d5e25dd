"""Unified diffs from what is intended to what was found."""

from __future__ import annotations

import difflib

_MOST_LINES = 200


def of_texts(name: str, intended: str, found: str) -> str:
    """A unified diff with three lines of context, or nothing when they are equal; a very long one is cut."""
    lines = list(
        difflib.unified_diff(
            intended.splitlines(), found.splitlines(), f"{name} (intended)", f"{name} (found)", lineterm=""
        )
    )
    more = len(lines) - _MOST_LINES
    if more > 0:
        lines[_MOST_LINES:] = [f"... and {more} more lines"]
    return "".join(f"{line}\n" for line in lines)
