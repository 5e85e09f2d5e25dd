"""Small words that several checks use."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from pathlib import Path

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size(count: int) -> str:
    """Bytes as people say them: `1.5 GiB`."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def user(uid: int) -> str:
    """A user's name where there is one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def listed(things: Iterable[object], most: int = 5) -> str:
    """`a, b and 3 more`."""
    texts = [str(thing) for thing in things]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def in_short(text: object, most: int = 400) -> str:
    """Several lines as one, which is not too long."""
    line = "; ".join(line.strip() for line in str(text).splitlines() if line.strip()).replace(":; ", ": ")
    return line if len(line) <= most else f"{line[:most]}..."


def real(path: Path) -> Path:
    """With symlinks followed, as far as they lead somewhere."""
    return Path(os.path.realpath(path))
