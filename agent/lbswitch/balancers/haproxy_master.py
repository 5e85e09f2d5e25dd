"""The master socket of somebody else's HAProxy: whether it answers, and what to write where if it does not."""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Iterator
from pathlib import Path

from lbswitch.balancers.control import Control
from lbswitch.balancers.haproxy_runtime import Runtime, Unanswered
from lbswitch.core.config import Control as Kind

_BRIEF_S = 0.5


class MasterSocket:
    """`balancer.master_socket`."""

    def __init__(self, runtime: Runtime, control: Control) -> None:
        """Nothing is asked yet."""
        self._runtime = runtime.with_timeout(_BRIEF_S)
        self._control = control

    def answers(self) -> bool:
        """Whether a master is there."""
        try:
            self._runtime.processes()
        except Unanswered:
            return False
        return True

    def mend(self) -> str:
        """What to do, to be put behind an error; empty when it is there and may be used."""
        path = self._runtime.path
        if self._can_be_used():
            return ""
        what = "may not be used by this user" if _exists(path) else "does not exist"
        if self._control.kind is Kind.DOCKER:
            return (
                f"; the master socket {path} {what}: start HAProxy in the container with -S SOCKET,mode,666 in a "
                "directory that is mounted, and name the socket as this host sees it in balancer.master_socket"
            )
        return (
            f"; the master socket {path} {what}: start HAProxy with -S {socket_option(path)} (Debian and Ubuntu: in "
            f"EXTRAOPTS of /etc/default/haproxy), then {self._control.how_to('restart')}"
        )

    def warnings(self) -> Iterator[str]:
        """A HAProxy that runs and can't be reached."""
        if not self.answers() and self._control.is_running():
            yield "no switch can reach HAProxy: it runs, but nobody answers at its master socket" + self.mend()

    def _can_be_used(self) -> bool:
        return os.access(self._runtime.path, os.W_OK)


def socket_option(path: object) -> str:
    """The value of -S that lets this process use the socket."""
    if os.geteuid() == 0:
        return str(path)
    group = str(os.getegid())
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(os.getegid()).gr_name
    return f"{path},mode,660,group,{group}"


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
