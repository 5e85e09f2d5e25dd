"""A socket of another process, by pidfd_getfd(2): what is done to it happens to that process's connection."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PIDFD_GETFD = 438  # the same on every architecture
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_TRACING = "CAP_SYS_PTRACE"
_SEEING = "CAP_DAC_READ_SEARCH"  # the list of another user's descriptors is a directory that only they may read


@contextlib.contextmanager
def borrowed(process: int, descriptor: int) -> Iterator[socket.socket]:
    """The socket behind a descriptor of the process that `process` (a pidfd) refers to. Raises: OSError."""
    number = _duplicate(process, descriptor)
    try:
        found = socket.socket(fileno=number)
    except OSError:  # no socket
        os.close(number)
        raise
    with found:
        yield found


def why_not(pid: int) -> str | None:
    """Why sockets of this process can't be had, with what to do; None when they can, or when the process is gone."""
    if not _is_lent_by(os.getpid()):
        return (
            "this system does not let one process end another's connections: pidfd_getfd(2) needs Linux 5.6, and "
            "leave by the service file (SystemCallFilter=pidfd_getfd)"
        )
    if _is_lent_by(pid) and _is_open(pid):
        return None
    what = f"this user may not touch the sockets of process {pid}"
    if _is_of_this_user(pid) and _scope() == 1:
        return f"{what}, as kernel.yama.ptrace_scope is 1: set that to 0, or {_give(_TRACING)}"
    return f"{what}: {_give(_TRACING, _SEEING)}, or run it as root"


def _give(*rights: str) -> str:
    return (
        f"give the agent {' and '.join(rights)} (AmbientCapabilities= and CapabilityBoundingSet= in its service file)"
    )


def _is_open(pid: int) -> bool:
    """Whether its descriptors can be listed; also when it is gone."""
    try:
        os.close(os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _is_lent_by(pid: int) -> bool:
    """Whether a process lends its sockets; also when it is gone: then there are none."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    try:
        os.close(_duplicate(process, 0))
    except OSError as error:
        # Whether it is allowed is looked at before whether there is such a descriptor.
        return error.errno in (errno.EBADF, errno.ESRCH)
    finally:
        os.close(process)
    return True


def _duplicate(process: int, descriptor: int) -> int:
    """Raises: OSError."""
    found = int(_libc().syscall(_PIDFD_GETFD, process, descriptor, 0))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _is_of_this_user(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


def _scope() -> int:
    """0 where a user's processes may trace each other (Documentation/admin-guide/LSM/Yama)."""
    try:
        return int(_SCOPE.read_text())
    except (OSError, ValueError):
        return 0
