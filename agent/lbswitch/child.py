"""Run a program from the event loop: bounded in output, ended with everything it started, never waited for in vain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence

from lbswitch.procs import end_group

_REAP_S = 1.0


class Child:
    """One run: a session of its own, the first `limit` bytes of its output, and nothing left behind.

    With `apart` what it writes to stderr is in `errors`, else it is part of `output`. Starting raises OSError.
    """

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], *, limit: int = 4096, apart: bool = False
    ) -> None:
        """Start it."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        with contextlib.ExitStack() as undo:
            self._output = _Pipe(self._loop, limit)
            undo.callback(self._output.close)
            self._errors = _Pipe(self._loop, limit) if apart else self._output
            undo.callback(self._errors.close)
            try:
                self._process = _start(argv, environment, self._output.theirs, self._errors.theirs)
            finally:
                self._output.hand_over()
                self._errors.hand_over()
            undo.callback(self._give_up)
            self._pidfd = os.pidfd_open(self._process.pid)
            undo.pop_all()
        self._output.listen()
        self._errors.listen()
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def output(self) -> bytes:
        """What it wrote so far; no more than `limit`."""
        return self._output.data

    @property
    def errors(self) -> bytes:
        """The same of stderr, with `apart`."""
        return self._errors.data

    async def ended(self) -> int:
        """Wait for the program, not for what it may have started; gives its return code."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Kill what still runs and reap it."""
        if not self._ended.done():
            end_group(self._process.pid)
            await asyncio.wait([self._ended], timeout=_REAP_S)  # longer only in an uninterruptible sleep

    def _give_up(self) -> None:
        end_group(self._process.pid)
        self._process.wait()

    def _reap(self) -> None:
        """The program is a zombie: its id is not yet anybody else's, so what is left of its group can be killed."""
        end_group(self._process.pid)
        returncode = self._process.wait()
        self._output.finish()
        self._errors.finish()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(returncode)


class _Pipe:
    """The reading end of what a program writes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._loop = loop
        self._limit = limit
        self.data = b""
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.theirs, True)

    def hand_over(self) -> None:
        """The program has its own copy of the writing end, or there will be none."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def listen(self) -> None:
        self._loop.add_reader(self._ours, self._read)

    def finish(self) -> None:
        """Take what is left and close."""
        if self._ours >= 0:
            self._read()
            self.close()

    def close(self) -> None:
        self.hand_over()
        if self._ours >= 0:
            self._loop.remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1

    def _read(self) -> None:
        """Take what is there; past the limit it is dropped, but read, so that the program does not block."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._ours, 65536)
            self.data += data[: self._limit - len(self.data)]
            if not data:
                self._loop.remove_reader(self._ours)


def _start(argv: Sequence[str], environment: Mapping[str, str], output: int, errors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=dict(environment),
        start_new_session=True,
    )
