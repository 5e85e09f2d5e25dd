"""`history` and `show`."""

from __future__ import annotations

from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import Cell, has_color, local_time, paragraph, printable, say, say_json, table
from lbswitch.core.sentences import change, drain_sentence

_HEADER = ("ID", "TIME", "SERVICE", "KIND", "CHANGE", "STATE", "GENERATION", "TOOK", "DRAIN", "BY", "REASON")
_STATE_STYLES = {"done": "green", "refused": "yellow", "reverted": "red", "failed": "red"}


@click.command(cls=Command, for_service=True, short_help="The last operations.")
@click.option(
    "-n", "--limit", metavar="N", type=click.IntRange(1, 10_000), default=20, help="How many (by default 20)."
)
@pass_settings
def history(settings: Settings, limit: int) -> None:
    r"""The last operations, the newest first: what was asked for, by whom, and how it ended.

    Refused, reverted and automatic ones are there too. With --service only that service's. Times are local.

    \b
    Examples:
      lbswitch history -n 5
      lbswitch history --service shop --json
    """
    operations = settings.client().history(limit, settings.service)
    if settings.json:
        say_json({"operations": operations})
        return
    if not operations:
        say("no operations yet")
        return
    for line in table(_HEADER, [_row(operation) for operation in operations], color=has_color()):
        if not say(line):
            return


def _row(operation: dict[str, Any]) -> list[Cell]:
    state = str(operation["state"])
    return [
        Cell(str(operation["id"])),
        Cell(local_time(operation.get("started_at"))),
        Cell(printable(operation["service"])),
        Cell(printable(operation["kind"])),
        Cell(printable(change(operation))),
        Cell(printable(state), _STATE_STYLES.get(state, "")),
        Cell(str(operation["generation"])),
        Cell(f"{operation['timings_ms']['total']:.1f} ms"),
        Cell(_drain(operation.get("drain"))),
        Cell(printable(operation["actor"])),
        Cell(printable(operation["reason"])),
    ]


def _drain(drain: dict[str, Any] | None) -> str:
    """How many connections are left on what lost its traffic, or what became of them."""
    if drain is None:
        return "-"
    return f"{drain['open']} open" if drain["state"] == "draining" and drain["open"] else printable(drain["state"])


@click.command(cls=Command, short_help="Everything about one operation.")
@click.argument("operation_id", metavar="ID", type=click.IntRange(min=1))
@pass_settings
def show(settings: Settings, operation_id: int) -> None:
    r"""Everything that is known about one operation; ID is the number that `history` shows.

    \b
    Example:
      lbswitch show 17
    """
    operation = settings.client().operation(operation_id)
    if settings.json:
        say_json(operation)
        return
    facts = [(name, text) for name, text in _facts(operation) if text]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        say(f"{name:<{width}}  {text}")


def _facts(operation: dict[str, Any]) -> list[tuple[str, str]]:
    gate, indent = operation.get("gate"), " " * 12
    timings = operation["timings_ms"]
    return [
        ("operation", str(operation["id"])),
        ("service", printable(operation["service"])),
        ("kind", printable(operation["kind"])),
        ("change", printable(change(operation))),
        ("state", printable(operation["state"])),
        ("generation", str(operation["generation"])),
        ("actor", printable(operation["actor"])),
        ("reason", printable(operation["reason"])),
        ("started", local_time(operation.get("started_at"))),
        ("ended", local_time(operation.get("ended_at"))),
        ("gate", f"{gate['name']}: {paragraph(gate['message'], indent)}" if gate else ""),
        ("error", paragraph(operation.get("error") or "", indent)),
        ("notes", f"\n{indent}".join(paragraph(note, indent) for note in operation.get("notes", ()))),
        ("drain", drain_sentence(operation.get("drain"), indent)),
        ("timings", ", ".join(f"{name} {value:.1f} ms" for name, value in timings.items())),
    ]
