"""Run other programs: argv as a list, always with a timeout, never through a shell."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What a program said. `returncode` is negative for a signal, as in `subprocess`; output is stdout and stderr."""

    returncode: int
    output: str

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.returncode == 0


class TimedOut(Exception):
    """The program was ended because it took longer than its timeout."""

    def __init__(self, argv: Sequence[str], timeout_s: float) -> None:
        """Remember what ran and for how long it was let run."""
        super().__init__(f"{argv[0]} did not finish within {timeout_s:g} s and was ended")


def run(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Result:
    """Run to the end and return exit code and output; the whole process group ends with a timeout.

    Raises: FileNotFoundError, PermissionError, TimedOut.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:
        end_group(process.pid)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TimedOut(argv, timeout_s) from error
        raise
    return Result(process.returncode, output.decode(errors="replace"))


def end_group(pid: int) -> None:
    """Kill the process group that `pid` leads; one that is gone already is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
