"""What is served: the balancer runs, what runs is what is on disk, and a restart would come back on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lbswitch.balancers import nginx_binds
from lbswitch.core.values import parse_endpoint
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, warning
from lbswitch.doctor.words import in_short, user
from lbswitch.errors import BalancerError, LbswitchError, StateError


def down(case: Case) -> Iterator[Finding]:
    """The balancer does not run."""
    case.installed  # noqa: B018 - raises NotChecked
    if case.is_running:
        return
    kind = case.config.balancer.kind
    why = case.balancer.why_not_started()
    start = case.control.how_to("start") if case.is_guest else "lbswitch balancer start"
    yield error(f"{kind} does not run, so nobody is served{f': {why}' if why and not case.is_guest else ''}", start)


def listener(case: Case) -> Iterator[Finding]:
    """A service's own listener does not answer as lbswitch's would."""
    case.installed  # noqa: B018 - raises NotChecked
    for name, why in case.unseen.items():
        yield error(
            f"{in_short(why)}. No switch of {name} can be verified, so each would be reverted",
            _listener_mend(case, name, case.services[name].bind),
            name,
        )


def _listener_mend(case: Case, name: str, bind: str) -> str:
    if case.is_guest:
        return (
            f"see that services.{name}.bind, verify.host and verify.tls name the listener that has lbswitch's lines; "
            f"who listens there: ss -ltnp | grep {bind.rpartition(':')[2]}"
        )
    return f"who listens there: ss -ltnp | grep {bind.rpartition(':')[2]}; lbswitch balancer restart"


def ports(case: Case) -> Iterator[Finding]:
    """Somebody else holds an address that the balancer needs to start."""
    if case.is_running:
        return  # then `listener` says whether it is ours
    binds = {name: parse_endpoint(service.bind) for name, service in case.services.items()}
    for taken in nginx_binds.unavailable(binds):
        yield error(f"{taken}, so the balancer can't start", "end that program, or choose another bind", taken.service)


def drift(case: Case) -> Iterator[Finding]:
    """Rendered files, pointer, maps or the running balancer are not as lbswitch made them."""
    case.installed  # noqa: B018 - raises NotChecked
    try:
        differences = case.balancer.differences(case.intent)
    except LbswitchError as failed:
        raise NotChecked(str(failed)) from failed
    for one in differences:
        yield warning(
            one.what, "lbswitch apply puts it right; lbswitch status --detail shows the difference", one.service
        )


def not_applied(case: Case) -> Iterator[Finding]:
    """What configuration and templates render to is not what is installed."""
    if case.has_agent and any(case.status["agent"]["config"][key] for key in ("error", "files_error")):
        return  # said already, with the reason
    _refuse_other_users(case)
    if case.balancer.committed() is None:
        raise NotChecked("what is served is not on disk")  # how weighted services are rendered is told there
    try:
        revision = case.rendered.revision
    except BalancerError as failed:
        raise NotChecked("what would be rendered is refused") from failed
    if revision != case.installed:
        yield warning(
            f"installed is revision {case.installed}, but configuration and templates render to {revision}: the next "
            "agent, or the next switch, applies that difference too",
            "look at it: lbswitch render --diff; apply it: lbswitch apply (or start the agent)",
        )


def _refuse_other_users(case: Case) -> None:
    """Who the workers are depends on who renders. Raises: NotChecked."""
    try:
        owner = (case.state_dir / "agent.lock").stat().st_uid
    except OSError:
        return
    if not case.is_guest and owner != os.geteuid():
        raise NotChecked(f"what the agent would render only its own user ({user(owner)}) can tell")


def no_restart(case: Case) -> Iterator[Finding]:
    """The balancer would not come back with what is on disk."""
    revision = case.installed
    case.version  # noqa: B018 - raises NotChecked
    try:
        case.balancer.check(case.balancer.read(revision))
    except StateError as failed:
        yield error(f"the installed files can't be read, so a restart would fail: {failed}", "lbswitch apply")
    except BalancerError as failed:
        yield error(
            f"a restart of {case.config.balancer.kind} would fail with what is on disk (revision {revision}): "
            f"{in_short(failed)}",
            "mend the file that is named" if case.is_guest else "lbswitch apply writes the files again",
        )
