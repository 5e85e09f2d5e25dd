"""Which events become alerts, how they are worded, who wants them, and when a delivery is tried again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

from lbswitch.core.sentences import operation_sentence
from lbswitch.core.text import paragraph, printable

AUTOMATIC = "lbswitch"
"""The actor of operations that nobody asked for."""
TEST = "test"
_FIRST_RETRY_S = 2.0
_MOST_RETRY_S = 300.0
_LONGEST = 4000  # characters of a sentence: a checker may say a lot, and chats cut or refuse what is long
_OTHER = {"blue": "green", "green": "blue"}


class Level(StrEnum):
    """How bad it is, ascending."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for the least."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that people are told. `at` is in seconds since the epoch.

    `id` stays the same however often it is told; `advice` names the command to run next, or is empty.
    """

    id: str
    at: float
    type: str
    service: str | None
    level: Level
    title: str
    sentence: str
    advice: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the API shows it and a webhook sends it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**{**document, "level": Level(document["level"])})


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one target wants to hear; None is no restriction."""

    level: Level = Level.INFO
    services: Collection[str] | None = None
    types: Collection[str] | None = None

    def want(self, alert: Alert) -> bool:
        """Whether this alert is for it. What concerns the whole balancer is for all services."""
        if alert.type == TEST:
            return True
        if self.services is not None and alert.service is not None and alert.service not in self.services:
            return False
        if self.types is not None and alert.type not in self.types:
            return False
        return alert.level.rank >= self.level.rank


class AlertDesk(Protocol):
    """What API and agent need of the alerts. What blocks is called from threads."""

    def document(self, limit: int) -> dict[str, Any]:
        """Targets and the newest alerts, without anything secret. Blocks."""

    def notes(self) -> list[str]:
        """What people should know, as sentences for the status. Blocks."""

    def test(self, target: str | None) -> list[dict[str, Any]]:
        """Send a test alert to one target or all, once; says how each ended. Blocks. Raises: InvalidRequest."""


def retry_delay_s(attempts: int, draw: float) -> float:
    """Seconds until the next attempt after so many failed ones: 1-2 s at first, doubling, at most 5 minutes.

    `draw` is a random number of 0..1: targets that failed together do not come back together.
    """
    longest: float = min(_MOST_RETRY_S, _FIRST_RETRY_S * 2 ** min(max(attempts, 1) - 1, 20))
    return longest * (0.5 + 0.5 * draw)


def alert_of(
    type_: str, message: str, service: str | None, level: str, data: Mapping[str, Any], *, at: float, identity: str
) -> Alert | None:
    """The alert that an event is, or None; `identity` is used where the event brings none of its own."""
    operation = data.get("operation")
    if isinstance(operation, Mapping):
        return alert_of_operation(operation, at=at)
    known = _EVENTS.get(type_)
    if known is None and (level != Level.ERROR or type_ in _NOT_TOLD):
        return None
    words = known or _Words("trouble", "see what is wrong with: lbswitch status{service}")
    title, advice = words.title, words.advice.format(service=_option(service), id=data.get("operation_id", "ID"))
    return Alert(
        identity,
        at,
        type_,
        service,
        Level(level) if level in list(Level) else Level.INFO,
        f"{service}: {title}" if service else title,
        _cut(paragraph(message)),
        advice,
        {key: value for key, value in data.items() if key != "traceback"},
    )


def alert_of_operation(operation: Mapping[str, Any], *, at: float) -> Alert | None:
    """The alert that the end of an operation is (an Operation document), or None when nobody needs to hear of it.

    Its id is made of the operation's, so that it is one alert however often it is told.
    """
    state, is_automatic = str(operation["state"]), operation.get("actor") == AUTOMATIC
    if operation.get("dry_run") or state in ("already", "open") or (state == "refused" and not is_automatic):
        return None
    reason = f" because {printable(operation['reason'])}" if operation.get("reason") else ""
    by = "" if is_automatic or not operation.get("actor") else f", by {printable(operation['actor'])}"
    service, kind = str(operation["service"]), str(operation["kind"])
    return Alert(
        f"operation-{operation['id']}-{int(float(operation.get('started_at') or 0) * 1000)}",
        at,
        kind,
        service,
        _level(kind, state, is_automatic=is_automatic),
        f"{service}: {_title(operation)}",
        _cut(f"{operation_sentence(dict(operation))}{reason}{by}"),
        _after_operation(operation),
        {"operation": dict(operation)},
    )


def is_own(type_: str) -> bool:
    """Whether an event is about alerts: nobody is alerted of those, or a dead target would feed itself."""
    return type_.startswith("alert")


def _level(kind: str, state: str, *, is_automatic: bool) -> Level:
    if state != "done":
        return Level.ERROR
    if kind == "failover" or (kind == "rollback" and is_automatic):
        return Level.ERROR
    return Level.WARNING if kind == "rollback" else Level.INFO


def _title(operation: Mapping[str, Any]) -> str:
    kind, target, weight = operation["kind"], operation["to"], operation["weight"]
    state = str(operation["state"])
    if state != "done":
        ended = {"reverted": "failed and was reverted", "refused": "was refused"}.get(state, state)
        return f"{kind} to {target} {ended}"
    if weight not in (0, 100):
        return f"{target} gets {weight}%"
    live = target if weight == 100 else _OTHER.get(target, target)
    back = {"rollback": "rolled back to {}", "failover": "failed over to {}", "restore": "restored, {} is live"}
    return back.get(kind, "{} is live").format(live)


