"""What the agent knows of each service that keeps it from helping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, note, warning


def frozen(case: Case) -> Iterator[Finding]:
    """A latched service does not fail over."""
    for name, found in case.service_status():
        if found["frozen"]:
            yield warning(
                f"{name} is frozen, so it does not fail over by itself: {found['frozen']}",
                f"lbswitch release -s {name}",
                name,
            )


def unhealthy(case: Case) -> Iterator[Finding]:
    """The live color fails, or there is no way back, or both."""
    for name, found in case.service_status():
        live, idle = found["live"], "blue" if found["live"] == "green" else "green"
        is_bad = {color: found[color]["state"] == "unhealthy" for color in (live, idle)}
        mend = f"lbswitch status -s {name}; look at the servers' own logs"
        if all(is_bad.values()):
            yield error(f"{name}: both colors are unhealthy: {_why(found, live)}; {_why(found, idle)}", mend, name)
        elif is_bad[live]:
            yield error(f"{name}: the live color is unhealthy: {_why(found, live)}", mend, name)
        elif is_bad[idle]:
            yield warning(
                f"{name}: the idle color is unhealthy, so there is no way back from {live}: {_why(found, idle)}",
                mend,
                name,
            )


def _why(found: dict[str, Any], color: str) -> str:
    pool = found[color]
    errors = [f"{one['address']} {one['last_error']}" for one in pool["servers"] if one["last_error"]]
    return f"{color} has {pool['healthy']} of {pool['total']} servers healthy ({'; '.join(errors[:3]) or 'no answer'})"


def unverified(case: Case) -> Iterator[Finding]:
    """What is served was not seen, although the listener answers."""
    for name, found in case.service_status():
        if not found["verified"] and found["operation"] is None and name not in _unseen(case):
            yield error(
                f"{name}: what is served is not seen at its listener: {found['problem'] or 'no answer'}",
                f"lbswitch status -s {name}",
                name,
            )


def _unseen(case: Case) -> Mapping[str, str]:
    """Those of which it is said already that their listener does not answer."""
    try:
        return case.unseen
    except NotChecked:
        return {}


def no_failover(case: Case) -> Iterator[Finding]:
    """A person has to be awake."""
    for name, service in case.services.items():
        if not service.failover.enabled:
            yield note(
                f"{name}: failover is disabled: when the live color fails, only a person moves the traffic",
                f"services.{name}.failover.enabled: true",
                name,
            )


def no_previous(case: Case) -> Iterator[Finding]:
    """The first switch was never done, so nothing is practised."""
    for name, found in case.service_status():
        if found["previous"] is None and found["generation"] <= 1:
            yield note(
                f"{name} was never switched, so there is nothing to roll back to, and nobody has seen that it works",
                f"in a quiet hour: lbswitch green -s {name} && lbswitch rollback -s {name}",
                name,
            )
