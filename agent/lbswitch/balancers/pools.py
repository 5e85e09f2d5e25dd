"""How many servers each pool of a rendered configuration has, whatever template it was rendered from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lbswitch.ports import Rendered

_NGINX = re.compile(r"^\s*(?:upstream\s+(?P<pool>[^\s{]+)|(?P<end>})|server\s+(?!\s*{)(?P<rest>.*))")
_HAPROXY = re.compile(r"^(?:(?:backend|listen)\s+(?P<pool>\S+)|(?P<end>\S)|\s+server(?:-template)?\s+(?P<rest>.*))")


def nginx(rendered: Rendered) -> Mapping[str, int]:
    """Servers of each `upstream`; those marked `down` or `backup` take no part in normal operation."""
    return _count(rendered, _NGINX, {"down", "backup"})


def haproxy(rendered: Rendered) -> Mapping[str, int]:
    """Servers of each `backend` or `listen`; those that are `disabled` or `backup` do not count."""
    return _count(rendered, _HAPROXY, {"disabled", "backup"})


def _count(rendered: Rendered, pattern: re.Pattern[str], idle: set[str]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    pool: str | None = None
    for line in _lines(rendered):
        match = pattern.match(line)
        if match is None:
            continue
        if match["pool"]:
            pool = match["pool"]
            found.setdefault(pool, 0)
        elif match["end"]:
            pool = None
        elif pool is not None and not idle.intersection(match["rest"].rstrip(";").split()):
            found[pool] += 1
    return found


def _lines(rendered: Rendered) -> Iterator[str]:
    for file in rendered.files:
        if not file.secret:
            for line in file.content.decode(errors="replace").splitlines():
                if not line.lstrip().startswith("#"):
                    yield line