def _after_operation(operation: Mapping[str, Any]) -> str:
    """What to do next."""
    service, kind, target = _option(operation["service"]), str(operation["kind"]), str(operation["to"])
    show = f"lbswitch show {operation['id']}"
    match operation["state"]:
        case "reverted":
            return (
                f"what served before serves again; the reason in full: {show}; look for its cause with: lbswitch doctor"
            )
        case "failed":
            return f"see what is served now with: lbswitch status --detail{service}; the reason in full: {show}"
        case "refused":
            return f"see why with: lbswitch status{service}; switch by hand with: lbswitch {target}{service}"
    if kind == "rollback":
        return f"{show} tells the reason; when {operation['from']} is mended: lbswitch {operation['from']}{service}"
    if kind == "failover":
        return (
            f"find what ails {operation['from']}: lbswitch status{service}; {target} stays live until somebody switches"
        )
    if kind == "weight" or operation["weight"] != 100:
        return f"look on with: lbswitch status --watch{service}; all of it: lbswitch {target}{service}"
    return f"to go back: lbswitch rollback{service}"


def _option(service: object) -> str:
    return f" -s {service}" if service else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... (cut, {len(text)} characters)"


@dataclass(frozen=True, slots=True)
class _Words:
    """Title and advice of a type of event; `{service}` is ` -s NAME` where it concerns one, `{id}` an operation."""

    title: str
    advice: str


_STATUS = "see how it stands with: lbswitch status{service}"
_DETAIL = "see the difference with: lbswitch status --detail{service}; put it back with: lbswitch apply"
_REPORT = "please report it, with the agent's log: journalctl -u lbswitch"
_EVENTS: Mapping[str, _Words] = {
    "latched": _Words(
        "no automatic switch any more",
        "see why with: lbswitch history{service}; when it is mended: lbswitch release{service}",
    ),
    "frozen": _Words("frozen", "no switch but a rollback by hand until: lbswitch release{service}"),
    "released": _Words("the freeze is over", _STATUS),
    "drift": _Words("drift", _DETAIL),
    "drift-over": _Words("drift is over", ""),
    "repaired": _Words("drift was repaired", "find out who changes it: agent.on_drift: repair puts it back each time"),
    "repair-failed": _Words("drift could not be repaired", _DETAIL),
    "drift-not-repaired": _Words("drift comes back", "find the program that changes it, then: lbswitch apply"),
    "differed": _Words(
        "differed at the start of the agent", "it was put right; see: lbswitch status --detail{service}"
    ),
    "balancer-revived": _Words(
        "the balancer had died", "it was started again; why it died is in its error log and in: journalctl -u lbswitch"
    ),
    "holding": _Words("stays where it is, although it should move", "mend a color: lbswitch status{service}"),
    "recovered": _Words("recovered", ""),
    "failover-failed": _Words("failover failed", "see why with: lbswitch status{service}"),
    "not-seen": _Words("the listener shows something else", "look with: lbswitch status --detail{service}"),
    "seen-again": _Words("the listener shows what is intended", ""),
    "settled": _Words("put right after a failed switch", "see: lbswitch history{service}"),
    "ejected": _Words("a server was left out of its pool", "see what it answers: lbswitch status{service}"),
    "restored": _Words("a server is back in its pool", ""),
    "drained": _Words("drained", ""),
    "old-workers-ended": _Words(
        "old workers were ended", "allow more with balancer.old_workers, or switch with fewer reloads"
    ),
    "configuration-refused": _Words(
        "the configuration was refused", "what served before goes on; mend the file and see: lbswitch check"
    ),
    "configuration-mended": _Words("the configuration is in order again", ""),
    "files-refused": _Words("templates or certificates were refused", "mend them and see: lbswitch check"),
    "files-mended": _Words("templates and certificates are in order again", ""),
    "history-not-written": _Words(
        "the history could not be written", "make room on the disk of agent.state_dir; see: lbswitch doctor"
    ),
    "bug": _Words("a bug in lbswitch", _REPORT),
    "trouble": _Words("trouble", "see: lbswitch status{service} and journalctl -u lbswitch"),
    "breach": _Words("a criterion is breached", "go back with: lbswitch rollback{service}"),
    "criterion": _Words("a criterion is breached", "look on with: lbswitch monitor{service}"),
    "decision": _Words("a decision", "look on with: lbswitch monitor{service}"),
    "waiting": _Words("the canary waits", "look on with: lbswitch monitor{service}"),
    "bake": _Words("bake", "look on with: lbswitch monitor{service}"),
    "shield-failed": _Words("the shield could not be moved", _STATUS),
}
_NOT_TOLD = frozenset({"rolled-back"})  # the operation's own alert says it, with the same reason
_KINDS = ("switch", "rollback", "failover", "weight", "restore")
TYPES = tuple(sorted({*_KINDS, *_EVENTS}))
"""What `alerts.targets.NAME.types` may name: kinds of operations and types of events."""
