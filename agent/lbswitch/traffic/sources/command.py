"""A program that prints a number."""

from __future__ import annotations

import os
import signal

from lbswitch.child import Child
from lbswitch.core.config_problems import show
from lbswitch.core.source_config import CommandSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.number import as_number

_MOST_BYTES = 4096


class CommandMetric:
    """Runs argv without a shell; the number is all that is on stdout. The run's process group ends with the read."""

    def __init__(self, config: CommandSource) -> None:
        """Nothing runs yet."""
        self._argv = config.command

    async def read(self) -> float:
        """See `MetricSource`. Raises: SourceDown."""
        try:
            child = Child(self._argv, os.environ, limit=_MOST_BYTES, apart=True)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise SourceDown(f"{self._argv[0]} can't be run ({why}): mend `command`") from error
        try:
            returncode = await child.ended()
        finally:
            await child.end()
        return self._number(returncode, child.output, child.errors)

    async def close(self) -> None:
        """Nothing is kept."""

    def _number(self, returncode: int, output: bytes, errors: bytes) -> float:
        name = self._argv[0]
        if returncode != 0:
            what = f"exit {returncode}" if returncode > 0 else f"signal {_signal_name(-returncode)}"
            said = _first_line(errors) or _first_line(output)
            raise SourceDown(
                f"{name} ended with {what}{said and f', saying {said}'}: run it by hand as the agent's user"
            )
        if len(output) >= _MOST_BYTES:
            raise SourceDown(f"{name} printed 4 KiB or more: it has to print one number and nothing else")
        try:
            return as_number(output.decode(errors="backslashreplace"))
        except ValueError as error:
            raise SourceDown(f"{name} printed {error}: it has to print one number and nothing else") from None


def _first_line(data: bytes) -> str:
    text = data.lstrip().partition(b"\n")[0].decode(errors="backslashreplace").strip()
    return show(text) if text else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
