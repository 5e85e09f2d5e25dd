"""The command check: a program of the operator's says whether a server is well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from lbswitch.core.config import HealthConfig
from lbswitch.core.health import CheckResult
from lbswitch.core.model import ServerKey
from lbswitch.core.values import Endpoint
from lbswitch.health.checking import OWN_TROUBLE, CheckFailed, Inconclusive, shown, timed
from lbswitch.procs import end_group

_OUTPUT_LIMIT = 4096
_REAP_S = 1.0


class CommandProber:
    """Runs the command for one server. `slots` bounds how many commands run at once; waiting is not timed."""

    def __init__(self, key: ServerKey, endpoint: Endpoint, config: HealthConfig, slots: asyncio.Semaphore) -> None:
        """Fill in `{address}`, `{host}` and `{port}`; of a unix socket the host is its path, and the port is empty."""
        if config.command is None:
            raise ValueError("a command check needs a command")
        self._argv = [_filled(word, key.address, endpoint) for word in config.command]
        self._environment = {
            "LBSWITCH_SERVICE": key.service,
            "LBSWITCH_COLOR": str(key.color),
            "LBSWITCH_ADDRESS": key.address,
        }
        self._timeout_s = config.timeout
        self._slots = slots

    async def check(self) -> CheckResult:
        """Run it once. Raises: Inconclusive."""
        async with self._slots:
            return await timed(self._run, self._timeout_s)

    def close(self) -> None:
        """Nothing is kept."""

    async def _run(self) -> str:
        run = _Run(self._argv, {**os.environ, **self._environment})
        try:
            returncode = await run.ended()
        finally:
            await run.end()
        first_line = shown(run.output.lstrip().partition(b"\n")[0])
        if returncode == 0:
            return first_line or "exit 0"
        what = f"exit {returncode}" if returncode > 0 else f"killed by {_signal_name(-returncode)}"
        raise CheckFailed(f"{what}: {first_line}" if first_line else what)


class _Run:
    """One run: a process group of its own, the first 4 KiB of its output, and nothing left behind."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.output = b""
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(theirs, True)
            self._process = _start(argv, environment, theirs)
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pipe, self._read)
        self._loop.add_reader(self._pidfd, self._reap)

    async def ended(self) -> int:
        """Wait for the program, not for what it may have started; gives its return code."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Kill what still runs and reap it."""
        if not self._ended.done():
            end_group(self._process.pid)
            await asyncio.wait([self._ended], timeout=_REAP_S)  # longer only in an uninterruptible sleep

    def _read(self) -> None:
        """Take what is there; past the limit it is dropped, but read, so that the program does not block."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipe, 65536)
            self.output += data[: _OUTPUT_LIMIT - len(self.output)]
            if not data:
                self._loop.remove_reader(self._pipe)

    def _reap(self) -> None:
        """The program is a zombie: its id is not yet anybody else's, so what is left of its group can be killed."""
        end_group(self._process.pid)
        returncode = self._process.wait()
        self._read()
        for descriptor in (self._pipe, self._pidfd):
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        if not self._ended.done():
            self._ended.set_result(returncode)


def _start(argv: Sequence[str], environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
    except BlockingIOError as error:  # the system's or the user's limit of processes
        raise Inconclusive(f"the agent can't start {argv[0]}: {error.strerror}") from error
    except OSError as error:
        if error.errno in OWN_TROUBLE:
            raise
        raise CheckFailed(f"can't run {argv[0]}: {error.strerror}") from error


def _filled(word: str, address: str, endpoint: Endpoint) -> str:
    host, port = (endpoint.path, "") if endpoint.is_unix else (endpoint.host, str(endpoint.port))
    return word.replace("{address}", address).replace("{host}", host).replace("{port}", port)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
