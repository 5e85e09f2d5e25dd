"""The measured part of docs/performance.md: who is ahead by how much, and what the machine itself takes."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.benchmark.figures import Figure, Record
from scripts.benchmark.markdown import table
from scripts.benchmark.suites import limits, switch
from scripts.benchmark.systems.agents import HaproxyMap, NginxPointer

BEGIN = "<!-- measured: written by scripts/bench -->"
END = "<!-- end of measured -->"


def fill(text: str, record: Record, date: str) -> str:
    """`text` with what lies between the two marks replaced. Raises: ValueError when a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"it has not both marks, {BEGIN} and {END}")
    return "\n".join([f"{before}{BEGIN}", "", *_measured(record, date), f"{END}{after}"])


def _measured(record: Record, date: str) -> Iterator[str]:
    yield f"Medians of {date}, in ms, with {', '.join(sorted(record.versions))}."
    yield ""
    yield from table(("last old answer", "median", "p95", "next to the pointer", "next to the map"), _rows(record))
    yield from table(("limit", "median", "p95"), [_limit(figure) for figure in record.of_group(limits.GROUP)])
    yield from table(("", "limit", "measured"), _floors(record))


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
    ours = [record.find(switch.LAST_OLD, system.name) for system in (NginxPointer, HaproxyMap)]
    for figure in sorted(record.of_group(switch.LAST_OLD), key=lambda one: one.median):
        yield (figure.case, f"{figure.median:.2f}", f"{figure.p95:.2f}", *(_next_to(figure, one) for one in ours))


def _next_to(figure: Figure, ours: Figure | None) -> str:
    """By how much a system is ahead of us or behind."""
    if ours is None or ours is figure:
        return ""
    difference = ours.median - figure.median
    return f"{difference:.2f} sooner" if difference > 0 else f"{-difference:.2f} later"


def _limit(figure: Figure) -> tuple[str, ...]:
    return figure.case, f"{figure.median:.2f}", f"{figure.p95:.2f}"


def _floors(record: Record) -> Iterator[tuple[str, ...]]:
    """What the disk alone takes of a switch: the intent before anything moves, and the move after it."""
    for system in (NginxPointer, HaproxyMap):
        for group, words, parts in _FLOORS:
            needed = [record.find(limits.GROUP, part) for part in parts]
            measured = record.find(group, system.name)
            if measured is not None and all(needed):
                floor = sum(figure.median for figure in needed if figure is not None)
                yield f"{system.name}: {words}", f"{floor:.2f}", f"{measured.median:.2f}"


_FLOORS = (
    (switch.LAST_OLD, "last old answer; the intent's commit", (limits.SQLITE,)),
    (switch.COMMAND, "command; commit, rename, commit", (limits.SQLITE, limits.RENAME, limits.SQLITE)),
)
