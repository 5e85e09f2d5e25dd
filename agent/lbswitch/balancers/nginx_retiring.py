"""How clients leave workers that are about to be replaced, on an nginx that would cut their idle connections.

Before 1.27.4 a reload closes the connections that clients keep open, also under a request that is on its way. So the
workers of the old configuration are told first to close each connection with the answer that it gets next: they look
for a file that is named after their revision. What is idle for longer than the patience is cut as ever.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lbswitch.balancers.nginx_pointer import make_directory

DIRECTORY = "closing"
_PATIENCE_S = 0.3


class Retiring:
    """The files below one prefix."""

    def __init__(self, prefix: Path) -> None:
        """Nothing is made before the first announcement."""
        self._directory = prefix / DIRECTORY
        self._old: str | None = None

    def replaces(self, old: str | None, new: str) -> None:
        """This revision is about to be installed in the place of that one: its workers keep connections open."""
        self._old = old if old != new else None
        with contextlib.suppress(OSError):
            (self._directory / new).unlink(missing_ok=True)

    def announce(self) -> None:
        """Have the workers of the old revision close what they answer, and give clients the time to see it.

        What can't be written leaves a reload as costly as it is without.
        """
        old, self._old = self._old, None
        if old is None:
            return
        with contextlib.suppress(OSError):
            make_directory(self._directory)
            for path in self._directory.iterdir():
                path.unlink()
            (self._directory / old).touch()
            time.sleep(_PATIENCE_S)
