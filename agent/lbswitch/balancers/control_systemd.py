"""`control: systemd`: a unit of this host, asked and reloaded with systemctl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control_host import OnThisHost, arguments_of, process
from lbswitch.balancers.control_masters import Process
from lbswitch.core.config import BalancerConfig
from lbswitch.core.config import Control as Kind
from lbswitch.errors import ReloadFailed

_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_ASK_S = 10.0
_RELOAD_S = 60.0
_LOG_LINES = 10
_DENIED = ("interactive authentication required", "access denied", "permission denied", "not authorized")


class ControlSystemd(OnThisHost):
    """The balancer that a systemd unit runs."""

    kind = Kind.SYSTEMD

    def __init__(self, balancer: BalancerConfig, *, systemctl: str = "systemctl", booted: Path = _BOOTED) -> None:
        """`systemctl` is the program to ask with; `booted` exists where systemd runs the host."""
        self._balancer = balancer.kind
        self._unit = balancer.unit or f"{balancer.kind}.service"
        self._systemctl = systemctl
        self._booted = booted
        self._known: Process | None = None

    def reload(self) -> None:
        """`systemctl reload UNIT`. Raises: ReloadFailed with its words and the end of the unit's journal."""
        problem = self._unavailable()
        if problem is not None:
            raise ReloadFailed(f"{self._unit} was not reloaded: {problem}")
        try:
            result = self._ask("reload", self._unit, timeout_s=_RELOAD_S)
        except (OSError, procs.TimedOut) as error:
            raise ReloadFailed(
                f"{self._unit} was not reloaded: {error}; look at: {self._systemctl} status {self._unit}"
            ) from error
        if not result.ok:
            raise ReloadFailed(self._refused(result.output.strip()))

    def pid(self) -> int | None:
        """The unit's main process."""
        # Asking systemd takes 10 ms; a reload changes neither nginx's nor HAProxy's main process.
        if self._known is not None and process(self._known.pid) == self._known:
            return self._known.pid
        main = self._properties().get("MainPID", "0")
        self._known = process(int(main)) if main.isdecimal() and int(main) > 0 else None
        return self._known.pid if self._known is not None else None

    def is_running(self) -> bool:
        """Whether the unit has a main process."""
        return self.pid() is not None

    def trouble(self) -> str | None:
        """That there is no systemd, no such unit, or that it is not active."""
        problem = self._unavailable()
        if problem is not None:
            return problem
        properties = self._properties()
        if not properties:
            return f"systemd does not answer about {self._unit}; look at: {self._systemctl} status {self._unit}"
        return self._judge(properties)

    def arguments(self) -> list[str]:
        """The command line of the main process."""
        return arguments_of(self.pid())

    def how_to(self, verb: str) -> str:
        """With systemctl."""
        return f"systemctl {verb} {self._unit.removesuffix('.service')}"

    # -- asking systemd ----------------------------------------------------------------------------------------

    def _ask(self, verb: str, *arguments: str, timeout_s: float = _ASK_S) -> procs.Result:
        argv = [self._systemctl, verb, "--no-pager", "--no-ask-password", *arguments]
        return self.run(argv, timeout_s=timeout_s)

    def _properties(self) -> dict[str, str]:
        """What systemd says of the unit; empty when it can't be asked."""
        if self._unavailable() is not None:
            return {}
        names = "LoadState,ActiveState,SubState,Result,MainPID"
        try:
            result = self._ask("show", "-p", names, self._unit)
        except (OSError, procs.TimedOut):
            return {}
        pairs = (line.partition("=") for line in result.output.splitlines())
        return {name: value for name, mark, value in pairs if mark} if result.ok else {}

    # -- words -------------------------------------------------------------------------------------------------

    def _unavailable(self) -> str | None:
        if self._booted.is_dir():
            return None
        return (
            "systemd does not run this host (process 1 is something else), so control: systemd can't work here; use "
            "control: signal"
        )

    def _judge(self, properties: dict[str, str]) -> str | None:
        load, active = properties.get("LoadState", ""), properties.get("ActiveState", "")
        if load == "not-found":
            return f"systemd knows no unit {self._unit}; name the right one with balancer.unit"
        if load == "masked":
            return f"{self._unit} is masked, so it can't be started: systemctl unmask {self._unit}"
        if load not in ("loaded", ""):
            return f"{self._unit} can't be used: systemd calls it {load}; look at: systemctl status {self._unit}"
        if active not in ("active", "reloading"):
            state = f"{active} ({properties.get('SubState', '')}, {properties.get('Result', '')})"
            return f"{self._unit} is {state}; start it: {self.how_to('start')}"
        if properties.get("MainPID", "0") == "0":
            return f"systemd does not know the main process of {self._unit}; its unit needs PIDFile= or Type=notify"
        return None

    def _refused(self, words: str) -> str:
        if any(denied in words.lower() for denied in _DENIED):
            return (
                f"{self._unit} was not reloaded, this user may not: {words}; the configuration before is still "
                "serving. Install lbswitch's polkit rule, or run the agent as root (docs/service-files.md)"
            )
        trouble = self.trouble()
        reason = f"{words or 'systemctl failed'}{f' ({trouble})' if trouble else ''}"
        return f"{self._unit} was not reloaded: {reason}{self._journal()}"

    def _journal(self) -> str:
        """The end of the unit's journal, where this user may read it."""
        argv: Sequence[str] = ("journalctl", "-q", "--no-pager", "-o", "cat", "-n", str(_LOG_LINES), "-u", self._unit)
        try:
            result = self.run(argv, timeout_s=_ASK_S)
        except (OSError, procs.TimedOut):
            return ""
        return f"\n{result.output.strip()}" if result.ok and result.output.strip() else ""
