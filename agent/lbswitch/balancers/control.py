"""How a balancer that somebody else manages is checked, found and reloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lbswitch import procs
from lbswitch.core.config import BalancerConfig
from lbswitch.core.config import Control as Kind


class Control(Protocol):
    """Reaches the owner's balancer. Nothing is remembered that could be out of date when it is used."""

    @property
    def kind(self) -> Kind:
        """Which of the three it is."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> procs.Result:
        """Run a program where the balancer runs: on this host, or in its container.

        Raises: OSError, procs.TimedOut, BalancerMissing (the container can't be reached, or lacks the program).
        """

    def reload(self) -> None:
        """Ask for the reload; whether it happened is for the caller to see. Raises: ReloadFailed."""

    def pid(self) -> int | None:
        """The master, as this host counts processes; None when it is down or can't be known from here."""

    def is_running(self) -> bool:
        """Whether the master is alive. False, too, when nobody can be asked: `trouble` says so."""

    def trouble(self) -> str | None:
        """Why it counts as down or can't be reloaded, as a clause with what to do; None when all is well."""

    def arguments(self) -> list[str]:
        """The running master's command line, program first and without nginx's title; [] when it is down."""

    def seen(self, path: Path) -> Path:
        """A path of this host as the balancer sees it. Raises: CheckFailed (not mounted: says what to mount)."""

    def read(self, path: Path) -> bytes:
        """A file, by the path that the balancer uses. Raises: OSError."""

    def names(self, directory: Path) -> list[str]:
        """The entries of a directory, sorted, by the path that the balancer uses. Raises: OSError."""

    def how_to(self, verb: str) -> str:
        """How its owner does `start`, `stop`, `restart` or `reload`, for messages: `systemctl start nginx`."""


def make(balancer: BalancerConfig) -> Control:
    """The control that the configuration names; nothing is looked at before it is needed."""
    if balancer.controlled_by is Kind.DOCKER:
        from lbswitch.balancers.control_docker import ControlDocker

        return ControlDocker(balancer)
    if balancer.controlled_by is Kind.SYSTEMD:
        from lbswitch.balancers.control_systemd import ControlSystemd

        return ControlSystemd(balancer)
    from lbswitch.balancers.control_signal import ControlSignal

    return ControlSignal(balancer)
