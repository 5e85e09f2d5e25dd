"""`history` and `show`."""

from __future__ import annotations

from typing import Any

import click

from lbswitch.cli.incident import incident_lines, incident_of, no_record
from lbswitch.cli.incident_facts import Record, not_idempotent
from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import (
    Cell,
    complain,
    has_color,
    local_time,
    paragraph,
    printable,
    say,
    say_json,
    say_raw,
    table,
)
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
@click.option("--export", metavar="FILE", help="Write the requests that are not idempotent to FILE; - is stdout.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), help="Of --export; else as FILE ends.")
@click.option("--html", "page_file", metavar="FILE", help="Write the incident as one page to FILE.")
@click.option("--force", is_flag=True, help="Let --export and --html overwrite a file.")
@pass_settings
def show(
    settings: Settings, operation_id: int, export: str | None, form: str | None, page_file: str | None, force: bool
) -> None:
    r"""Everything that is known about one operation; ID is the number that `history` shows.

    For a rollback that the agent decided on there is the record of the incident: a timeline in milliseconds, the
    criteria at the decision, both colors before and after, what the bad color answered, and what to do next.

    --export writes the requests that the bad color answered and that are not idempotent (time, method, path without
    its query, status, request id, failure), to reconcile what they changed: --format jsonl or csv, or as the name
    ends. --html writes the incident as one page that needs nothing else, to attach to a post-mortem.

    \b
    Examples:
      lbswitch show 17
      lbswitch show 17 --export requests.csv
      lbswitch show 17 --export - --format jsonl
      lbswitch show 17 --html incident-17.html
    """
    _check_options(settings, export, form, page_file, force=force)
    client = settings.client()
    operation = client.operation(operation_id)
    record = incident_of(client, operation)
    if export is not None or page_file is not None:
        if record is None:
            raise no_record(operation)
        _write(operation, record, export, form, page_file, force=force)
    elif settings.json:
        say_json({**operation, "incident": record})
    else:
        _tell(operation, record)


def _check_options(
    settings: Settings, export: str | None, form: str | None, page_file: str | None, *, force: bool
) -> None:
    """Raises: UsageError for options that would be ignored."""
    if settings.json and (export or page_file):
        raise click.UsageError("--json shows the record, --export and --html write it: leave one of them out")
    if export is None and form is not None:
        raise click.UsageError("--format is for --export")
    if force and page_file is None and export in (None, "-"):
        raise click.UsageError("--force is for --export FILE and --html")
    if page_file == "-":
        raise click.UsageError("--html needs a file")


def _write(
    operation: dict[str, Any],
    record: Record,
    export: str | None,
    form: str | None,
    page_file: str | None,
    *,
    force: bool,
) -> None:
    from lbswitch.cli.incident_export import exported, format_of, write

    if export is not None:
        text, rows = exported(record, format_of(export, form)), len(record["not_idempotent"])
        if export == "-":
            say_raw(text)
        else:
            write(export, text, force=force)
            say(f"{printable(export)}: {rows:,} requests that {operation['from']} answered and that are not idempotent")
        missing = not_idempotent(record) - rows
        if missing > 0 or record["answered"]["unlisted"]:
            complain("lbswitch: not all are in it: the traffic was too much to list every request")
    if page_file is not None:
        from lbswitch.cli.incident_page import page

        write(page_file, page(operation, record), force=force)
        (complain if export == "-" else say)(f"{printable(page_file)}: the incident as a page")


def _tell(operation: dict[str, Any], record: Record | None) -> None:
    facts = [(name, text) for name, text in _facts(operation) if text]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        say(f"{name:<{width}}  {text}")
    for line in incident_lines(operation, record, color=has_color()) if record is not None else ():
        if not say(line):
            return


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
