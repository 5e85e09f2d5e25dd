"""Which worker has which connection, by the inodes of its open descriptors."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from contextlib import suppress

from lbswitch.balancers.socket_tables import open_sockets


class SocketOwners:
    """Remembered from one look to the next: looking through 10,000 descriptors takes 25 ms."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: dict[int, int | None] = {}
        self._lock = threading.Lock()

    def of(self, inodes: Collection[int], pids: Collection[int]) -> Mapping[int, int | None]:
        """By inode one of these processes, or None for somebody else's. Raises: PermissionError.

        The inodes are to be found before the processes, so that whoever has one is among these.
        """
        with self._lock:
            known = {inode: self._known[inode] for inode in inodes if inode in self._known}
        unknown = set(inodes) - known.keys()
        if unknown:
            known |= dict.fromkeys(unknown) | _found(unknown, pids)
        with self._lock:
            self._known = known
        return {inode: pid if pid in pids else None for inode, pid in known.items()}


def _found(inodes: Collection[int], pids: Collection[int]) -> dict[int, int | None]:
    """Raises: PermissionError."""
    found: dict[int, int | None] = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found |= dict.fromkeys(open_sockets(pid).keys() & inodes, pid)
    return found
