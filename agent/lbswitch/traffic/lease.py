"""A living agent's word that somebody reads: files named after the time, which the balancer looks for.

    DIRECTORY/170000000     somebody reads from 1700000000 to 1700000009 (seconds since the epoch)

There is always one for now and for the next 20 s. Without an agent nobody makes more, so that after 20 to 30 s nothing
is logged any more, whatever became of the agent; no reload and no signal is needed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

SECONDS = 10
"""How long one file counts."""
_AHEAD = 2


class Lease:
    """The files. `renew` at least every `SECONDS`; `end` it when nobody reads any more."""

    def __init__(self, directory: Path) -> None:
        """Nothing is made yet."""
        self._directory = directory
        self._renewed: int | None = None

    def renew(self, now: float) -> None:
        """Be there for `now` (seconds since the epoch) and a little longer. Cheap while it is. Raises: OSError."""
        current = int(now) // SECONDS
        if current == self._renewed:
            return
        wanted = {f"{current + ahead:09d}" for ahead in range(_AHEAD + 1)}
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directory.chmod(0o755)  # the balancer's workers look, whatever the umask is
        there = {path.name for path in self._directory.iterdir()}
        for name in wanted - there:
            (self._directory / name).touch(mode=0o644)
        for name in there - wanted:
            (self._directory / name).unlink(missing_ok=True)
        self._renewed = current

    def end(self) -> None:
        """Nobody reads from now on. Never raises."""
        self._renewed = None
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                path.unlink(missing_ok=True)
