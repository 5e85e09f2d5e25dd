"""Metrics from elsewhere: each source is read once."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

from lbswitch.core.criteria import MetricReading
from lbswitch.core.source_config import SourceConfig
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, note, warning
from lbswitch.traffic.sources import read_once

_MOST_S = 8.0  # what a check may take is little more
_SECRETS = ("token_file", "password_file", "dsn_file")


def unread(case: Case) -> Iterator[Finding]:
    """A source gives no value; and as a note, what the others give."""
    sources = case.config.sources
    if not sources:
        return
    readings = asyncio.run(_readings(sources))
    for reading in readings:
        if reading.error is not None:
            yield warning(
                f"sources.{reading.name} gives no value, so criteria that need it are never judged: {reading.error}",
                "as it says; docs/sources.md",
            )
    values = ", ".join(f"{reading.name} {reading.value:.6g}" for reading in readings if reading.error is None)
    if values:
        yield note(f"read now: {values}", "nothing, if that is what you expect next to the thresholds of services")


async def _readings(sources: dict[str, SourceConfig]) -> list[MetricReading]:
    return await asyncio.gather(*(read_once(name, source, most_s=_MOST_S) for name, source in sources.items()))


def open_secrets(case: Case) -> Iterator[Finding]:
    """Everybody on this machine can read a secret."""
    for name, source in case.config.sources.items():
        for key in _SECRETS:
            path = getattr(source, key, None)
            if path is not None and _is_open(Path(path)):
                yield warning(f"everybody on this machine can read {path} (sources.{name}.{key})", f"chmod o-r {path}")


def _is_open(path: Path) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o004)
    except FileNotFoundError:
        return False
