"""HAProxy as a daemon that outlives the agent: a master that stays, and workers that a reload replaces."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from lbswitch.balancers import haproxy_binds
from lbswitch.balancers.haproxy_binds import Taken
from lbswitch.balancers.haproxy_handover import Handover, has_new_worker, until
from lbswitch.balancers.haproxy_program import Program, alerts
from lbswitch.balancers.haproxy_runtime import Processes, Runtime, Unanswered
from lbswitch.balancers.known_process import KnownProcess
from lbswitch.core.values import Endpoint
from lbswitch.errors import CheckFailed, ReloadFailed, StartFailed

_START_S = 15.0
_SOFT_STOP_S = 10.0
_STOP_S = 5.0
_UNSEEN_S = 1.0
_PAUSE_S = 0.01


class Process:
    """The HAProxy whose configuration is below `directory`."""

    def __init__(self, program: Program, directory: Path, configuration: Path, runtime: Runtime) -> None:
        """`configuration` is the directory that is installed; the process may run or not."""
        self._program = program
        self._configuration = configuration
        self._runtime = runtime
        self._pid_file = directory / "haproxy.pid"
        self._master_socket = directory / "master.sock"
        self._known = KnownProcess()

    def pid(self) -> int | None:
        """The master, or None when there is none: a pid that another program got meanwhile does not count."""
        return self._known.pid() or self._found()

    def _found(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):  # empty for a moment at a reload
            pid = int(self._pid_file.read_text().split()[0])
            if self._is_ours(pid):
                return self._known.remember(pid)
        with contextlib.suppress(Unanswered):  # the pid file was lost
            pid = self._runtime.processes().master
            if self._is_ours(pid):
                return self._known.remember(pid)
        return None

    def _is_ours(self, pid: int) -> bool:
        """Whether its command line names our configuration.

        The master runs itself anew on a reload, with the same arguments.
        """
        return os.fsencode(self._configuration / "haproxy.cfg") in _arguments(pid)

    def start(self, binds: Mapping[str, Endpoint]) -> None:
        """Start it, detached, and wait for its worker. Raises: StartFailed, BalancerMissing."""
        self._wait_for_free(binds)
        started, output = self._program.run(
            [
                *("-W", "-D"),
                *("-S", f"{self._master_socket},mode,600"),
                *("-p", str(self._pid_file)),
                *("-C", str(self._configuration)),
                *("-f", str(self._configuration / "haproxy.cfg")),
            ]
        )
        if not started:
            raise StartFailed(f"HAProxy did not start:\n{alerts(output)}")
        if not until(lambda: has_new_worker(self._runtime, ()), _START_S):
            raise StartFailed(f"HAProxy was started, but no worker answered within {_START_S:g} s")

    def _wait_for_free(self, binds: Mapping[str, Endpoint]) -> None:
        """Workers whose master was killed end by themselves, a moment later. Raises: StartFailed."""
        began = time.monotonic()
        while obstacles := list(haproxy_binds.taken(binds)):
            patience_s = min(self._patience_s(obstacle) for obstacle in obstacles)
            if time.monotonic() - began >= patience_s:
                raise StartFailed(_sentences("HAProxy was not started", obstacles))
            time.sleep(_PAUSE_S)

    def _patience_s(self, obstacle: Taken) -> float:
        """How long it may take until this address is free; nobody seen to hold it may be somebody who just ended."""
        if not obstacle.is_held:
            return 0.0
        if not obstacle.pids:
            return _UNSEEN_S
        return _STOP_S if all(self._is_ours(pid) or not _arguments(pid) for pid in obstacle.pids) else 0.0

    def reload(self, binds: Mapping[str, Endpoint]) -> None:
        """Have a new worker take over. Raises: ReloadFailed; then the old worker still serves."""
        master = self.pid()
        if master is None:
            raise ReloadFailed("HAProxy does not run, so it can't be reloaded; start it")
        handover = Handover(self._runtime)
        self._refuse_taken(binds, handover.before)
        try:
            os.kill(master, signal.SIGUSR2)
        except OSError as error:
            raise ReloadFailed(f"HAProxy (pid {master}) can't be told to reload: {error.strerror}") from error
        handover.wait(self._why)

    def _refuse_taken(self, binds: Mapping[str, Endpoint], running: Processes) -> None:
        """Holders that this user may not see are HAProxy's to find: the old worker may be one of them."""
        ours = {running.master, *running.workers}
        obstacles = [
            obstacle
            for obstacle in haproxy_binds.taken({name: bind for name, bind in binds.items() if not bind.is_unix})
            if not obstacle.is_held or (obstacle.pids and not ours.intersection(obstacle.pids))
        ]
        if obstacles:
            raise ReloadFailed(_sentences("HAProxy was not reloaded and serves as before", obstacles))

    def _why(self) -> str:
        """The daemon tells nobody why it refused; its checker may."""
        try:
            self._program.check(self._configuration)
        except CheckFailed as error:
            return str(error)
        return ""

    def stop(self) -> None:
        """End it softly, then less so; nothing happens when it does not run. Raises: StartFailed.

        Softly is until no request is in flight: idle keep-alive connections would hold it up for a minute.
        """
        pid = self.pid()
        if pid is None:
            return
        self._signal(pid, signal.SIGUSR1)
        until(lambda: not self._is_ours(pid) or self._is_idle(), _SOFT_STOP_S)
        self._signal(pid, signal.SIGTERM)
        if not until(lambda: not self._is_ours(pid), _STOP_S):
            raise StartFailed(f"HAProxy (pid {pid}) did not stop within {_STOP_S:g} s of SIGTERM")

    def _signal(self, pid: int, number: signal.Signals) -> None:
        if not self._is_ours(pid):
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise StartFailed(f"HAProxy (pid {pid}) can't be stopped by this user: {error.strerror}") from error

    def _is_idle(self) -> bool:
        """Whether no worker has a request in flight. Raises: Unanswered."""
        return not any(any(self._runtime.requests(worker).values()) for worker in self._runtime.processes().workers)


def _arguments(pid: int) -> list[bytes]:
    """The command line of a process; empty when it ended, also while nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _sentences(what: str, obstacles: list[Taken]) -> str:
    shown = "; ".join(str(obstacle) for obstacle in obstacles[:5])
    more = f"; and {len(obstacles) - 5} more" if len(obstacles) > 5 else ""
    return f"{what}: {shown}{more}"
