"""Processor time of processes, exact where the kernel tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil


def used_s(processes: Sequence[psutil.Process]) -> float:
    """Seconds that the threads of these processes have run.

    From /proc/PID/task/TID/schedstat, which counts nanoseconds; psutil's times have steps of 10 ms. Threads that have
    ended are not in it, so it is for workers, whose threads stay.
    """
    return sum(_threads_s(process) for process in processes)


def _threads_s(process: psutil.Process) -> float:
    tasks = Path(f"/proc/{process.pid}/task")
    with contextlib.suppress(OSError, ValueError, IndexError):
        nanoseconds = [int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()]
        if any(nanoseconds):
            return sum(nanoseconds) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


def with_children_s(process: psutil.Process) -> float:
    """Seconds of a process, its threads and its children, those that have ended included. In steps of 10 ms."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system) + sum(
        child.cpu_times().user + child.cpu_times().system for child in process.children(recursive=True)
    )
