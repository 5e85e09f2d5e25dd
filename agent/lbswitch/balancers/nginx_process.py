"""The running nginx: its master process by the pid file, started, reloaded and stopped by signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from lbswitch.balancers.known_process import KnownProcess
from lbswitch.balancers.nginx_binds import Unavailable, remove_stale_socket, unavailable
from lbswitch.balancers.nginx_pointer import make_directory
from lbswitch.balancers.stopmark import StopMark
from lbswitch.core.values import Endpoint
from lbswitch.errors import ReloadFailed, StartFailed

_START_S = 30.0
_RELOAD_S = 30.0
_TERMINATE_S = 5.0
_PAUSE_S = 0.005
_EMERGENCY = re.compile(r"\[emerg\] (?:\d+#\d+: )?(?:\*\d+ )?(.*)")
_LOG_TAIL_BYTES = 65536


class NginxProcess:
    """The nginx whose prefix is `prefix` and whose configuration is `prefix/current/nginx.conf`."""

    def __init__(self, prefix: Path, patience_s: float = 10.0) -> None:
        """`patience_s` is how long a stop lets requests in flight finish."""
        self._prefix = prefix
        self._patience_s = patience_s
        self._configuration = prefix / "current" / "nginx.conf"
        self._pid_file = prefix / "nginx.pid"
        self._error_log = prefix / "error.log"
        self._mark = StopMark(prefix)
        self._known = KnownProcess()

    def pid(self) -> int | None:
        """The master's pid, if it is alive and really this nginx.

        Workers whose master was killed go on serving what they serve, and follow the pointer; that is None, too. The
        next start lets them finish and takes their place.
        """
        return self._known.pid() or self._found()

    def _found(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        is_ours = command.startswith(b"nginx: master process") and os.fsencode(self._configuration) in command
        return self._known.remember(pid) if is_ours else None

    def is_stopped_on_purpose(self) -> bool:
        """Whether somebody stopped it and nobody started it since."""
        return self._mark.is_set()

    # -- start -------------------------------------------------------------------------------------------------

    def start(self, program: str, binds: Mapping[str, Endpoint]) -> None:
        """Start it in a session of its own; one that runs is left alone. Raises: StartFailed."""
        self._remember(self._mark.clear)
        if self.pid() is not None:
            return
        self._make_room(binds)
        words = self._launch(program)
        if words:
            taken = unavailable(binds)  # somebody was faster
            raise StartFailed(f"nginx did not start: {words}{f' ({_listed(taken)})' if taken else ''}")
        if not _wait(self._has_workers, _START_S):
            said = self._last_words(0) or f"nothing in {self._error_log}"
            raise StartFailed(f"nginx has no workers {_START_S:g} s after its start: {said}")

    def _has_workers(self) -> bool:
        pid = self.pid()
        return pid is not None and bool(_children(pid))

    def _make_room(self, binds: Mapping[str, Endpoint]) -> None:
        try:
            make_directory(self._prefix / "tmp")
            for endpoint in binds.values():
                remove_stale_socket(endpoint)
        except OSError as error:
            raise StartFailed(f"nginx can't be started: {error.strerror}: {error.filename}") from error
        problems = unavailable(binds)
        if problems and self._retire_orphans(problems):
            problems = unavailable(binds)
        if problems:
            raise StartFailed(f"nginx can't be started: {_listed(problems)}")

    def _retire_orphans(self, problems: list[Unavailable]) -> bool:
        """Workers of ours whose master was killed still hold the listeners: let them finish and go.

        Whether there were some, and all listeners are free now.
        """
        if not any(self._is_worker_of_ours(pid) for problem in problems for pid in problem.pids):
            return False
        for pid in filter(self._is_worker_of_ours, _all_pids()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        return _wait(lambda: not unavailable(_binds(problems)), _TERMINATE_S)

    def _is_worker_of_ours(self, pid: int) -> bool:
        """By its title, and because it has our error log open."""
        import psutil

        try:
            process = psutil.Process(pid)
            if not " ".join(process.cmdline()).startswith("nginx: worker process"):
                return False
            return os.path.realpath(self._error_log) in {file.path for file in process.open_files()}
        except psutil.Error:
            return False

    def _launch(self, program: str) -> str:
        """Run nginx until it is in the background; what it said if it failed, else nothing."""
        argv = [program, "-p", str(self._prefix), "-c", str(self._configuration), "-e", str(self._error_log)]
        # A file, not a pipe: the daemon could hold a pipe open. NGINX names sockets to inherit from another nginx.
        environment = {name: value for name, value in os.environ.items() if name != "NGINX"}
        try:
            with tempfile.TemporaryFile() as output:
                code = self._run(argv, output.fileno(), environment)
                output.seek(0)
                words = output.read().decode(errors="replace").strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartFailed(f"{program} could not be run: {error}") from error
        return "" if code == 0 else _emergencies(words) or words or f"exit code {code}"

    def _run(self, argv: list[str], output: int, environment: dict[str, str]) -> int:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        try:
            return process.wait(_START_S)
        except BaseException:
            process.kill()
            process.wait()
            raise

    # -- reload ------------------------------------------------------------------------------------------------

    def reload(self, binds: Mapping[str, Endpoint]) -> None:
        """Have the master read what is installed; returns when it has new workers or has said no.

        Raises: ReloadFailed; then the old configuration serves.
        """
        pid = self.pid()
        if pid is None:
            raise ReloadFailed("nginx is not running, so there is nothing to reload; start it: lbswitch balancer start")
        self._refuse_taken(pid, binds)
        workers, logged = _children(pid), self._log_size()
        os.kill(pid, signal.SIGHUP)
        said: list[str] = []

        def is_over() -> bool:
            said[:] = [self._last_words(logged)]
            return bool(said[0]) or bool(_children(pid) - workers) or self.pid() != pid

        over = _wait(is_over, _RELOAD_S)
        if said[0]:
            raise ReloadFailed(f"nginx refused the reload: {said[0]}; the configuration before is still serving")
        if self.pid() != pid:
            raise ReloadFailed("nginx ended during the reload; start it: lbswitch balancer start")
        if not over:
            raise ReloadFailed(f"nginx has no new workers {_RELOAD_S:g} s after SIGHUP; the old ones are still serving")

    def _refuse_taken(self, pid: int, binds: Mapping[str, Endpoint]) -> None:
        """A listener that is new and taken would make nginx try for seconds, and then say less."""
        ours = {pid, *_children(pid)}
        problems = unavailable(binds)
        ours |= _children(pid)
        taken = [problem for problem in problems if not ours & set(problem.pids)]
        if taken:
            raise ReloadFailed(f"nginx was not reloaded: {_listed(taken)}; the configuration before is still serving")

    # -- stop --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let requests in flight finish for `patience_s`, then end them; one that is down stays down.

        Raises: StartFailed.
        """
        self._remember(self._mark_stopped)
        pid = self.pid()
        if pid is None:
            return
        for number, patience_s in ((signal.SIGQUIT, self._patience_s), (signal.SIGTERM, _TERMINATE_S)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if _wait(lambda: self.pid() != pid, patience_s):
                return
        raise StartFailed(f"nginx (pid {pid}) is still running {_TERMINATE_S:g} s after SIGTERM")

    def _mark_stopped(self) -> None:
        """Where nothing was ever installed there is nothing to remember."""
        if self.pid() is not None or self._configuration.exists():
            self._mark.set()

    def _remember(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise StartFailed(
                f"whether nginx was stopped on purpose could not be written down, so nothing was done: "
                f"{error.strerror}: {error.filename or self._prefix}"
            ) from error

    # -- the error log -----------------------------------------------------------------------------------------

    def _log_size(self) -> int:
        try:
            return self._error_log.stat().st_size
        except OSError:
            return 0

    def _last_words(self, since: int) -> str:
        """The emergencies logged after this position; a log that became shorter is read from its begin."""
        try:
            with self._error_log.open("rb") as log:
                size = os.fstat(log.fileno()).st_size
                log.seek(since if since <= size else 0)
                return _emergencies(log.read(_LOG_TAIL_BYTES).decode(errors="replace"))
        except OSError:
            return ""


def _emergencies(text: str) -> str:
    """What nginx said at level `emerg`, each thing once."""
    return "; ".join(dict.fromkeys(_EMERGENCY.findall(text)))


def _listed(problems: list[Unavailable]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return ", ".join(map(str, problems[:3])) + more


def _binds(problems: list[Unavailable]) -> dict[str, Endpoint]:
    return {problem.service: problem.endpoint for problem in problems}


def _all_pids() -> list[int]:
    import psutil

    return psutil.pids()


def _children(pid: int) -> set[int]:
    import psutil

    try:
        return {child.pid for child in psutil.Process(pid).children()}
    except psutil.Error:
        return set()


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True
