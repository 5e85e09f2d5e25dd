"""On what it was measured."""

from __future__ import annotations

import contextlib
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil

from lbswitch import __version__


def describe(load_before: float) -> dict[str, str]:
    """Machine, system and date, as lines for a reader. `load_before` is the load average when the run began."""
    return {
        "lbswitch": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "load average": f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
