"""Where questions from this host come from, as a balancer in a container sees them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control import Control
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing, CheckFailed

_ROUTES = Path("/proc/net/route")
_TIMEOUT_S = 10.0


class Neighbors:
    """The gateways of a container's own network. One that shares this host's network has none: it sees loopback."""

    def __init__(self, control: Control) -> None:
        """Nothing is asked yet."""
        self._control = control
        self._known: list[str] | None = None

    def addresses(self) -> list[str]:
        """Asked once: a container's network does not change while it runs. Raises: CheckFailed."""
        if self._control.kind is not Kind.DOCKER:
            return []
        if self._known is None:
            self._known = sorted(self._gateways())
        return self._known

    def _gateways(self) -> set[str]:
        try:
            result = self._control.run(["cat", str(_ROUTES)], timeout_s=_TIMEOUT_S)
        except (OSError, procs.TimedOut, BalancerMissing) as error:
            raise CheckFailed(f"the network of the container can't be known: {error}") from error
        if not result.ok:
            raise CheckFailed(f"the network of the container can't be known: {result.output.strip()}")
        inside = set(gateways(result.output))
        try:
            return inside - set(gateways(_ROUTES.read_text()))
        except OSError:
            return inside


def gateways(table: str) -> Iterator[str]:
    """The default routes' gateways: `Iface Destination Gateway ...`, in hexadecimal, low byte first (proc(5))."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 2 and words[1] == "00000000" and words[2] != "00000000":
            yield str(ipaddress.IPv4Address(bytes.fromhex(words[2])[::-1]))
