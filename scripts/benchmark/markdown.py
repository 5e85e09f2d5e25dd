"""A run as a page for readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from scripts.benchmark.figures import Count, Figure, Record
from scripts.benchmark.promises import Promise
from scripts.benchmark.suites import scale, switch
from scripts.benchmark.systems.catalog import SYSTEMS
from scripts.benchmark.systems.system import WORKERS
from scripts.benchmark.traffic import KEPT, RATE, STREAM_S, STREAMS, WEBSOCKETS

_HEAD = (
    "Written by `scripts/bench`. The file beside this one has every sample as JSON; what the figures mean is in",
    "[performance.md](../performance.md). Times on a shared machine say what is cheap, what is not, and how it grows;",
    "they are no promise for another machine.",
    "",
)
_COMPARISON = (
    f"Under {RATE:,} requests a second, half of them on {KEPT} kept-alive connections and half on one each, with",
    f"{STREAMS} streams of {STREAM_S} s and {WEBSOCKETS} WebSockets open. Every system has {WORKERS} workers;",
    "they take turns. Medians, with p5-p95. All times count from the moment before the command was sent.",
    "*Last old*: when the last request began that the old color still answered. A signal and a rename return before",
    "anything has happened, so their command time says nothing.",
    "",
)
_SCALE = (
    "The request is a POST to the agent's unix socket; the steps are the operation's own `timings_ms` (medians; of",
    "several services the slowest). `verify` ends when the listener has shown the new generation three times. No load.",
    "",
)
_SWITCH = (switch.COMMAND, switch.FIRST_NEW, switch.LAST_OLD, switch.WORST)


def page(record: Record, machine: Mapping[str, str], promises: Sequence[Promise], plots: Iterable[str] = ()) -> str:
    """The whole of it. `plots` are the names of files beside it."""
    parts: list[Iterable[str]] = [_head(record, machine), _promises(promises)]
    if any(record.of_group(switch.LAST_OLD)):
        parts.append(_comparison(record))
    parts += [[f"![{name}]({name})", ""] for name in plots]
    groups = dict.fromkeys(figure.group for figure in record.figures)
    parts += [_figures(record, group) for group in groups if group not in _SWITCH and not group.startswith(scale.GROUP)]
    if any(group.startswith(scale.GROUP) for group in groups):
        parts.append(_scale(record))
    counted = dict.fromkeys(count.group for count in record.counts if count.group != switch.LOST)
    parts += [_counts(group, [count for count in record.counts if count.group == group]) for group in counted]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(record: Record, machine: Mapping[str, str]) -> Iterator[str]:
    yield f"# Measurements of lbswitch {machine['lbswitch']}"
    yield ""
    yield from _HEAD
    yield from (f"- {name}: {value}" for name, value in machine.items() if name != "lbswitch")
    yield f"- compared: {', '.join(sorted(record.versions))}"
    yield from (f"- left out: {what}: {why}" for what, why in record.left_out.items())
    yield from (f"- FAILED: {' '.join(text.split())}" for text in record.failures)
    yield ""


def _promises(promises: Sequence[Promise]) -> Iterator[str]:
    yield "## Promises"
    yield ""
    yield from table(("", "promised", "measured", ""), [(*one[:3], one.verdict) for one in promises], "---|")


def _comparison(record: Record) -> Iterator[str]:
    yield "## A switch, seen by clients (ms)"
    yield ""
    yield from _COMPARISON
    yield from table(("", "command", "first new", "last old", "slowest request", "switches"), _rows(record))
    yield from table(
        ("", "way"), [(system.name, system.way) for system in SYSTEMS if _is_there(record, system.name)], "---|"
    )
    lost = [count for count in record.counts if count.group == switch.LOST]
    yield from _counts("Lost by these switches", lost) if lost else ()


def _rows(record: Record) -> Iterator[Sequence[str]]:
    for figure in record.of_group(switch.LAST_OLD):
        cells = [record.find(group, figure.case) for group in _SWITCH]
        yield (figure.case, *(_spread(cell) if cell else "none" for cell in cells), str(len(figure.samples)))


def _is_there(record: Record, name: str) -> bool:
    return record.find(switch.LAST_OLD, name) is not None


def _figures(record: Record, group: str) -> Iterator[str]:
    mine = list(record.of_group(group))
    yield f"## {group} ({mine[0].unit})"
    yield ""
    rows = [(one.case, *_numbers(one), str(len(one.samples)), _against(record, one)) for one in mine]
    yield from table(("", "median", "p5", "p95", "samples", "ratio"), rows)


def _scale(record: Record) -> Iterator[str]:
    """One line for each case: the request with its spread, and the medians of the steps in it."""
    yield "## A switch, with more services (ms)"
    yield ""
    yield from _SCALE
    rows = []
    for request in record.of_group(f"{scale.GROUP}request"):
        steps = [record.find(f"{scale.GROUP}{step}", request.case) for step in scale.STEPS]
        medians = [f"{step.median:.2f}" if step else "" for step in steps]
        rows.append((request.case, _spread(request), *medians, str(len(request.samples)), _against(record, request)))
    yield from table(("", "request", *scale.STEPS, "samples", "ratio"), rows)


def _counts(title: str, counts: Sequence[Count]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    names = list(counts[0].numbers)
    rows = [(count.case, *(_number(count.numbers.get(name, "")) for name in names)) for count in counts]
    yield from table(("", *(name.replace("_", " ") for name in names)), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:|") -> Iterator[str]:
    """A Markdown table; all columns but the first are aligned to the right, or as `rule` says."""
    yield f"| {' | '.join(head)} |".replace("|  |", "| |")
    yield f"|---|{rule * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _spread(figure: Figure) -> str:
    return f"{figure.median:.2f} ({figure.p5:.2f}-{figure.p95:.2f})"


def _numbers(figure: Figure) -> Sequence[str]:
    return [f"{value:.2f}" for value in (figure.median, figure.p5, figure.p95)]


def _against(record: Record, figure: Figure) -> str:
    ratio = record.ratio(figure)
    return "" if ratio is None else f"{ratio:g}x {figure.of}"


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
