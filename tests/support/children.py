"""Processes that a test leaves behind, apart from those that were there before it (other tests' servers)."""

import os

import psutil


def child_pids() -> frozenset[int]:
    """The pids of this process's children and theirs."""
    return frozenset(process.pid for process in psutil.Process(os.getpid()).children(recursive=True))
