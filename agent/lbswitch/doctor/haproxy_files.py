"""What the owner's HAProxy reads: our backends are loaded and used, and a reload costs nobody a connection."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from lbswitch.balancers.control_masters import option
from lbswitch.balancers.haproxy_guest_rendering import FILE
from lbswitch.balancers.haproxy_lines import owner_lines
from lbswitch.balancers.haproxy_master import socket_option
from lbswitch.balancers.haproxy_runtime import Runtime, Unanswered
from lbswitch.core.config import Control, Mode
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, warning
from lbswitch.doctor.haproxy_text import Line, Section

_ARGUMENTS = Path("/etc/default/haproxy")
"""Where Debian and Ubuntu have EXTRAOPTS."""


def no_master_socket(case: Case) -> Iterator[Finding]:
    """Without the master socket a switch reaches no worker."""
    path = case.config.balancer.master_socket
    if path is None:
        return
    case.master  # noqa: B018 - raises NotChecked
    given = option(case.control.arguments(), "S")
    if not given:
        yield error(
            "HAProxy was started without -S, so there is no master socket and a switch reaches no worker",
            f"start it with -S {socket_option(path)} (Debian: EXTRAOPTS in /etc/default/haproxy)",
        )
        return
    try:
        Runtime(Path(path)).processes()
    except Unanswered as failed:
        words = f"{failed}; HAProxy was started with -S {given[-1]}"
        if "Permission denied" in str(failed):
            raise NotChecked(f"{words}: run it as root") from failed
        yield error(
            f"the master socket does not answer: {words}",
            f"balancer.master_socket: {given[-1].partition(',')[0]}",
        )


def no_master(case: Case) -> Iterator[Finding]:
    """Not in master-worker mode, so that a reload is a new process that nobody follows."""
    case.master  # noqa: B018 - raises NotChecked
    words = case.control.arguments()
    in_file = any(case.haproxy.in_global("master-worker"))
    if words and not in_file and not any(word in ("-W", "-Ws") for word in words):
        yield error(
            f"HAProxy (pid {case.master}) does not run in master-worker mode: there is no master to reload it",
            "start it with -Ws (systemd) or -W, as the distributions' units do",
        )


def not_loaded(case: Case) -> Iterator[Finding]:
    """Our backends are in no file that HAProxy reads."""
    if case.haproxy_owner.loads_ours():
        return
    path = case.control.seen(case.ours(FILE))
    astray = [name for name in case.haproxy.files if posixpath.basename(name) == FILE]
    where = f"; it loads {astray[0]} instead" if astray else ""
    mend = (
        f"start it with a second -f {path} (Debian: EXTRAOPTS in /etc/default/haproxy), or link it into the directory "
        "given to -f"
    )
    if _is_prepared(case, f"-f {path}"):
        mend = f"{case.control.how_to('restart')}: it is in {_ARGUMENTS} already, which HAProxy reads when it starts"
    yield error(f"HAProxy does not load {path}, so lbswitch's backends are not there{where}", mend)


def _is_prepared(case: Case, words: str) -> bool:
    """Whether the file with the unit's arguments has them already."""
    if case.config.balancer.controlled_by is not Control.SYSTEMD:
        return False
    with contextlib.suppress(OSError):
        lines = case.control.read(_ARGUMENTS).decode(errors="replace").splitlines()
        return any(words in line for line in lines if not line.lstrip().startswith("#"))
    return False


def other_files(case: Case) -> Iterator[Finding]:
    """HAProxy runs with other files than balancer.config names: without it running, another whole would be checked."""
    case.master  # noqa: B018 - raises NotChecked
    owner = case.haproxy_owner
    command = owner.command_line()
    base = owner.base(command)
    named = [os.path.realpath(path) for path in case.config.balancer.config or ()]
    given = [path for path in command.files if not owner.is_ours(base, path)]
    astray = [path for path in given if os.path.realpath(Path(base, path)) not in named]
    if astray and case.config.balancer.controlled_by is not Control.DOCKER:
        yield warning(
            f"HAProxy runs with -f {astray[0]}, which balancer.config does not name: while HAProxy is down, another "
            "configuration would be checked than the one it starts with",
            f"balancer.config: [{', '.join(given)}]",
        )


def no_use_backend(case: Case) -> Iterator[Finding]:
    """No frontend chooses between our backends."""
    for name in case.services:
        if not list(_uses(case, name)):
            yield error(
                f"no frontend has a use_backend line for {name}, so a switch moves nothing",
                "in the frontend of "
                + name
                + ":\n"
                + "\n".join(f"    {line}" for line in owner_lines(case.config, name)),
                name,
            )


def other_map(case: Case) -> Iterator[Finding]:
    """The line chooses by another map than the one that lbswitch moves."""
    for name, service in case.services.items():
        live = str(case.control.seen(Path(case.config.balancer.output_dir or "/") / "live.map"))
        for section, line in _uses(case, name):
            if "map(" in line.text and live not in line.text:
                yield error(
                    f"{line.where}: `{line.text}` looks into another map than {live}: a switch moves nothing",
                    owner_lines(case.config, name)[-1],
                    name,
                )
            elif service.weights is not None and not _draws(section, name):
                yield error(
                    f"{line.where}: {name} has weights, and the lines that draw by them are missing",
                    "\n".join(owner_lines(case.config, name)),
                    name,
                )


def _draws(section: Section, name: str) -> bool:
    return any(f"str({name}),map_str_int(" in line.text for line in section.lines)


def _uses(case: Case, service: str) -> Iterator[tuple[Section, Line]]:
    """The lines that choose between the backends of a service."""
    for section in case.haproxy.of_kind("frontend", "listen"):
        for line in section.find("use_backend"):
            if line.words[1].startswith(f"lbswitch_{service}_%["):
                yield section, line


def cut_connections(case: Case) -> Iterator[Finding]:
    """A reload closes idle keep-alive connections under a request."""
    for name, service in case.services.items():
        for section, line in _uses(case, name):
            if service.mode is Mode.HTTP and not section.option("idle-close-on-response"):
                yield warning(
                    f"{section.head.where}: {section.kind} {section.name} ({line.where}) has no "
                    "`option idle-close-on-response`: every reload closes idle keep-alive connections, and clients "
                    "lose requests that are on their way (882 of 104,000 over 20 reloads with 20 ms of round trip)",
                    f"in {section.kind} {section.name} or its defaults:\n    option idle-close-on-response",
                    name,
                )


def endless_workers(case: Case) -> Iterator[Finding]:
    """Old workers never end while a client stays connected."""
    if not any(case.haproxy.in_global("hard-stop-after")):
        yield warning(
            "`hard-stop-after` is not set: after every reload an old worker stays until its last WebSocket or download "
            "ends, and takes memory; draining ones have to be told of each switch",
            "in global:\n    hard-stop-after 30m",
        )
