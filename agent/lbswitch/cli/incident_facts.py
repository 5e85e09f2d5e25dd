"""What the record of an incident tells, as tables that text and page share. Nothing here is escaped yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lbswitch.core.sentences import change

Record = Mapping[str, Any]

BARS = 60
"""How many seconds, or groups of them, a plot shows at most."""
_MOST_KINDS = 20
_STEPS = (
    ("traffic_at", "got its traffic"),
    ("first_bad_at", "first bad answer"),
    ("seen_at", "first bad answer read"),
    ("decided_at", "rollback decided"),
    ("last_bad_at", "last bad answer"),
    ("committed_at", "rollback committed and verified"),
)
_NUMBERS = (
    ("requests", "requests", "{:,}"),
    ("requests/s", "requests_per_s", "{:,.1f}"),
    ("errors", "errors", "{:,}"),
    ("error ratio", "error_ratio", "{:.2%}"),
)


class Section(NamedTuple):
    """A table under a title, and sentences below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


class Plot(NamedTuple):
    """Requests and errors a second, one value a step; it begins `begins_s` after the first bad answer."""

    step_s: int
    begins_s: int
    requests: Sequence[float]
    errors: Sequence[float]


def headline(operation: Mapping[str, Any], record: Record) -> str:
    """What happened, in a sentence."""
    back = record["timeline"].get("recovery_ms")
    took = "" if back is None else f", {back:,.0f} ms after its first bad answer"
    return f"{operation['service']}: {change(dict(operation))}{took}: {record['decision']['reason']}"


def sections(operation: Mapping[str, Any], record: Record) -> Iterator[Section]:
    """Everything but the plot and the list of requests, in the order in which it is read."""
    color = str(operation["from"])
    yield timeline(record, color)
    yield criteria(record)
    yield colors(record, color, str(operation["to"]))
    yield statuses(record, color)
    yield kinds(record)


def timeline(record: Record, color: str) -> Section:
    """Milliseconds before and after the first bad answer; after the decision when there was none."""
    times = record["timeline"]
    zero = times.get("first_bad_at") or times.get("decided_at") or times.get("committed_at") or 0.0
    known = [(times[key], words) for key, words in _STEPS if times.get(key) is not None]
    rows = [(f"{(at - zero) * 1000:+,.0f} ms", f"{color} {words}") for at, words in sorted(known)]
    notes = []
    if times.get("first_bad_at") is None:
        notes.append("no answer failed, or none was seen: the times are relative to the decision")
    if not record.get("complete", True):
        notes.append("the record is not complete: the agent ended, or has yet to hear of the last answers")
    return Section("timeline", ("AFTER", "WHAT"), rows, notes)


def criteria(record: Record) -> Section:
    """Each as it was judged at the decision."""
    rows = [
        (
            str(one["criterion"]),
            str(one["outcome"]),
            _number(one["value"], "{:.4g}"),
            "-" if one["threshold"] is None else f"{one['operator']} {one['threshold']:g}",
            f"{one['window_s']:g}s",
            f"{one['samples']:,}",
            "" if one.get("trigger", True) else "only alerts",
        )
        for one in record["criteria"]
    ]
    decision = record["decision"]
    sure = decision.get("confidence")
    notes = [f"decided: {decision['reason']}"]
    if sure is not None:
        notes.append(
            f"severity {decision['severity']}, confidence {sure:.2f}, because of {decision.get('cause') or '-'}"
        )
    header = ("CRITERION", "VERDICT", "VALUE", "THRESHOLD", "WINDOW", "SAMPLES", "")
    return Section("criteria at the decision", header, rows, notes)


def colors(record: Record, bad: str, rescue: str) -> Section:
    """The old color before, the new one with its traffic, the old one again."""
    windows = [record.get(name) or {} for name in ("before", "during", "after")]
    rows = [(title, *(_number(window.get(key), form) for window in windows)) for title, key, form in _NUMBERS]
    for quantile in ("p50", "p95", "p99"):
        values = [(window.get("latency_ms") or {}).get(quantile) for window in windows]
        rows.append((f"{quantile} ms", *(_number(value, "{:,.1f}") for value in values)))
    spans = [window.get("covered_s") for window in windows]
    rows.append(("watched", *(_number(span, "{:,.1f} s") for span in spans)))
    header = ("", f"{rescue.upper()} BEFORE", f"{bad.upper()} WITH TRAFFIC", f"{rescue.upper()} AFTER")
    return Section("before and after", header, rows)


def statuses(record: Record, color: str) -> Section:
    """What the bad color answered, by status."""
    answered = record["answered"]
    rows = [
        ("none" if str(status) == "0" else str(status), f"{count:,}") for status, count in answered["statuses"].items()
    ]
    return Section(
        f"answered by {color}",
        ("STATUS", "REQUESTS"),
        rows,
        [f"{answered['requests']:,} requests, {answered['errors']:,} of them failed"],
    )


def kinds(record: Record) -> Section:
    """By method, path and status: what failed, and what is not idempotent."""
    answered, times = record["answered"], record["timeline"]
    listed = answered["listed"]
    rows = [
        (f"{one['count']:,}", str(one["method"]), str(one["path"]), str(one["status"])) for one in listed[:_MOST_KINDS]
    ]
    notes = []
    if len(listed) > _MOST_KINDS:
        notes.append(f"and {len(listed) - _MOST_KINDS} more kinds: --json has them")
    if answered["unlisted"]:
        notes.append(f"{answered['unlisted']:,} more could not be listed one by one")
    count = not_idempotent(record)
    if count:
        notes.append(f"{count:,} of them are not idempotent (such as POST): they may have changed something")
    elif times.get("committed_at") is not None and not answered["unlisted"]:
        notes.append("none of them changed anything: no request was seen that is not idempotent")
    return Section("failed, or not idempotent", ("REQUESTS", "METHOD", "PATH", "STATUS"), rows, notes)


def not_idempotent(record: Record) -> int:
    """How many requests that are not idempotent the bad color answered, also those that are not listed."""
    return int(record.get("not_idempotent_requests", len(record["not_idempotent"])))


def next_steps(operation: Mapping[str, Any], record: Record) -> list[str]:
    """What to do about it."""
    color, number, service = operation["from"], operation["id"], operation["service"]
    steps = [f"find out what is wrong with {color}; it gets no traffic until it is released"]
    if not_idempotent(record):
        steps.append(f"reconcile what {color} was told: lbswitch show {number} --export requests.csv")
    steps.append(f"for a post-mortem: lbswitch show {number} --html incident-{number}.html")
    steps.append(f"when {color} is mended: lbswitch release -s {service}")
    return steps


def plot(record: Record) -> Plot | None:
    """The last minutes of the bad color; None when nothing was seen."""
    seconds = {int(second): (requests, errors) for second, requests, errors in record.get("seconds") or ()}
    if not seconds:
        return None
    first, last = min(seconds), max(seconds)
    step = max(1, -(-(last - first + 1) // BARS))
    starts = range(first, last + 1, step)
    zero = int(record["timeline"].get("first_bad_at") or first)

    def per_s(which: int) -> list[float]:
        return [sum(seconds.get(at + more, (0, 0))[which] for more in range(step)) / step for at in starts]

    return Plot(step, first - zero, per_s(0), per_s(1))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
