"""`alerts`."""

from __future__ import annotations

from typing import Any

import click

from lbswitch.cli.options import Group, Settings, pass_settings
from lbswitch.cli.output import Cell, has_color, local_time, paragraph, printable, say, say_json, table

_LEVELS = {"info": "dim", "warning": "yellow", "error": "red"}
_STATES = {"sent": "green", "pending": "yellow", "sending": "yellow", "given-up": "red", "dropped": "red"}
_NOT_DELIVERED = 1


@click.group(cls=Group, short_help="Who is alerted of what, and a test.")
def alerts() -> None:
    r"""Say who is alerted of what and what became of it, and send a test alert.

    Alerts go to the targets under `alerts` in the configuration. They are kept in an outbox on disk until they are
    delivered, in their order; docs/alerts.md tells all of it.

    \b
    Examples:
      lbswitch alerts test
      lbswitch alerts test oncall
      lbswitch alerts list -n 5
    """


@alerts.command(name="test", short_help="Send a test alert and wait for the result.")
@click.argument("target", required=False)
@pass_settings
def send_test(settings: Settings, target: str | None) -> int:
    r"""Send a test alert to TARGET, or to every target, and say whether it was delivered.

    It goes the way of every alert, but once: a test that fails is not tried again. The exit code is 0 when every target
    took it, and 1 when one did not.

    \b
    Examples:
      lbswitch alerts test
      lbswitch alerts test oncall --json
    """
    document = settings.client().test_alerts({} if target is None else {"target": target})
    if settings.json:
        say_json(document)
    else:
        for result in document["results"]:
            why = "delivered" if result["delivered"] else f"not delivered: {paragraph(result['error'], '  ')}"
            say(f"{printable(result['target'])}: {why}")
    return 0 if document["delivered"] else _NOT_DELIVERED


@alerts.command(name="list", short_help="Targets, and the last alerts.")
@click.option(
    "-n", "--limit", metavar="N", type=click.IntRange(1, 1000), default=20, help="How many alerts (by default 20)."
)
@pass_settings
def show_list(settings: Settings, limit: int) -> None:
    r"""The targets with what they want to hear, and the last alerts, the newest first. Times are local.

    \b
    Examples:
      lbswitch alerts list
      lbswitch alerts list -n 100 --json
    """
    document = settings.client().alerts(limit)
    if settings.json:
        say_json(document)
        return
    if not document["targets"]:
        say("no targets are configured")
    for line in _targets(document["targets"]):
        say(line)
    if document["problem"]:
        say(paragraph(document["problem"]))
    if document["alerts"]:
        say("")
        header = ("TIME", "LEVEL", "TYPE", "DELIVERED", "ALERT")
        for line in table(header, [_row(each) for each in document["alerts"]], color=has_color()):
            if not say(line):
                return


def _targets(targets: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [
            Cell(printable(name)),
            Cell(printable(each["kind"])),
            Cell(printable(each["where"])),
            Cell(printable(each["level"])),
            Cell(", ".join(each["services"] or ("all",))),
            Cell(", ".join(each["types"] or ("all",))),
            Cell(str(each["waiting"]), "yellow" if each["waiting"] else ""),
            Cell(printable(each["problem"] or each["last_error"] or "-"), "red"),
        ]
        for name, each in targets.items()
    ]
    header = ("TARGET", "KIND", "WHERE", "LEVEL", "SERVICES", "TYPES", "WAITING", "PROBLEM")
    return table(header, rows, color=has_color()) if rows else []


def _row(alert: dict[str, Any]) -> list[Cell]:
    states = [(each["target"], each["state"]) for each in alert["deliveries"]]
    told = ", ".join(f"{target} {state}" for target, state in states) or "to nobody"
    worst = next((state for _, state in states if state != "sent"), "sent" if states else "")
    return [
        Cell(local_time(alert["at"])),
        Cell(printable(alert["level"]), _LEVELS.get(alert["level"], "")),
        Cell(printable(alert["type"])),
        Cell(printable(told), _STATES.get(worst, "")),
        Cell(printable(alert["sentence"].partition("\n")[0])),
    ]
