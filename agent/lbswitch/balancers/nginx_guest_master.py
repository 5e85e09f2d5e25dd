"""The owner's nginx: its master, its program, and a reload of which the outcome is seen."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path

from lbswitch.balancers.control import Control
from lbswitch.balancers.nginx_binary import Binary, Program, ask
from lbswitch.balancers.running import children
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing, CheckFailed, ReloadFailed

_TITLE = b"nginx: master process"
_ASK_AGAIN_S = 60.0
_RELOAD_S = 30.0
_PAUSE_S = 0.005
_LOG_TAIL_BYTES = 65536
_EMERGENCY = re.compile(r"\[emerg\] (?:\d+#\d+: )?(?:\*\d+ )?(.*)")
_OPTIONS = frozenset(["-c", "-p", "-e", "-g", "-s", "-t", "-T", "-q", "-v", "-V", "-h", "-?"])


class Master:
    """Finds the master and remembers it while that very process lives: looking for it means looking at all of them."""

    def __init__(self, control: Control) -> None:
        """Nothing is looked for yet."""
        self._control = control
        self._known: tuple[int, str] | None = None

    def pid(self) -> int | None:
        """Its pid on this host; None when it is down or can't be known."""
        known = self._known
        if known is not None and _identity(known[0]) == known[1]:
            return known[0]
        pid = self._control.pid()
        identity = None if pid is None else _identity(pid)
        self._known = (pid, identity) if pid is not None and identity is not None else None
        return pid

    def is_running(self) -> bool:
        """Whether it lives."""
        return self.pid() is not None or self._control.is_running()

    def workers(self) -> frozenset[int]:
        """The pids of its workers, as far as they can be known."""
        return children(self.pid())

    def options(self) -> list[str]:
        """The `-p PREFIX` and `-g DIRECTIVES` that it was started with."""
        words = self._control.arguments()
        return [part for letter in ("-p", "-g") for part in _option(words, letter)]


def _option(words: list[str], letter: str) -> list[str]:
    """An option with its value, which reaches to the next option: nginx's title does not keep words apart."""
    if letter not in words:
        return []
    rest = words[words.index(letter) + 1 :]
    end = next((place for place, word in enumerate(rest) if word in _OPTIONS), len(rest))
    return [letter, " ".join(rest[:end])] if end else []


def _identity(pid: int) -> str | None:
    """When this master was started, in ticks since boot (proc_pid_stat(5)); None when it is no nginx master."""
    try:
        if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_TITLE):
            return None
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


class GuestProgram:
    """The nginx that runs, asked where it runs."""

    def __init__(self, configured: str | None, control: Control, master: Master) -> None:
        """`configured` is `balancer.binary`; else it is the master's own, or the one on the PATH."""
        self._configured, self._control, self._master = configured, control, master
        self._binary = Binary(configured)
        self._known: tuple[Hashable, Program] | None = None

    def program(self) -> Program:
        """Which nginx that is. Raises: BalancerMissing, BalancerTooOld."""
        return self._inside() if self._control.kind is Kind.DOCKER else self._here()

    def _here(self) -> Program:
        key = self._master.pid()
        if self._configured is not None or key is None:
            return self._binary.program()
        if self._known is None or self._known[0] != key:
            words = self._control.arguments()
            program = ask(words[0]) if words and words[0].startswith("/") else self._binary.program()
            self._known = (key, program)
        return self._known[1]

    def _inside(self) -> Program:
        """Of a container that is down the last answer still holds."""
        key = (self._master.pid(), time.monotonic() // _ASK_AGAIN_S)
        if self._known is None or self._known[0] != key:
            try:
                self._known = (key, ask(self._configured or "nginx", self._control.run))
            except BalancerMissing:
                if self._known is None:
                    raise
                self._known = (key, self._known[1])
        return self._known[1]


def reload(control: Control, error_log: Callable[[], Path | None]) -> None:
    """Ask for a reload, and wait until there are new workers; where they can't be seen, the listener will tell.

    `error_log` gives the owner's, if it is a file of this host; may raise CheckFailed. Raises: ReloadFailed.
    """
    if not control.is_running():
        raise ReloadFailed(
            f"nginx is not running, so there is nothing to reload; its owner starts it: {control.how_to('start')}"
        )
    pid = control.pid()
    before, log = children(pid), _Log(error_log)
    control.reload()
    if pid is not None:
        _see(pid, before, log)


def _see(pid: int, before: frozenset[int], log: _Log) -> None:
    deadline = time.monotonic() + _RELOAD_S
    while not children(pid) - before:
        said = log.emergencies()
        if said:
            raise ReloadFailed(f"nginx refused the reload: {said}; the configuration before is still serving")
        if _identity(pid) is None:
            raise ReloadFailed("nginx ended during the reload; its owner starts it")
        if time.monotonic() > deadline:
            raise ReloadFailed(
                f"nginx has no new workers {_RELOAD_S:g} s after it was told to reload; the configuration before is "
                f"still serving; {log} says why"
            )
        time.sleep(_PAUSE_S)


class _Log:
    """What is written to the owner's error log from now on."""

    def __init__(self, find: Callable[[], Path | None]) -> None:
        self._path: Path | None = None
        self._since = 0
        with suppress(OSError, CheckFailed):
            self._path = find()
            self._since = 0 if self._path is None else self._path.stat().st_size

    def __str__(self) -> str:
        return "its error log" if self._path is None else str(self._path)

    def emergencies(self) -> str:
        """What nginx said at level `emerg`, each thing once; a log that became shorter is read from its begin."""
        if self._path is None:
            return ""
        try:
            with self._path.open("rb") as log:
                size = os.fstat(log.fileno()).st_size
                log.seek(self._since if self._since <= size else 0)
                text = log.read(_LOG_TAIL_BYTES).decode(errors="replace")
        except OSError:
            return ""
        return "; ".join(dict.fromkeys(_EMERGENCY.findall(text)))
