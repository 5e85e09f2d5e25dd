"""What signal and systemd have in common: the balancer's files and processes are this host's."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control_masters import Process, command_line

_READY_S = 5.0
_PAUSE_S = 0.01


class OnThisHost:
    """Files, programs and paths of this host, as they are."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> procs.Result:
        """Run a program on this host. Raises: OSError, procs.TimedOut."""
        return procs.run(argv, timeout_s=timeout_s)

    def seen(self, path: Path) -> Path:
        """The same path."""
        return path

    def read(self, path: Path) -> bytes:
        """A file of this host. Raises: OSError."""
        return path.read_bytes()

    def names(self, directory: Path) -> list[str]:
        """The entries of a directory of this host. Raises: OSError."""
        return sorted(entry.name for entry in directory.iterdir())


def process(pid: int) -> Process | None:
    """The process with this pid, if it lives and has a command line (kernel threads and zombies have none)."""
    import psutil

    try:
        found = psutil.Process(pid)
        argv = tuple(found.cmdline())
        return Process(pid, found.ppid(), argv) if argv else None
    except psutil.Error:
        return None


def processes(owners: Collection[int] = ()) -> list[Process]:
    """What may be believed of all that runs here (`is_trusted`).

    Without what runs in a container: that sees other files under the same paths.
    """
    import psutil

    depth = _depth(os.getpid())
    return [
        found
        for pid in psutil.pids()
        if (found := process(pid)) is not None and is_trusted(pid, owners) and _depth(pid) == depth
    ]


def is_trusted(pid: int, owners: Collection[int] = ()) -> bool:
    """Whether nobody but root, this user or `owners` can have chosen its command line.

    Whoever starts a process names it as they like, a setuid program too, and lbswitch runs the program that a master
    names.
    """
    import psutil

    try:
        return set(psutil.Process(pid).uids()) <= {0, os.geteuid(), *owners}
    except psutil.Error:
        return False


def _depth(pid: int) -> int:
    """In how many process namespaces, from ours on, it has a number (proc_pid_status(5), NSpid)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return len(line.split())
    except OSError:
        pass
    return 0


def takes(pid: int, number: int) -> bool:
    """Whether a process catches this signal, within five seconds (proc_pid_status(5), SigCgt).

    HAProxy's master is for an instant after its start not ready for it: the signal would end it, or be lost.
    """
    deadline = time.monotonic() + _READY_S
    while not _catches(pid, number):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def _catches(pid: int, number: int) -> bool:
    """True, too, when it can't be seen, or when the process is gone: then the signal will tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), ~0)
    return bool(caught >> (number - 1) & 1)


def arguments_of(pid: int | None) -> list[str]:
    """Program and arguments of a master; [] when there is none."""
    found = process(pid) if pid is not None else None
    return command_line(found.argv) if found is not None else []
