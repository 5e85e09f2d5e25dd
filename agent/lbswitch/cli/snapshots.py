"""`snapshots` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbswitch.cli.options import Command, Group, Settings, pass_settings, settings_of
from lbswitch.cli.output import Cell, complain, has_color, local_time, paragraph, printable, say, say_json, table
from lbswitch.cli.switching import reason_option
from lbswitch.client import Client, NobodyAnswers
from lbswitch.core.sentences import operation_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from lbswitch.local import SnapshotReader

_HEADER = ("ID", "TIME", "BEFORE", "OPERATIONS")
_COLORS = ("blue", "green")
_SHOWN = 10


class _Listing(Group):
    """A group that does something by itself when no command of it is named."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Like click's."""
        super().__init__(*args, **kwargs, invoke_without_command=True, no_args_is_help=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Nothing named is nothing wrong."""
        return click.Group.parse_args(self, ctx, args)


@click.group(cls=_Listing, short_help="What there was before each operation.")
@click.option(
    "-n", "--limit", metavar="N", type=click.IntRange(1, 10_000), default=20, help="How many (by default 20)."
)
@click.pass_context
def snapshots(ctx: click.Context, limit: int) -> None:
    r"""What there was before each operation, the newest first; `lbswitch restore ID` brings it back.

    A snapshot is taken before every switch, rollback, failover, change of weights and restore, and before an edited
    configuration or template is applied. It holds the configuration file, templates of yours, what was rendered, and
    which color served. Works without an agent, too, for who may read the state directory.

    \b
    Examples:
      lbswitch snapshots -n 5
      lbswitch snapshots show 12 --diff
      lbswitch snapshots show 12 --file lbswitch.yaml
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_of(ctx)
    found = _ask(settings, lambda source: source.snapshots(limit))
    if settings.json:
        say_json(found)
    elif not found["snapshots"]:
        say("no snapshots yet")
    else:
        for line in table(_HEADER, [_row(each) for each in found["snapshots"]], color=has_color()):
            if not say(line):
                return


def _row(snapshot: dict[str, Any]) -> list[Cell]:
    operations = [str(number) for number in snapshot["operations"]]
    more = f" and {len(operations) - _SHOWN} more" if len(operations) > _SHOWN else ""
    return [
        Cell(str(snapshot["id"])),
        Cell(local_time(snapshot["at"])),
        Cell(printable(_purpose(snapshot))),
        Cell(", ".join(operations[:_SHOWN]) + more if operations else "-"),
    ]


def _purpose(snapshot: dict[str, Any]) -> str:
    restores = snapshot.get("restores")
    return f"{snapshot['purpose']} of {restores}" if restores else str(snapshot["purpose"])


@snapshots.command(name="show", cls=Command, short_help="What a snapshot holds.")
@click.argument("number", metavar="ID", type=click.IntRange(min=1))
@click.option("--file", "name", metavar="NAME", help="Print this file of it, such as lbswitch.yaml.")
@click.option("--diff", is_flag=True, help="Print what has changed since.")
@pass_settings
def show(settings: Settings, number: int, name: str | None, diff: bool) -> None:
    r"""What a snapshot holds: routes, balancer, files. Secret files are listed and never shown.

    \b
    Examples:
      lbswitch snapshots show 12
      lbswitch snapshots show 12 --file lbswitch.yaml > lbswitch.yaml.then
      lbswitch snapshots show 12 --diff
    """
    if diff and name is not None:
        raise click.UsageError("--file and --diff exclude each other")
    if diff:
        _show_diff(settings, _ask(settings, lambda source: source.snapshot_diff(number)))
    elif name is not None:
        _show_file(settings, _ask(settings, lambda source: source.snapshot_file(number, name)))
    else:
        _show_all(settings, _ask(settings, lambda source: source.snapshot(number)))


def _show_diff(settings: Settings, found: dict[str, Any]) -> None:
    if settings.json:
        say_json(found)
    elif found["diff"]:
        say(paragraph(found["diff"]))
    else:
        complain("nothing differs from what is served now")


def _show_file(settings: Settings, found: dict[str, Any]) -> None:
    if settings.json:
        say_json(found)
    else:
        say(str(found["text"]).removesuffix("\n"))


def _show_all(settings: Settings, found: dict[str, Any]) -> None:
    if settings.json:
        say_json(found)
        return
    operations = ", ".join(str(number) for number in found["operations"]) or "-"
    balancer = found["balancer"]
    facts = {
        "snapshot": str(found["id"]),
        "taken": local_time(found["at"]),
        "before": f"{_purpose(found)} (operations {operations})",
        "balancer": f"{balancer['kind']} {balancer['version']}, revision {found['revision'] or '-'}",
    }
    for name, text in facts.items():
        say(f"{name:<8}  {printable(text)}")
    for name, service in found["services"].items():
        share = "" if service["weight"] == 100 else f" {service['weight']}%"
        say(f"  {printable(name)}: {service['live']}{share}, generation {service['generation']}")
    for each in found["files"]:
        say(f"  {printable(each['name'])}  {each['size']} bytes{', secret' if each['secret'] else ''}")


def _ask(settings: Settings, question: Callable[[Client | SnapshotReader], dict[str, Any]]) -> dict[str, Any]:
    """The agent's answer; with no agent that answers here, what its state directory says."""
    try:
        return question(settings.client())
    except NobodyAnswers as error:
        if settings.url:
            raise
        from lbswitch.local import SnapshotReader

        found = question(SnapshotReader(Path(settings.config_path)))
        complain(f"lbswitch: note: {error}; read from the state directory")
        return found


@click.command(cls=Command, short_help="Bring back a snapshot: configuration and routes.")
@click.argument("number", metavar="ID", type=click.IntRange(min=1))
@reason_option()
@click.option(
    "--expect", metavar="COLOR", type=click.Choice(_COLORS), help="Only if this color is live where traffic would move."
)
@click.option("--force", is_flag=True, help="Pass freeze, health, and what says so.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and change nothing.")
@pass_settings
def restore(settings: Settings, /, number: int, **options: Any) -> None:
    r"""Bring back what there was before an operation: the configuration file and where all traffic goes.

    ID is a number of `lbswitch snapshots`. All of it comes back or nothing: the balancer's own checker must accept it,
    every color that gains traffic must be healthy, every service is seen at its own listener, and then the
    configuration file is replaced in one step. What fails on the way is put back, the file included. A freeze stops
    it, like any switch by hand that is no rollback.

    It does not bring back templates, certificates or the balancer's version. When today's would render something else
    than was rendered then, it is refused with the difference; --force restores with today's. --force also passes
    unhealthy colors, frozen services, and services with clients that would be removed or moved. What there was before
    the restore is a snapshot, too.

    \b
    Examples:
      lbswitch restore 12 --dry-run
      lbswitch restore 12 --reason "the new pool was a mistake"

    \b
    Exit codes: 0 done or already so, 1 putting back failed too, 2 no such snapshot, 3 refused, 4 failed and reverted,
    6 agent unreachable, 7 --expect does not hold or another operation is running; all: lbswitch --help
    """
    request = {name: value for name, value in options.items() if value is not None and value is not False}
    answer = settings.client().restore(number, request)
    if settings.json:
        say_json(answer)
        return
    operations = answer["operations"]
    for operation in operations[:_SHOWN]:
        say(operation_sentence(operation))
    if len(operations) > _SHOWN:
        say(f"and {len(operations) - _SHOWN} more services")
    if not any(operation.get("dry_run") for operation in operations):
        for note in dict.fromkeys(note for operation in operations for note in operation.get("notes", ())):
            complain(f"  note: {paragraph(note, '    ')}")
