"""The agent: whether it answers, whether it is this version, whether it comes back after a reboot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lbswitch
from lbswitch.core.config import Control
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, note, warning
from lbswitch.doctor.words import in_short
from lbswitch.errors import AgentUnreachable, ConfigError, LbswitchError, NotAllowed

_JUMP_S = 10.0  # an agent that starts on a busy machine reads its clock late


def unreachable(case: Case) -> Iterator[Finding]:
    """Nobody answers on the socket."""
    try:
        case.asked  # noqa: B018 - may raise
    except NotAllowed as failed:
        yield warning(f"the agent can't be asked by this user: {failed}", "join the socket's group, or use sudo")
    except AgentUnreachable as failed:
        what = in_short(failed).partition(";")[0]
        yield error(
            f"no agent: {what}. Traffic goes on, but nothing is checked, switched or failed over",
            "systemctl start lbswitch; journalctl -u lbswitch says why it ended",
        )
    except ConfigError as failed:
        raise NotChecked("there is no valid configuration") from failed
    except LbswitchError as failed:
        yield error(f"the agent can't be asked: {failed}", "lbswitch status says more")


def open_socket(case: Case) -> Iterator[Finding]:
    """Everybody on this machine may switch, or control HAProxy."""
    balancer = case.config.balancer
    master = balancer.master_socket if balancer.controlled_by is not Control.DOCKER else None
    for path, who in ((case.config.agent.socket, "switch traffic"), (master, "control HAProxy")):
        if path is not None and _is_open(Path(path)):
            yield warning(f"everybody on this machine may {who}: {path} can be written by all", f"chmod o= {path}")


def _is_open(path: Path) -> bool:
    try:
        above = [directory.stat().st_mode & 0o001 for directory in path.resolve().parents]
        return bool(path.stat().st_mode & 0o002) and all(above)
    except OSError:
        return False


def other_version(case: Case) -> Iterator[Finding]:
    """An upgrade without a restart of the agent."""
    version = case.status["agent"]["version"]
    if version != lbswitch.__version__:
        yield warning(
            f"the agent that runs is lbswitch {version}, installed is {lbswitch.__version__}",
            "systemctl restart lbswitch (traffic goes on meanwhile)",
        )


def not_enabled(case: Case) -> Iterator[Finding]:
    """After a reboot there would be no agent."""
    if not case.host.has_systemd:
        return
    name = _unit_name(case)
    unit = case.host.unit(name)
    if not unit:
        yield warning(
            f"systemd has no {name}: after a reboot no agent starts",
            "install packaging/systemd/lbswitch.service; systemctl enable --now lbswitch",
        )
    elif not _comes_back(unit):
        yield warning(
            f"{name} is {unit.get('UnitFileState') or 'not enabled'}: after a reboot no agent starts, so nothing fails "
            "over, and a managed balancer without a unit of its own stays down",
            f"systemctl enable {name}",
        )


def balancer_not_enabled(case: Case) -> Iterator[Finding]:
    """After a reboot the owner's balancer would not run."""
    if not case.host.has_systemd:
        return
    kind = case.config.balancer.kind
    name = case.config.balancer.unit or f"{kind}.service"
    unit = case.host.unit(name)
    if unit and not _comes_back(unit):
        yield warning(
            f"{name} is {unit.get('UnitFileState') or 'not enabled'}: after a reboot {kind} does not start",
            f"systemctl enable {name}",
        )


def no_unit(case: Case) -> Iterator[Finding]:
    """The managed balancer starts with the agent, and only with it."""
    if not case.host.has_systemd:
        return
    name = "lbswitch-balancer.service"
    if not _comes_back(case.host.unit(name)):
        kind = case.config.balancer.kind
        yield note(
            f"{name} is not enabled: after a reboot {kind} waits for the agent, which starts it when it is ready",
            f"systemctl enable {name} (docs/service-files.md)",
        )


def _comes_back(unit: dict[str, str]) -> bool:
    return unit.get("UnitFileState", "") in ("enabled", "enabled-runtime", "static", "indirect", "generated", "alias")


def _unit_name(case: Case) -> str:
    """The unit that the agent runs in now, else the usual one."""
    if case.has_agent:
        try:
            return case.host.unit_of(case.status["agent"]["pid"]) or "lbswitch.service"
        except OSError:
            pass
    return "lbswitch.service"


def same_unit(case: Case) -> Iterator[Finding]:
    """A managed balancer in the agent's control group ends with it, unless the unit says otherwise."""
    if not case.host.has_systemd:
        return
    name = case.host.unit_of(case.master)
    if name is None or name != _unit_name(case):
        return
    mode = case.host.unit(name).get("KillMode", "")
    if mode != "process":
        yield error(
            f"{case.config.balancer.kind} (pid {case.master}) runs inside {name}, which has KillMode={mode}: stopping "
            "the agent would end the traffic",
            f"systemctl edit {name}, and write\n[Service]\nKillMode=process",
        )


def clock(case: Case) -> Iterator[Finding]:
    """Nothing that lbswitch decides depends on the time of day; people who compare logs do."""
    if case.host.clock().synchronized is False:
        yield note(
            "the kernel says that the clock is not synchronized: times in history and logs can't be compared with "
            "those of other machines",
            "install chrony or enable systemd-timesyncd; then: timedatectl status",
        )


def jump(case: Case) -> Iterator[Finding]:
    """The wall clock moved against the time since boot while the agent ran."""
    about = case.status["agent"]
    try:
        ran_s = case.host.since_boot() - case.host.started(about["pid"])
    except (OSError, ValueError, IndexError) as failed:
        raise NotChecked("when the agent started can't be seen") from failed
    jumped_s = case.host.now() - about["started_at"] - ran_s
    if abs(jumped_s) > _JUMP_S:
        way = "forward" if jumped_s > 0 else "back"
        yield warning(
            f"the clock jumped {abs(jumped_s):.0f} s {way} since the agent started: times in its history are off, and "
            "failover.max_per_hour counts wrongly around that time",
            "let chrony or systemd-timesyncd keep the time; systemctl restart lbswitch begins anew",
        )
