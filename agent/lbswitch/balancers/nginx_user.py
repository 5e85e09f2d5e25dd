"""Which user nginx's workers run as: one that can reach the pointer."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ACCOUNTS = ("/etc/passwd", "/etc/group")
_CANDIDATES = ("www-data", "nginx", "nobody")  # Debian and Ubuntu, nginx's own packages and Red Hat, everywhere


@dataclass(frozen=True, slots=True)
class WorkerUser:
    """`directive` is `NAME GROUP`, or empty when the workers can only be whoever starts nginx.

    `warning` says what works but should be mended; `problem` what must be mended first.
    """

    directive: str
    warning: str | None = None
    problem: str | None = None


class Chooser:
    """Chooses once, and again when something has changed that the choice depends on."""

    def __init__(self, configured: str | None, state_dir: Path) -> None:
        """As for `choose`; nothing is looked at yet."""
        self._configured = configured
        self._state_dir = state_dir
        self._known: tuple[object, WorkerUser] | None = None

    def user(self) -> WorkerUser:
        """The user of the workers."""
        stamps = [_stamp(path) for path in (*_ACCOUNTS, *self._above())]
        if self._known is None or self._known[0] != stamps:
            self._known = (stamps, choose(self._configured, self._state_dir))
        return self._known[1]

    def _above(self) -> Iterator[str]:
        """The way to the state directory, whatever on it is a symlink."""
        path = os.path.dirname(self._state_dir)  # noqa: PTH120 - called for every switch, and pathlib is slow
        while True:
            yield path
            above = os.path.dirname(path)  # noqa: PTH120
            if above == path:
                return
            path = above


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_ctime_ns * (path in _ACCOUNTS)


def choose(configured: str | None, state_dir: Path) -> WorkerUser:
    """The user of the workers; only root can choose."""
    if os.geteuid() != 0:
        return WorkerUser("")
    if configured is not None:
        return _configured(configured, state_dir)
    closed: dict[str, Path] = {}
    for name in _CANDIDATES:
        user = _find(name)
        if user is None:
            continue
        directory = closed_to(user, state_dir)
        if directory is None:
            return WorkerUser(_directive(user))
        closed[name] = directory
    return _own(closed)


def _configured(name: str, state_dir: Path) -> WorkerUser:
    user = _find(name)
    if user is None:
        return WorkerUser(name, problem=f"balancer.user {name}: there is no such user on this host")
    directory = closed_to(user, state_dir)
    if directory is None:
        return WorkerUser(_directive(user))
    return WorkerUser(
        _directive(user),
        problem=f"balancer.user {name} can't enter {directory}, so its workers would never see a switch: "
        f"chmod o+x {directory}, or choose another balancer.user or agent.state_dir",
    )


def _own(closed: dict[str, Path]) -> WorkerUser:
    """Nobody with fewer rights can reach the pointer: the agent's own user can."""
    own = pwd.getpwuid(os.geteuid())
    why = "; ".join(f"{name} can't enter {directory}" for name, directory in closed.items())
    mend = f"chmod o+x {next(iter(closed.values()))}, or set balancer.user" if closed else "set balancer.user"
    return WorkerUser(
        _directive(own),
        warning=f"nginx's workers run as {own.pw_name}, because no user with fewer rights can read the pointer "
        f"({why or 'none of ' + ', '.join(_CANDIDATES) + ' exists'}): {mend}",
    )


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _directive(user: pwd.struct_passwd) -> str:
    """User and group by name: nginx's built-in group need not exist here."""
    try:
        return f"{user.pw_name} {grp.getgrgid(user.pw_gid).gr_name}"
    except KeyError:
        return user.pw_name


def closed_to(user: pwd.struct_passwd, state_dir: Path) -> Path | None:
    """The first directory above `state_dir` that `user` can't enter, by its mode bits; None when the way is open.

    The state directory itself is ours, and made enterable when the pointer is written.
    """
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    above = [*reversed(state_dir.parents), *reversed(state_dir.resolve().parents)]
    for directory in dict.fromkeys(above):
        try:
            status = directory.stat()
        except FileNotFoundError:
            continue
        if user.pw_uid == 0:
            continue
        bit = 0o100 if status.st_uid == user.pw_uid else 0o010 if status.st_gid in groups else 0o001
        if not status.st_mode & bit:
            return directory
    return None
