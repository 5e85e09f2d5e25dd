"""`green`, `blue` and `rollback`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import complain, paragraph, say, say_json
from lbswitch.client import Client
from lbswitch.core.sentences import operation_sentence

_COLORS = ("blue", "green")
Decorated = Callable[..., Any]


class _Percent(click.IntRange):
    """A whole number of 0-100, and plain words for anything else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Digits only. Raises: BadParameter."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) <= 100):
            self.fail(f"{text!r} is not a whole number of 0-100", param, ctx)
        return int(text)


def _utf8(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not text.isprintable():
        raise click.BadParameter("must be one line of UTF-8 text without control characters")
    return text


def reason_option(kept: str = "kept in the history") -> Decorated:
    """`--reason`; `kept` says what becomes of it."""
    words = f"Why; {kept}. One line, 500 characters at most."
    return click.option("--reason", metavar="TEXT", callback=_utf8, help=words)


_force = click.option("--force", is_flag=True, help="Pass the gates that can be passed: health and freeze.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would happen and change nothing.")


def _steps(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[int] | None:
    """`1,10,50,100`: each larger than the one before."""
    if text is None:
        return None
    steps = [part.strip() for part in text.split(",")]
    if not all(step.isascii() and step.isdecimal() and 1 <= int(step[:4]) <= 100 for step in steps):
        raise click.BadParameter(f"{text!r} is not a list of percentages from 1 to 100, such as 1,10,50,100")
    numbers = [int(step) for step in steps]
    if sorted(set(numbers)) != numbers:
        raise click.BadParameter(f"{text!r}: each step must be larger than the one before")
    return numbers


def _every(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    from lbswitch.core.durations import parse_duration

    try:
        if text is not None and not 1 <= parse_duration(text) <= 86_400:
            raise click.BadParameter(f"{text!r} is not within 1s-24h")
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from None
    return text


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    from lbswitch.cli.monitoring import seconds

    return seconds(context, parameter, text)


def _switch_options(function: Decorated) -> Decorated:
    options = (
        click.option(
            "--monitor",
            metavar="SECONDS",
            callback=_seconds,
            help="Then watch it for so long and roll back on a breach, like `lbswitch monitor`.",
        ),
        click.option(
            "--every", metavar="DURATION", callback=_every, help="With --steps: how long each step is watched (60s)."
        ),
        click.option(
            "--steps",
            metavar="N,N,...",
            callback=_steps,
            help="A canary that goes on by itself: percentages, such as 1,10,50,100. It waits without evidence and "
            "goes back on a breach.",
        ),
        click.option("--all", "everything", is_flag=True, help="All services at the same instant, or none of them."),
        _dry_run,
        _force,
        reason_option(),
        click.option(
            "--expect",
            metavar="COLOR",
            type=click.Choice(_COLORS),
            help="Only if this color is live now; otherwise exit 7 and change nothing. Not looked at when all is "
            "already as asked for (exit 0), so that a repeated command is safe.",
        ),
        click.option(
            "--weight",
            metavar="N",
            type=_Percent(0, 100),
            help="Percent of the traffic this color gets, by default 100; the other gets the rest.",
        ),
    )
    for option in options:
        function = option(function)
    return function


_HELP = """Send the traffic of a service to {color}.

The agent checks its gates (is {color} healthy, is the service frozen, does --expect hold), renders and checks the
configuration if it has to change, writes down what it is about to do, moves the traffic in one step, and then
asks the service's own listener until it has seen {color} answer with the new generation, several times in a row.
Only then it is reported as done. If it is not seen in time, everything is put back and the exit code is 4; it is
1 when that fails too, and the agent goes on trying.

It never drops a request, never needs a reload with the default `switching`, and never leaves a half-done switch
behind: an agent that dies in the middle finishes or reverts when it starts. It never stops the other color's
servers. When {color} is live already, nothing is done and the exit code is 0.

\b
Examples:
  lbswitch {color}
  lbswitch {color} --weight 10 --reason "canary of 2.4"
  lbswitch {color} --expect {other} --json
  lbswitch {color} --all --dry-run

\b
Exit codes: 0 done or already so, 1 putting back failed too, 3 refused by a gate, 4 failed and reverted,
6 agent unreachable, 7 --expect does not hold or another operation is running; all: lbswitch --help
"""


def _color_command(color: str, other: str) -> click.Command:
    @click.command(
        cls=Command,
        for_service=True,
        name=color,
        help=_HELP.format(color=color, other=other),
        short_help=f"Send a service's traffic to {color}.",
    )
    @_switch_options
    @pass_settings
    def command(settings: Settings, /, **options: Any) -> None:
        _switch(settings, color, **options)

    return command


def _switch(settings: Settings, color: str, *, everything: bool, monitor: float | None, **options: Any) -> None:
    request = {"to": color, **_given(options)}
    _refuse_together(everything=everything, monitor=monitor, **options)
    client = settings.client()
    if not everything:
        name = settings.chosen_service(client)
        operation = client.switch(name, request)
        if monitor is None:
            _report(settings, operation)
        else:
            _then_monitor(settings, client, name, operation, monitor)
        return
    if settings.service:
        raise click.UsageError("--all and --service exclude each other")
    answer = client.switch_all(request)
    if settings.json:
        say_json(answer)
        return
    for operation in answer["operations"]:
        _tell(operation)


def _refuse_together(*, everything: bool, monitor: float | None, **options: Any) -> None:
    if options["every"] is not None and options["steps"] is None:
        raise click.UsageError("--every is for --steps")
    if options["steps"] is not None and options["weight"] is not None:
        raise click.UsageError("--steps and --weight exclude each other")
    if everything and (options["steps"] is not None or monitor is not None):
        raise click.UsageError("--all goes without --steps and --monitor: watch the services one by one")
    if monitor is not None and options["dry_run"]:
        raise click.UsageError("--dry-run changes nothing that could be monitored")


def _then_monitor(settings: Settings, client: Client, name: str, operation: dict[str, Any], duration_s: float) -> None:
    from lbswitch.cli.monitoring import look_on

    if not settings.json:
        _tell(operation)
    look_on(settings, client, name, client.monitor(name, {"duration": f"{duration_s:g}s", "auto_rollback": True}))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _report(settings: Settings, operation: dict[str, Any]) -> None:
    if settings.json:
        say_json(operation)
    else:
        _tell(operation)


def _tell(operation: dict[str, Any]) -> None:
    say(operation_sentence(operation))
    if not operation.get("dry_run"):
        for note in operation.get("notes", ()):
            complain(f"  note: {paragraph(note, '    ')}")


green = _color_command("green", "blue")
blue = _color_command("blue", "green")


@click.command(cls=Command, for_service=True, short_help="Go back to what was serving before.")
@reason_option()
@_force
@_dry_run
@pass_settings
def rollback(settings: Settings, /, **options: Any) -> None:
    r"""Go back to what was serving before, for one service.

    "Before" is the color that the last switch left, or the live color when a canary gets part of the traffic. It
    works like any other switch: gates, one step, seen at the listener, or put back. A freeze does not stand in its
    way, and neither does a template or a configuration file that was broken since.

    It never goes back twice: after a rollback say `lbswitch green` or `lbswitch blue` to go forward again. It never
    goes to a color whose servers are unhealthy, unless --force says so.

    \b
    Examples:
      lbswitch rollback
      lbswitch rollback --service shop --reason "errors in checkout"

    \b
    Exit codes: 0 done, 1 putting back failed too, 3 refused (nothing to go back to, or it is unhealthy),
    4 failed and reverted, 6 agent unreachable, 7 another operation is running; all of them: lbswitch --help
    """
    client = settings.client()
    _report(settings, client.rollback(settings.chosen_service(client), _given(options)))
