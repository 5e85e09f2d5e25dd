"""The command check: a program of the operator's says whether a server is well."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

from lbswitch.child import Child
from lbswitch.core.config import HealthConfig
from lbswitch.core.health import CheckResult
from lbswitch.core.model import ServerKey
from lbswitch.core.values import Endpoint
from lbswitch.health.checking import OWN_TROUBLE, CheckFailed, Inconclusive, shown, timed


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
        run = _start(self._argv, {**os.environ, **self._environment})
        try:
            returncode = await run.ended()
        finally:
            await run.end()
        first_line = shown(run.output.lstrip().partition(b"\n")[0])
        if returncode == 0:
            return first_line or "exit 0"
        what = f"exit {returncode}" if returncode > 0 else f"killed by {_signal_name(-returncode)}"
        raise CheckFailed(f"{what}: {first_line}" if first_line else what)


def _start(argv: Sequence[str], environment: Mapping[str, str]) -> Child:
    try:
        return Child(argv, environment)
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
