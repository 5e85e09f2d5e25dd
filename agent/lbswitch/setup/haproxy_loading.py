"""How somebody else's HAProxy comes to load our file: a directory given to -f, or one more -f in its service."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbswitch.errors import InvalidRequest
from lbswitch.setup.changes import Content, FileChange, edited, look
from lbswitch.setup.edits import Edit, new_line

_FILE = "lbswitch.cfg"
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SETTING = re.compile(r'^(?P<name>EXTRAOPTS)=(?P<value>"[^"\n]*"|\'[^\'\n]*\'|[^\s"\'#]*)[ \t\r]*$', re.MULTILINE)
_SOCKET = "/run/haproxy-master.sock"


@dataclass(frozen=True, slots=True)
class Loading:
    """`change` makes it so, None when nothing is to be done or only the owner can (`by_hand`)."""

    change: FileChange | None = None
    restart: str | None = None
    by_hand: str | None = None
    master_socket: str | None = None


def plan(
    config: Sequence[str],
    arguments: Sequence[str],
    unit: str,
    ours: Path,
    socket: str | None,
    group: str | None,
) -> Loading:
    """What has to be done so that `ours` is loaded, and `group` may use the master socket.

    Raises: InvalidRequest, OSError.
    """
    if str(ours) in arguments:
        return Loading(master_socket=socket)
    directory = next((Path(each) for each in config if Path(each).is_dir()), None)
    if directory is not None:
        return _linked(Path(os.path.realpath(directory)) / _FILE, ours, socket)
    environment = _environment_file(unit)
    if environment is not None:
        return _with_option(extra_options(environment, _base_options(unit), ours, group), socket)
    return Loading(
        by_hand=f"HAProxy has to be started with one more option: -f {ours}"
        + ("" if socket else f" -S {_SOCKET}")
        + "; it is not controlled by a systemd unit with $EXTRAOPTS, so lbswitch can't add it. Until then, traffic "
        "goes where the frontend's own rules send it",
        master_socket=socket or _SOCKET,
    )


def _linked(link: Path, ours: Path, socket: str | None) -> Loading:
    before = look(link)
    target = Content(os.fsencode(ours), 0o777, is_link=True)
    if target.is_same(before):
        return Loading(master_socket=socket)
    if before is not None:
        raise InvalidRequest(f"{link} is there already and is not lbswitch's: move it away first")
    return Loading(FileChange(link, None, target), master_socket=socket)


def _with_option(change: FileChange, socket: str | None) -> Loading:
    return Loading(
        change,
        restart="HAProxy reads its arguments only when it starts",
        master_socket=socket or _socket_in(change) or _SOCKET,
    )


def extra_options(path: Path, base: str, ours: Path, group: str | None = None) -> FileChange:
    """EXTRAOPTS with our file in it; `base` is what the unit has when the file sets nothing.

    `group` is the agent's, which has to be let in at a master socket that root makes. Raises: OSError.
    """
    found = look(Path(os.path.realpath(path)))
    text = found.data if found is not None else b""
    matches = list(_SETTING.finditer(text.decode("latin-1")))
    value = matches[-1]["value"].strip("\"'") if matches else base
    wanted = " ".join(part for part in (_with_socket(value, group), f"-f {ours}") if part)
    setting = f'EXTRAOPTS="{wanted}"'.encode("latin-1")
    if matches:
        edit = Edit(matches[-1].start(), matches[-1][0].rstrip("\r \t").encode("latin-1"), setting)
    else:
        edit = new_line(text, len(text), setting)
    if found is None:
        return FileChange(Path(os.path.realpath(path)), None, Content(setting + b"\n"))
    return edited(path, [edit])


def _with_socket(options: str, group: str | None) -> str:
    """EXTRAOPTS takes the place of the unit's own, so the master socket has to be in it."""
    if not re.search(r"(?:^|\s)-S\s", options):
        options = f"{options} -S {_SOCKET}".strip()
    if group is None:
        return options
    return re.sub(r"((?:^|\s)-S\s+[^\s,]+)(?=\s|$)", rf"\1,mode,660,group,{group}", options, count=1)


def _socket_in(change: FileChange) -> str | None:
    after = change.after.data.decode("latin-1") if change.after is not None else ""
    found = re.findall(r"^EXTRAOPTS=.*?-S\s+([^\s,\"']+)", after, re.MULTILINE)
    return found[-1] if found else None


# -- the unit ----------------------------------------------------------------------------------------------------


def _unit_text(unit: str) -> str:
    """The unit's file, with the owner's before the package's; empty without one."""
    for directory in _UNIT_DIRECTORIES if unit else ():
        try:
            return Path(directory, unit).read_text()
        except OSError:
            continue
    return ""


def _environment_file(unit: str) -> Path | None:
    """The file that sets EXTRAOPTS, when the unit uses that."""
    text = _unit_text(unit)
    if not re.search(r"^ExecStart=.*\$\{?EXTRAOPTS\}?", text, re.MULTILINE):
        return None
    named = [Path(each.lstrip("-").strip()) for each in re.findall(r"^EnvironmentFile=(.+)$", text, re.MULTILINE)]
    return next((path for path in named if path.exists()), named[0] if named else None)


def _base_options(unit: str) -> str:
    """What the unit itself sets EXTRAOPTS to."""
    found = re.findall(r'"?EXTRAOPTS=([^"\n]*)"?', _unit_text(unit))
    return found[0].strip() if found else ""
