"""Which nginx and HAProxy are on this host: running or only installed, with which files, and who controls them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control_host import processes
from lbswitch.balancers.control_masters import Process, command_line, masters, nginx_config, option
from lbswitch.core.config import BalancerKind, Control

_ASK_S = 10.0
_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"))
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_UNIT = re.compile(r"/([A-Za-z0-9:_.@-]+\.service)(?:/|$)")
_CONTAINER = re.compile(r"(?:docker[-/]|/docker/)([0-9a-f]{64})")
_BUILT = re.compile(r"--(prefix|conf-path)=(\S+)")
_VERSION = re.compile(r"(?:nginx/|HAProxy version |HA-Proxy version )(\d+\.\d+(?:\.\d+)?)")
PACKAGED = {BalancerKind.NGINX: "/etc/nginx/nginx.conf", BalancerKind.HAPROXY: "/etc/haproxy/haproxy.cfg"}
"""Where the distributions put the main file."""


@dataclass(frozen=True, slots=True)
class Found:
    """One balancer. `pid` is None when it does not run; `arguments` begin with the program.

    `user` is who its master runs as. `unit` and `container` are empty unless that is how it is controlled.
    `master_socket` is HAProxy's, None without one.
    """

    kind: BalancerKind
    version: str
    binary: str
    config: tuple[str, ...]
    control: Control
    pid: int | None = None
    arguments: tuple[str, ...] = ()
    user: str = ""
    unit: str = ""
    container: str = ""
    pid_file: str = ""
    master_socket: str | None = None

    def __str__(self) -> str:
        how = {Control.SYSTEMD: f"systemd, {self.unit}", Control.DOCKER: f"docker, {self.container[:12]}"}
        state = f"running, pid {self.pid}" if self.pid is not None else "not running"
        by = how.get(self.control, "signal")
        what = f"{self.kind} {self.version}".rstrip()
        return f"{what} ({state}; {', '.join(self.config)}; controlled by {by})"


def detect() -> list[Found]:
    """All that run, and those that are installed but do not run. Never raises for what it may not look at."""
    found = [*_running(), *_in_containers()]
    kinds = {each.kind for each in found}
    return found + [each for kind in BalancerKind if kind not in kinds and (each := installed(kind)) is not None]


def installed(kind: BalancerKind) -> Found | None:
    """The packaged one, whether it runs or not."""
    binary = shutil.which(kind, path=_SEARCH)
    main = Path(PACKAGED[kind])
    if binary is None or not main.exists():
        return None
    unit = f"{kind}.service"
    control = Control.SYSTEMD if _BOOTED.is_dir() and _unit_exists(unit) else Control.SIGNAL
    socket = "/run/haproxy-master.sock" if kind is BalancerKind.HAPROXY and control is Control.SYSTEMD else None
    return Found(
        kind,
        version(binary),
        binary,
        (str(main),),
        control,
        unit=unit if control is Control.SYSTEMD else "",
        master_socket=socket,
    )


def version(binary: str) -> str:
    """Such as `1.22.1`; empty when the program does not say."""
    try:
        match = _VERSION.search(procs.run([binary, "-v"], timeout_s=_ASK_S).output)
    except (OSError, procs.TimedOut):
        return ""
    return match[1] if match else ""


def built_in(binary: str) -> tuple[str, str]:
    """Prefix and main file that an nginx was built with."""
    try:
        said = dict(_BUILT.findall(procs.run([binary, "-V"], timeout_s=_ASK_S).output))
    except (OSError, procs.TimedOut):
        said = {}
    return said.get("prefix", "/usr/local/nginx"), said.get("conf-path", PACKAGED[BalancerKind.NGINX])


# -- what runs ---------------------------------------------------------------------------------------------------


def _running() -> Iterator[Found]:
    everything = processes()
    for kind in BalancerKind:
        for master in masters(kind, everything):
            yield _described(kind, master)


def _described(kind: BalancerKind, master: Process) -> Found:
    import psutil

    arguments = command_line(master.argv)
    binary, user = arguments[0], ""
    try:
        process = psutil.Process(master.pid)
        binary, user = process.exe() or binary, process.username()
    except psutil.Error:
        pass
    unit = _unit_of(master.pid)
    return Found(
        kind,
        version(binary),
        binary,
        _config(kind, arguments, binary),
        Control.SYSTEMD if unit else Control.SIGNAL,
        pid=master.pid,
        arguments=tuple(arguments),
        user=user,
        unit=unit,
        pid_file=next(iter(option(arguments, "p")), "") if kind is BalancerKind.HAPROXY else "",
        master_socket=master_socket(arguments) if kind is BalancerKind.HAPROXY else None,
    )


def _config(kind: BalancerKind, arguments: Sequence[str], binary: str) -> tuple[str, ...]:
    if kind is BalancerKind.NGINX:
        return (nginx_config(arguments, lambda _: built_in(binary)),)
    base = (option(arguments, "C") or ["/"])[-1]
    return tuple(str(Path(base, path)) for path in option(arguments, "f")) or (PACKAGED[kind],)


def master_socket(arguments: Sequence[str]) -> str | None:
    """The path in `-S PATH[,OPTIONS]`."""
    given = option(arguments, "S")
    return given[-1].partition(",")[0].removeprefix("unix@") if given else None


def _unit_of(pid: int) -> str:
    """The systemd service that the process is part of, by its cgroup; empty without one."""
    if not _BOOTED.is_dir():
        return ""
    found = _UNIT.findall(_cgroup(pid))
    return found[-1] if found and _unit_exists(found[-1]) else ""


def _unit_exists(unit: str) -> bool:
    name, at, rest = unit.partition("@")
    names = [unit, f"{name}@.service"] if at and rest else [unit]
    return any(Path(directory, name).exists() for directory in _UNIT_DIRECTORIES for name in names)


def _cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


# -- in containers -----------------------------------------------------------------------------------------------


def _in_containers() -> Iterator[Found]:
    """Masters whose cgroup is one of Docker's. Their paths are the container's, so little is looked up."""
    import psutil

    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        match = _CONTAINER.search(_cgroup(process.pid))
        if match is None or not process.info["cmdline"]:
            continue
        seen = Process(process.pid, process.info["ppid"], tuple(process.info["cmdline"]))
        for kind in BalancerKind:
            if masters(kind, [seen]) and not _parent_is_alike(kind, seen):
                yield _contained(kind, seen, match[1])


def _parent_is_alike(kind: BalancerKind, process: Process) -> bool:
    """Whether it is a worker: HAProxy's have the command line of their master."""
    import psutil

    try:
        parent = psutil.Process(process.parent)
        return bool(masters(kind, [Process(parent.pid, parent.ppid(), tuple(parent.cmdline()))]))
    except psutil.Error:
        return False


def _contained(kind: BalancerKind, master: Process, container: str) -> Found:
    arguments = command_line(master.argv)
    config = option(arguments, "c" if kind is BalancerKind.NGINX else "f") or [PACKAGED[kind]]
    return Found(
        kind,
        "",  # who runs the container's program on this host lets it out of the container
        arguments[0],
        tuple(config),
        Control.DOCKER,
        pid=master.pid,
        arguments=tuple(arguments),
        container=container,
        master_socket=master_socket(arguments) if kind is BalancerKind.HAPROXY else None,
    )
