"""A process that was found to be the right one, to be recognized again with one look."""

from __future__ import annotations

import contextlib
import os


class KnownProcess:
    """Remembers a pid with its command line: every switch asks whether the balancer runs, and nobody has the time."""

    def __init__(self) -> None:
        """Nobody is known yet."""
        self._pid: int | None = None
        self._path = ""
        self._command = b""

    def pid(self) -> int | None:
        """The pid, as long as a process with the same command line has it."""
        if self._pid is not None and self._command_line() == self._command:
            return self._pid
        self._pid = None
        return None

    def remember(self, pid: int) -> int:
        """It was looked at, and is the right one."""
        self._path = f"/proc/{pid}/cmdline"
        self._command = self._command_line()
        self._pid = pid if self._command else None
        return pid

    def _command_line(self) -> bytes:
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 65536)
            finally:
                os.close(descriptor)
        return b""
