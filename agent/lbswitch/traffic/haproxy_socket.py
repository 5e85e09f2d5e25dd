"""Where HAProxy sends its lines to, and who may: found in the configuration that it reads."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lbswitch.core import haproxy_log
from lbswitch.core.config import Config, Control, Mode

_SETTING = re.compile(r"^\s*(user|chroot)\s+(\S+)", re.MULTILINE)
_FORMAT = re.compile(r"^\s*(option\s+(httplog|httpslog|tcplog)|log-format\s)", re.MULTILINE)
_ANY_UID = 0o666
_OWNER_ALONE = 0o600


class Place(NamedTuple):
    """Where to bind. `owner` is user and group, or -1 to leave it; `problem` says why no line will come."""

    path: Path
    owner: tuple[int, int] = (-1, -1)
    mode: int = _OWNER_ALONE
    problem: str | None = None


def place(config: Config, path: Path) -> Place:
    """`path` is the socket's without a chroot. Looks at files; never raises."""
    return _managed(config, path) if config.balancer.managed else _guest(config, path)


def _managed(config: Config, path: Path) -> Place:
    """Workers run as another user where root starts them, else as the agent's."""
    user = _user([config.balancer.user or "haproxy", "nobody"]) if os.geteuid() == 0 else None
    rendered = path.parent / "current" / "haproxy.cfg"
    text = _read(rendered)
    problem = _closed(path, user)
    if text and haproxy_log.SOCKET not in text:
        problem = (
            f"{rendered} has no `log` line, so that nothing is known of real traffic: a template in "
            "balancer.templates is older than this version (lbswitch templates diff)"
        )
    return Place(path, (user.pw_uid, user.pw_gid) if user else (-1, -1), _OWNER_ALONE, problem)


def _guest(config: Config, path: Path) -> Place:
    """The owner's files say as whom workers run, and in which directory they are locked."""
    if config.balancer.controlled_by is Control.DOCKER:
        return Place(path, mode=_ANY_UID)  # users of the container are unknown here, and its files have other paths
    texts = [_read(file) for file in _files(config)]
    found = {name: value for text in texts for name, value in _SETTING.findall(text)}
    user = _user([found.get("user", "")])
    inside = Path(found["chroot"] + str(path)) if found.get("chroot", "/") != "/" else path
    problem = _missing(config, path, texts) if any(texts) else None
    if problem is None and not inside.parent.is_dir():
        problem = (
            f"HAProxy is locked into {found['chroot']} (chroot), where its lines have no place: "
            f"install -d -o {_own_name()} {inside.parent}"
        )
    if user is None or os.geteuid() != 0:
        return Place(inside, mode=_ANY_UID, problem=problem or _closed(inside, user))
    return Place(inside, (user.pw_uid, user.pw_gid), _OWNER_ALONE, problem or _closed(inside, user))


def _missing(config: Config, path: Path, texts: Sequence[str]) -> str | None:
    """What the owner has to write."""
    has_format = any(_FORMAT.search(text) for text in texts)
    if has_format and any(str(path) in text for text in texts):
        return None
    modes = {service.mode for service in config.services.values()}
    blocks = (haproxy_log.owner_lines(path, is_http=mode is Mode.HTTP, has_format=has_format) for mode in sorted(modes))
    text = "\n".join(f"    {line}" for lines in blocks for line in lines)
    return (
        f"HAProxy's owner does not let it tell of requests; write into each frontend of a service, and reload:\n{text}"
    )


def _files(config: Config) -> Iterator[Path]:
    for name in config.balancer.config or ():
        path = Path(name)
        yield from sorted(path.glob("*.cfg")) if path.is_dir() else [path]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _user(names: list[str]) -> pwd.struct_passwd | None:
    for name in names:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _closed(path: Path, user: pwd.struct_passwd | None) -> str | None:
    """Which directory on the way the workers can't enter, by its mode bits."""
    if user is None or user.pw_uid == 0:
        return None
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    for directory in reversed(path.parents):
        try:
            status = directory.stat()
        except OSError:
            continue
        bit = 0o100 if status.st_uid == user.pw_uid else 0o010 if status.st_gid in groups else 0o001
        if not status.st_mode & bit:
            return (
                f"HAProxy's workers (user {user.pw_name}) can't enter {directory}, so that nothing is known of real "
                f"traffic: chmod o+x {directory}"
            )
    return None
