"""A program that runs in the foreground in a session of its own, with its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class Daemon:
    """`argv`, started at once; `stop` leaves none of its session's processes behind."""

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = directory / f"{Path(argv[0]).name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Raises: RuntimeError with its output when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.returncode}: {self.log()[-2000:]}")
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self, patience_s: float = 3.0) -> None:
        """SIGTERM, then SIGKILL for the whole session."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def output(argv: Sequence[str], timeout_s: float = 20.0) -> str:
    """What a command printed, to both streams. Raises: RuntimeError when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return done.stdout + done.stderr
