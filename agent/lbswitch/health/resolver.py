"""Host names to addresses, without ever blocking the event loop or its worker threads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from ipaddress import ip_address

from lbswitch.health.checking import CheckFailed

_MOST_ADDRESSES = 4


class Resolver:
    """Looks each name up once at a time, however many checks ask for it and however long the answer takes.

    A lookup can't be cancelled, and may take many seconds. It has a daemon thread of its own, so that a dead DNS server
    neither fills the thread pool that everything else uses nor delays the agent's exit.
    """

    def __init__(self) -> None:
        """Nothing is looked up yet."""
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """IP addresses to try, in order. Raises: CheckFailed `no such host: ...`."""
        if _is_address(host):
            return [host]
        answer = self._asked.get(host)
        if answer is None:
            answer = self._asked[host] = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._look_up, args=(host, answer), name=f"resolve {host}", daemon=True).start()
        found = await asyncio.shield(answer)
        if not found:
            raise CheckFailed(f"no such host: {host}")
        return found

    def _look_up(self, host: str, answer: asyncio.Future[list[str]]) -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            entries = []
        found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))[:_MOST_ADDRESSES]
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            answer.get_loop().call_soon_threadsafe(self._answer, host, answer, found)

    def _answer(self, host: str, answer: asyncio.Future[list[str]], found: list[str]) -> None:
        self._asked.pop(host, None)
        if not answer.done():
            answer.set_result(found)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
