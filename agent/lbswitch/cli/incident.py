"""The story of a rollback that the agent decided on, as `show` tells it below the operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lbswitch.cli.incident_facts import Plot, Record, Section, next_steps, plot, sections
from lbswitch.cli.output import Cell, printable, table
from lbswitch.client import AgentProblem, Client
from lbswitch.errors import UnknownOperation

_BARS = " ▁▂▃▄▅▆▇█"
_STYLES = {"breach": "red", "pass": "green", "insufficient": "yellow"}


def incident_of(client: Client, operation: Mapping[str, Any]) -> Record | None:
    """The record of an operation; None when there is none. Raises: AgentUnreachable, AgentProblem."""
    if operation["kind"] != "rollback":
        return None
    try:
        return client.incident(operation["id"])
    except AgentProblem as error:
        if error.http_status == UnknownOperation.http_status:
            return None
        raise


def no_record(operation: Mapping[str, Any]) -> UnknownOperation:
    """The error for who asks for more than there is."""
    return UnknownOperation(
        f"operation {operation['id']} has no record of an incident: only a rollback that the agent decided on has one"
    )


def incident_lines(operation: Mapping[str, Any], record: Record, *, color: bool) -> Iterator[str]:
    """Lines for a terminal or a file."""
    for section in sections(operation, record):
        yield from _section(section, color=color)
        if section.title == "before and after":
            yield from _plotted(operation, plot(record))
    yield from ("", "what to do next")
    yield from (f"  {printable(step)}" for step in next_steps(operation, record))


def _section(section: Section, *, color: bool) -> Iterator[str]:
    yield from ("", printable(section.title))
    rows = [[Cell(printable(text), _STYLES.get(text, "")) for text in row] for row in section.rows]
    if rows:
        yield from (f"  {line}" for line in table(section.header, rows, color=color))
    yield from (f"  {printable(note)}" for note in section.notes)


def _plotted(operation: Mapping[str, Any], found: Plot | None) -> Iterator[str]:
    if found is None:
        return
    name = printable(operation["from"])
    each = "a second" if found.step_s == 1 else f"{found.step_s} s"
    yield from ("", f"{name} with its traffic: one bar is {each}, from {found.begins_s:+d} s of the first bad answer")
    top = max(found.requests)
    yield f"  requests/s {bars(found.requests, top)} at most {top:,.0f}"
    yield f"  errors/s   {bars(found.errors, top)} at most {max(found.errors):,.0f}"


def bars(values: Sequence[float], top: float) -> str:
    """One character a value, from 0 to `top`; what is not 0 is seen."""
    if top <= 0:
        return " " * len(values)
    most = len(_BARS) - 1
    return "".join(_BARS[max(value > 0, min(most, round(value / top * most)))] for value in values)
