"""The state directory: whether it stays, whether there is room, and whether the workers can read the pointer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbswitch.core.config import Control
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, note, warning
from lbswitch.doctor.host import existing
from lbswitch.doctor.words import real, size, user

_GONE = ("tmpfs", "ramfs", "devtmpfs", "squashfs")
_LITTLE, _VERY_LITTLE = 512 << 20, 64 << 20
_FEW, _VERY_FEW = 10_000, 1_000


def volatile(case: Case) -> Iterator[Finding]:
    """What it holds would be gone after a reboot, or with the container, or be cleaned away."""
    path = real(case.state_dir)
    kind = case.host.filesystem(path)
    elsewhere = "set agent.state_dir to a directory on a disk, such as /var/lib/lbswitch, and restart the agent"
    if kind in _GONE:
        yield error(
            f"the state directory {case.state_dir} is on a {kind}: after a reboot the balancer finds no pointer and "
            "the agent no journal, so traffic would go to the initial color",
            elsewhere,
        )
    elif kind == "overlay":
        yield warning(
            f"the state directory {case.state_dir} is on an overlay, as the inner file system of a container is: it "
            "goes with the container",
            f"mount a volume at {case.state_dir}",
        )
    age = case.host.cleaned(path)
    if age is not None:
        yield warning(
            f"the state directory {case.state_dir} is where systemd-tmpfiles removes what was not touched for {age}, "
            "and the pointer is not touched between switches",
            elsewhere,
        )


def space(case: Case) -> Iterator[Finding]:
    """Too little room where state, rendered files and logs are."""
    places = dict.fromkeys([case.state_dir, Path(case.config.balancer.output_dir or case.state_dir), *_logs()])
    seen: set[int] = set()
    for path in places:
        device = existing(path).stat().st_dev
        if device not in seen:
            seen.add(device)
            yield from _room(case, path)


def _logs() -> Iterator[Path]:
    log = Path("/var/log")
    if log.is_dir():
        yield log


def _room(case: Case, path: Path) -> Iterator[Finding]:
    found = case.host.space(path)
    mend = f"make room: du -xhd1 {existing(path)} | sort -h"
    if found.free < _LITTLE:
        kind = error if found.free < _VERY_LITTLE else warning
        yield kind(
            f"{path}: {size(found.free)} of {size(found.total)} are free; below {size(_VERY_LITTLE)} this is an error, "
            f"below {size(_LITTLE)} a warning. With a full disk every switch is refused; what is live stays live",
            mend,
        )
    if found.inodes is not None and found.inodes < _FEW:
        kind = error if found.inodes < _VERY_FEW else warning
        yield kind(f"{path}: {found.inodes} inodes are free (a warning below {_FEW}, an error below {_VERY_FEW})", mend)


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who has to read the pointer: a user and their groups."""

    uid: int
    groups: frozenset[int]

    def may(self, found: os.stat_result, bits: int) -> bool:
        """Whether the mode bits allow it: 4 read, 2 write, 1 enter."""
        if self.uid == 0:
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return (found.st_mode >> shift) & bits == bits


def unreadable_pointer(case: Case) -> Iterator[Finding]:
    """The workers can't follow the pointer, so they would never see a switch."""
    reader = worker(case)
    in_container = case.config.balancer.controlled_by is Control.DOCKER and case.is_guest
    top = case.state_dir if in_container else Path("/")
    for name in case.services:
        live = case.state_dir / "live" / name
        if not live.exists():
            continue
        for directory in _way(live, top):
            if not reader.may(directory.stat(), 1):
                yield error(
                    f"nginx's workers run as {user(reader.uid)} and can't enter {directory} (mode "
                    f"{directory.stat().st_mode & 0o7777:04o}), so they never see the pointer and every request goes "
                    "to blue",
                    f"chmod o+x {directory}",
                )
        state = live / "state"
        if state.exists() and not reader.may(state.stat(), 4):
            yield error(
                f"nginx's workers run as {user(reader.uid)} and can't read {state}, so no switch can be verified",
                f"chmod o+r {state}",
                name,
            )


def _way(path: Path, top: Path) -> list[Path]:
    """Every directory that is entered on the way, along symlinks too; each once."""
    above = [*reversed(path.parents), path, *reversed(real(path).parents), real(path)]
    within = [directory for directory in above if directory.is_relative_to(top) and directory.is_dir()]
    return list({real(directory): real(directory) for directory in within}.values())


def worker(case: Case) -> Reader:
    """As whom nginx's workers run."""
    import psutil

    try:
        for child in psutil.Process(case.master).children():
            return _runs_as(child.pid)
    except (psutil.Error, OSError, KeyError) as failed:
        raise NotChecked(f"who nginx's workers are can't be seen: {failed}") from failed
    raise NotChecked("nginx has no workers")


def _runs_as(pid: int) -> Reader:
    """Raises: OSError, KeyError."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    ids = [int(word) for word in (*fields["Gid"].split(), *fields["Groups"].split())]
    return Reader(int(fields["Uid"].split()[1]), frozenset(ids))


def unwritable(case: Case) -> Iterator[Finding]:
    """The agent's user can't write what the agent has to, as after an init before there was such a user."""
    try:
        agent = _runs_as(case.status["agent"]["pid"])
    except (OSError, KeyError) as failed:
        raise NotChecked(f"who the agent is can't be seen: {failed}") from failed
    output = case.config.balancer.output_dir
    places = [case.state_dir] if output is None else [case.state_dir, Path(output), Path(output) / "rendered"]
    for place in places:
        if place.is_dir() and not agent.may(found := place.stat(), 3):
            yield error(
                f"the agent runs as {user(agent.uid)} and may not write in {place} (owner {user(found.st_uid)}, mode "
                f"{found.st_mode & 0o7777:04o}): no change of the configuration can be applied",
                f"chown -R {user(agent.uid)}: {output if output and place != case.state_dir else place}",
            )


def root_workers(case: Case) -> Iterator[Finding]:
    """Whoever breaks into a worker would be root."""
    if worker(case).uid == 0 and case.host.is_root:
        yield warning(
            "nginx's workers run as root: whoever gets into one has the whole machine",
            "balancer.user: www-data" if not case.is_guest else f"in {case.nginx.main}: user www-data;",
        )


def never_started(case: Case) -> Iterator[Finding]:
    """There is no state yet."""
    if not case.state_dir.exists():
        yield note(
            f"the state directory {case.state_dir} does not exist yet: no agent ever ran with this configuration",
            "systemctl enable --now lbswitch, or: lbswitch agent",
        )
