"""The faults: what each of them breaks when a step is announced, and when it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from tests.faults.shim import counted
from tests.faults.site import EXTRA, Site
from tests.faults.socket_proxy import SocketProxy
from tests.faults.zygote import arm

_ids = count(1)
_RELOADS = ("nginx_process._RELOAD_S", "nginx_guest_master._RELOAD_S", "haproxy_handover._RELOAD_S")
_CHECKS = (*("nginx._CHECK_S", "nginx_guest_check._CHECK_S", "haproxy_program._TIMEOUT_S", "haproxy_whole._TIMEOUT_S"),)
_ASKS_SOCKET = {"prepare", "reload", "commit", "revert"}
"""Steps at which the runtime socket is used."""


class Fault:
    """One kind: `begin` before the command, `orders` for the step, `end` after the answer."""

    patience: ClassVar[dict[str, float]] = {}
    is_fatal = False
    """Whether it kills the agent."""
    dies_after = False
    """Whether the agent is killed while the fault lasts, before it could put anything right."""

    def __init__(self, name: str) -> None:
        self.name = name

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        """Why it can't strike at the first of these steps or after it; None when it can.

        `reloads` tells whether this way reloads at all: the way back then does, too.
        """
        return None

    def begin(self, site: Site) -> None:
        """Make it possible."""

    def orders(self, site: Site) -> list[dict[str, Any]]:
        """What happens at the step, without the step; an order with a step of its own is for that one."""
        raise NotImplementedError

    def end(self, site: Site) -> None:
        """All works again."""

    def has_struck(self, site: Site) -> bool:
        """Whether anything met it; asked before `end`."""
        return True

    def order(self, site: Site, step: str, nth: int, more: Sequence[dict[str, Any]] = ()) -> None:
        """Have it happen at the nth step of this name in the next operation, after `more`."""
        orders = [{"step": step, "nth": nth, **order} for order in self.orders(site)]
        document = {"id": next(_ids) + os.getpid() * 100_000, "orders": [*more, *orders], "patience": self.patience}
        target = site.directory / "faults.json"
        target.with_suffix(".new").write_text(json.dumps(document))
        target.with_suffix(".new").rename(target)
        (site.directory / "struck.log").write_text("")


def forget_orders(site: Site) -> None:
    """The next steps are as in normal operation."""
    (site.directory / "faults.json").unlink(missing_ok=True)


class Nothing(Fault):
    """For learning which steps are taken."""

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return []


class Kill(Fault):
    """SIGKILL of the agent."""

    is_fatal = True

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return [{"do": "kill"}]


class Bug(Fault):
    """An exception of a kind that nobody foresaw."""

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return [{"do": "bug"}]


class Disk(Fault):
    """Changes below the directories of the agent fail; error 0: the first of them kills it."""

    def __init__(self, name: str, error: int, *, once: bool = False, skip: int = 0, dies_after: bool = False) -> None:
        super().__init__(name)
        self._control = [1, error, int(once), skip]
        self.is_fatal = error == 0
        self.dies_after = dies_after

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return [{"do": "disk", "control": self._control}]

    def end(self, site: Site) -> None:
        arm(site.agent.control, 0, 0, 0, 0)

    def has_struck(self, site: Site) -> bool:
        return counted(site.agent.control).hits > 0


class Checker(Fault):
    """The balancer's checker does not tell the truth, or nothing at all."""

    patience: ClassVar = {f"lbswitch.balancers.{name}": 1.0 for name in _CHECKS}

    def __init__(self, name: str, mode: str) -> None:
        super().__init__(name)
        self._mode = mode

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        return None if "check" in rest else "the checker is not asked from here on"

    def orders(self, site: Site) -> list[dict[str, Any]]:
        (site.directory / "checker.log").unlink(missing_ok=True)
        files = {str(site.directory / "checker"): self._mode}
        return [{"do": "write", "files": files}]

    def end(self, site: Site) -> None:
        (site.directory / "checker").write_text("")
        site.extra.write_text(EXTRA[site.kind][0])

    def has_struck(self, site: Site) -> bool:
        return (site.directory / "checker.log").exists()


