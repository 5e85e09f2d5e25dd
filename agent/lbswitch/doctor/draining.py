"""What a switch leaves behind: whether it can be closed where it is to be, and workers that stay and stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lbswitch.core.config import BalancerKind, DrainConfig, Leftover
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, note, warning
from lbswitch.doctor.words import in_short
from lbswitch.ports import OldWorker

_LONG_S = 600.0
_MANY = 8


def cannot_close(case: Case) -> Iterator[Finding]:
    """The policy says close, but nobody can: the connections would be left to end by themselves."""
    wishing = {name: keys for name, service in case.services.items() if (keys := _closing(service.drain))}
    why = _why_not_closed(case) if wishing else None
    for name, keys in wishing.items():
        if why is None:
            return
        what, _, mend = in_short(why).partition(": ")
        wait = " and ".join(f"services.{name}.drain.{key}: wait" for key in keys)
        yield warning(
            f"{name}: drain says close ({', '.join(keys)}), but connections can't be closed: {what}",
            f"{mend}; or {wait}" if mend else wait,
            name,
        )


def _closing(drain: DrainConfig) -> list[str]:
    """The directions in which connections are to be closed."""
    return [key for key in ("forward", "back") if getattr(drain, key) is Leftover.CLOSE]


def _why_not_closed(case: Case) -> str | None:
    """As the agent finds it, which does it; without an agent as this user finds it."""
    if case.has_agent:
        why: str | None = _told(case).get("why_not_closed")
        return why
    return case.balancer.draining.why_not_closed() if case.is_running else None


def _told(case: Case) -> dict[str, Any]:
    """What the agent says of the balancer; one of an older version says less."""
    return dict(case.status["agent"].get("balancer") or {})


def _old_workers(case: Case) -> Sequence[OldWorker]:
    """Oldest first; the agent has seen for longer how old they are."""
    if case.has_agent and "lingering" in _told(case):
        return [OldWorker(**worker) for worker in _told(case)["lingering"]]
    return case.balancer.draining.old_workers() if case.is_running else ()


def old_workers(case: Case) -> Iterator[Finding]:
    """Workers from before reloads that one long connection keeps alive, each with the memory of a whole worker."""
    found = _old_workers(case)
    if not found:
        return
    kind, limit = case.config.balancer.kind, case.config.balancer.old_workers * case.balancer.draining.crew()
    oldest = found[0]
    held = "an unknown number of" if oldest.connections is None else oldest.connections
    what = (
        f"{len(found)} {kind} workers from before reloads still run; the oldest, pid {oldest.pid}, for "
        f"{oldest.age_s / 60:.0f} min, with {held} connections"
    )
    end = "worker_shutdown_timeout 1h;" if kind is BalancerKind.NGINX else "hard-stop-after 1h"
    if case.is_guest and len(found) > _MANY:
        yield warning(what, f"{end} in the owner's configuration ends them after an hour; now: kill {oldest.pid}")
    elif not case.is_guest and len(found) >= limit:
        yield warning(
            f"{what}; {limit} may be there, so the next reload ends the oldest",
            "fewer reloads, shorter connections, or a larger balancer.old_workers",
        )
    elif oldest.age_s >= _LONG_S:
        yield note(what, "nothing, as long as memory suffices; lbswitch drain shows what is open")
