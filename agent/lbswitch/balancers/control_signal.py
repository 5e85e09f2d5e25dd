"""`control: signal`: the master is found by its pid file or its command line, and told by a signal."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
from functools import lru_cache
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control_host import OnThisHost, arguments_of, is_trusted, process, processes, takes
from lbswitch.balancers.control_masters import Process, is_master_worker, masters, reads
from lbswitch.core.config import BalancerConfig, BalancerKind
from lbswitch.core.config import Control as Kind
from lbswitch.errors import ReloadFailed

_RELOAD = {BalancerKind.NGINX: signal.SIGHUP, BalancerKind.HAPROXY: signal.SIGUSR2}
_SEARCH = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", os.defpath))
_ASK_S = 10.0


class ControlSignal(OnThisHost):
    """A balancer on this host that anybody may have started."""

    kind = Kind.SIGNAL

    def __init__(self, balancer: BalancerConfig) -> None:
        """Nothing is looked for before it is needed."""
        self._balancer = balancer.kind
        self._config = tuple(map(str, balancer.config or ()))
        self._pid_file = Path(balancer.pid_file) if balancer.pid_file is not None else None

    def reload(self) -> None:
        """Send SIGHUP (nginx) or SIGUSR2 (HAProxy) to the master. Raises: ReloadFailed."""
        found = self._candidates()
        problem = self._problem(found)
        if problem is not None:
            raise ReloadFailed(f"{self._balancer} was not reloaded: {problem}")
        number = _RELOAD[self._balancer]
        if not takes(found[0].pid, number):
            raise ReloadFailed(
                f"{self._balancer} (pid {found[0].pid}) was not reloaded: it does not take {number.name}, which would "
                "end it; is it still starting?"
            )
        try:
            os.kill(found[0].pid, number)
        except ProcessLookupError:
            raise ReloadFailed(f"{self._balancer} ended before it was reloaded; {self._start()}") from None
        except PermissionError as error:
            raise ReloadFailed(self._not_permitted(found[0].pid, number)) from error

    def pid(self) -> int | None:
        """The master; None, too, when several could be meant."""
        found = self._candidates()
        return found[0].pid if len(found) == 1 else None

    def is_running(self) -> bool:
        """Whether at least one could be meant."""
        return bool(self._candidates())

    def trouble(self) -> str | None:
        """That it is down, that several could be meant, or that it can't take the signal."""
        return self._problem(self._candidates())

    def arguments(self) -> list[str]:
        """The command line of the master."""
        return arguments_of(self.pid())

    def how_to(self, verb: str) -> str:
        """By systemd where it runs this host, as it does for most; else by the program."""
        if Path("/run/systemd/system").is_dir():
            return f"systemctl {verb} {self._balancer}"
        return f"service {self._balancer} {verb}"

    # -- finding it --------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Process]:
        """The pid file's word is taken if that process is a master; it may be lost or stale."""
        named = self._named()
        if named is not None:
            return [named]
        found = masters(self._balancer, processes(self._owners()))
        return [master for master in found if reads(self._balancer, master, self._config, _built_in)]

    def _named(self) -> Process | None:
        if self._pid_file is None:
            return None
        try:
            found = process(int(self._pid_file.read_text().split()[0]))
        except (OSError, ValueError, IndexError):
            return None
        if found is None or not masters(self._balancer, [found]) or not is_trusted(found.pid, self._owners()):
            return None
        return found

    def _owners(self) -> set[int]:
        """Who may write the configuration says what the balancer does in any case."""
        found = set()
        for path in self._config:
            with contextlib.suppress(OSError):
                found.add(Path(path).stat().st_uid)
        return found

    # -- words -------------------------------------------------------------------------------------------------

    def _problem(self, found: list[Process]) -> str | None:
        if not found:
            where = f"{self._pid_file} names none, and " if self._pid_file is not None else ""
            return f"{where}no {self._balancer} master runs with {', '.join(self._config)}; {self._start()}"
        if len(found) > 1:
            listed = "; ".join(f"pid {master.pid}: {' '.join(master.argv)}" for master in found)
            return f"several could be meant ({listed}); name the pid file of the right one with balancer.pid_file"
        if self._balancer is BalancerKind.HAPROXY and not is_master_worker(found[0]):
            return (
                f"HAProxy (pid {found[0].pid}) runs without -W or -Ws, so there is no master that could reload; start "
                "it with -Ws, as the distributions' service files do"
            )
        return None

    def _start(self) -> str:
        return f"start it: {self.how_to('start')}"

    def _not_permitted(self, pid: int, number: signal.Signals) -> str:
        return (
            f"{self._balancer} (pid {pid}) was not reloaded: the user {_me()} may not send {number.name} to it; the "
            "configuration before is still serving. Use control: systemd with lbswitch's polkit rule, or give the "
            "agent CAP_KILL (docs/service-files.md)"
        )


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


_ARGUMENT = re.compile(r"--(prefix|conf-path)=(\S+)")


@lru_cache(maxsize=8)
def _built_in(program: str) -> tuple[str, str]:
    """Prefix and main file that an nginx was built with; Debian's when it can't be asked."""
    try:
        said = procs.run([_found(program), "-V", "-e", "stderr"], timeout_s=_ASK_S).output
    except (OSError, procs.TimedOut):
        said = ""
    built = dict(_ARGUMENT.findall(said))
    return built.get("prefix", "/usr/local/nginx"), built.get("conf-path", "/etc/nginx/nginx.conf")


def _found(program: str) -> str:
    return program if "/" in program else shutil.which(program, path=_SEARCH) or program