class CheckerSaysYes(Checker):
    """To a configuration that the balancer refuses; the one before is good."""

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        return super().why_not(site, rest, reloads) or (None if reloads else "nothing reads the files: no reload")

    def orders(self, site: Site) -> list[dict[str, Any]]:
        bad = {"do": "write", "files": {str(site.extra): EXTRA[site.kind][1]}}
        good = {"do": "write", "files": {str(site.extra): EXTRA[site.kind][0]}, "step": "revert", "nth": 1}
        return [*super().orders(site), bad, good]


class ReloadRefused(Fault):
    """The balancer refuses every configuration, although the checker says yes."""

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        return _why_no_reload(rest, reloads)

    def orders(self, site: Site) -> list[dict[str, Any]]:
        files = {str(site.directory / "checker"): "yes", str(site.extra): EXTRA[site.kind][1]}
        return [{"do": "write", "files": files}]

    def end(self, site: Site) -> None:
        (site.directory / "checker").write_text("")
        site.extra.write_text(EXTRA[site.kind][0])


class ReloadHangs(Fault):
    """The master is stopped (SIGSTOP), so that a reload times out."""

    patience: ClassVar = {f"lbswitch.balancers.{name}": 1.0 for name in _RELOADS}

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._pid = 0

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        return _why_no_reload(rest, reloads)

    def begin(self, site: Site) -> None:
        self._pid = site.master()

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return [{"do": "stop", "pid": self._pid}]

    def end(self, site: Site) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


def _why_no_reload(rest: Sequence[str], reloads: bool) -> str | None:
    if "reload" in rest or (reloads and "revert" in rest):
        return None
    if not reloads:
        return "nothing is reloaded in this way"
    return "nothing is reloaded from here on"


class Socket(Fault):
    """HAProxy's master socket fails after some exchanges."""

    patience: ClassVar = {f"lbswitch.balancers.{name}": 1.0 for name in _RELOADS}

    def __init__(self, name: str, mode: str, after: int, *, once: bool = False) -> None:
        super().__init__(name)
        self._order = f"{mode} {after} {int(once)}"
        self._proxy: SocketProxy | None = None

    def why_not(self, site: Site, rest: Sequence[str], reloads: bool) -> str | None:
        if site.kind != "haproxy":
            return "nginx has no runtime socket"
        return None if _ASKS_SOCKET.intersection(rest) else "the socket is not used from here on"

    @property
    def _mode(self) -> str:
        return "socket-mode"

    def begin(self, site: Site) -> None:
        self._proxy = SocketProxy(site.master_socket, site.directory / self._mode)
        self._proxy.open()

    def orders(self, site: Site) -> list[dict[str, Any]]:
        return [{"do": "write", "files": {str(site.directory / self._mode): self._order}}]

    def end(self, site: Site) -> None:
        Path(site.directory / self._mode).write_text("")
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None

    def has_struck(self, site: Site) -> bool:
        return self._proxy is not None and self._proxy.hits > 0


def matrix() -> list[Fault]:
    """The columns."""
    return [
        Kill("SIGKILL"),
        Bug("bug"),
        Disk("ENOSPC", errno.ENOSPC),
        Disk("ENOSPC once", errno.ENOSPC, once=True),
        Disk("EIO", errno.EIO),
        Disk("EIO once", errno.EIO, once=True),
        Disk("EROFS, SIGKILL", errno.EROFS, dies_after=True),
        Disk("SIGKILL in write", 0),
        Checker("checker hangs", "hang"),
        Checker("checker crashes", "crash"),
        Checker("checker says no", "no"),
        CheckerSaysYes("checker says yes", "yes"),
        ReloadRefused("reload refused"),
        ReloadHangs("reload hangs"),
        Socket("socket closes", "close", 2),
        Socket("answers lost", "lose", 2),
        Socket("socket hangs", "hang", 2),
    ]


QUICK = ("SIGKILL", "ENOSPC once", "reload hangs", "answers lost")
"""One of each kind, for when the whole matrix would take too long."""
