"""nginx's workers by their titles, and since when the old ones are old."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lbswitch.balancers.running import children

_TITLE = b"nginx: worker process"
_OLD_TITLE = b"nginx: worker process is shutting down"
_STARTED = 19  # field 22 of proc_pid_stat(5), behind the name in parentheses


class Worker(NamedTuple):
    """A worker; `started_s` counts from the boot, `is_old` one that only finishes what it has."""

    pid: int
    is_old: bool
    started_s: float


def workers(master: int | None) -> list[Worker]:
    """Those that live, the old ones first and each kind by age; none of a master that is down. Never raises."""
    found = [worker for pid in children(master) if (worker := look(pid)) is not None]
    return sorted(found, key=lambda worker: (not worker.is_old, worker.started_s, worker.pid))


def look(pid: int) -> Worker | None:
    """The worker with this pid; None when there is none. Never raises."""
    with suppress(OSError, ValueError, IndexError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if title.startswith(_TITLE):
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_STARTED])
            return Worker(pid, title.startswith(_OLD_TITLE), ticks / os.sysconf("SC_CLK_TCK"))
    return None


def last_reload_s(crew: Collection[Worker]) -> float:
    """How many seconds ago the workers that are not old began, which is when the youngest old ones were told to end."""
    began = [worker.started_s for worker in crew if not worker.is_old]
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - min(began)) if began else 0.0
