"""`monitor`: look on while a service is watched, and end with what came of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import complain, has_color, is_terminal, local_time, paragraph, say, say_json
from lbswitch.client import Client
from lbswitch.errors import AgentUnreachable, LbswitchError

_PAUSE_S = 0.25
_AWAY_S = 30.0  # for so long an agent may be restarted
_CODES = {"passed": 0, "rolled-back": 5, "superseded": 7, "insufficient": 9, "breached": 10}
_ENDS = {
    "passed": "passed its watch",
    "rolled-back": "was rolled back",
    "superseded": "is not watched any more: something else is served now",
    "insufficient": "was watched without enough evidence",
    "breached": "breached, and no rollback was asked for",
    "frozen": "breached, and the service was frozen",
}


def seconds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """A number of seconds, or a duration."""
    from lbswitch.core.durations import parse_duration

    if text is None:
        return None
    try:
        value = float(text) if text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdigit() else None
        found = parse_duration(text) if value is None else value
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from None
    if not 1 <= found <= 86_400:
        raise click.BadParameter(f"{text!r} is not within 1s-24h")
    return found


@click.command(cls=Command, for_service=True, short_help="Watch a service, and roll back when it gets worse.")
@click.option("--duration", metavar="SECONDS", callback=seconds, required=True, help="For so long: 300, or 5m.")
@click.option("--auto-rollback-on-failure", is_flag=True, help="Roll back on a breach; without it, exit 10 says so.")
@pass_settings
def monitor(settings: Settings, duration: float, auto_rollback_on_failure: bool) -> None:
    r"""Watch what real traffic experiences on the color that was switched to, until the time is over.

    It attaches to the watch that every switch begins, or begins one on what is live. The agent does the watching: when
    this command is interrupted, the watch goes on. With --auto-rollback-on-failure a breach leads to a rollback,
    without it to exit code 10; a watch that the configuration lets roll back by itself does so in any case.

    Where a breach leads to no rollback, the command ends at the first one; the watch goes on.

    On a terminal both colors are shown side by side with every criterion; elsewhere a line is printed for each change.

    \b
    Examples:
      lbswitch green && lbswitch monitor --duration 300 --auto-rollback-on-failure
      lbswitch monitor --duration 5m --service shop --json

    \b
    Exit codes: 0 passed, 5 rolled back, 6 agent unreachable, 7 something else was switched meanwhile,
    9 not enough evidence, 10 a breach and no rollback was asked for; all of them: lbswitch --help
    """
    client = settings.client()
    name = settings.chosen_service(client)
    request = {"duration": f"{duration:g}s", "auto_rollback": auto_rollback_on_failure}
    look_on(settings, client, name, client.monitor(name, request))


def look_on(settings: Settings, client: Client, name: str, begun: dict[str, Any]) -> None:
    """Until the watch is over. Raises: Exit with the code of how it ended."""
    looks = _looks(client, name, begun)
    try:
        if settings.json:
            last = _last(looks)
        elif is_terminal():
            last = _draw(name, looks)
        else:
            last = _follow(name, looks)
    except KeyboardInterrupt:
        complain(f"lbswitch: the watch on {name} goes on; lbswitch status shows it")
        raise click.exceptions.Exit(130) from None
    bake = last["bake"]
    if bake["state"] == "baking":
        bake = {**bake, "state": "breached"}
    if settings.json:
        say_json({"service": name, "live": last["live"], **bake})
    else:
        say(_end(client, name, bake))
    raise click.exceptions.Exit(_CODES.get(bake["state"], 1))


def _looks(client: Client, name: str, begun: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The service's object again and again; the last one holds a watch that is over. Raises: AgentUnreachable."""
    answered, away = time.monotonic(), False
    while True:
        try:
            service = client.service(name)
        except AgentUnreachable as error:
            if time.monotonic() - answered > _AWAY_S:
                raise
            away = _say_away(error, away)
        else:
            answered, away = time.monotonic(), False
            bake = service["bake"]
            if bake is None or bake["since"] > begun["since"]:  # another switch began another watch
                yield {**service, "bake": {**begun, "state": "superseded"}}
                return
            yield service
            if bake["state"] != "baking" or _is_decided(bake):
                return
        time.sleep(_PAUSE_S)


def _is_decided(bake: dict[str, Any]) -> bool:
    """A breach that nothing is done about: what comes does not change how this ends."""
    return bool(bake["on_breach"] == "alert" and bake["breaches"])


def _say_away(error: AgentUnreachable, is_said: bool) -> bool:
    """Once, where it spoils no picture."""
    if not is_said and not is_terminal():
        complain(f"lbswitch: {error}; waiting for it")
    return True


def _last(looks: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in looks:  # noqa: B007 - only the last one counts
        pass
    return last


def _draw(name: str, looks: Iterator[dict[str, Any]]) -> dict[str, Any]:
    from lbswitch.cli.picture import Plots, picture
    from lbswitch.cli.redraw import redrawn

    plots, last = Plots(), {}
    with redrawn() as show:
        for last in looks:
            plots.add(last["bake"].get("verdicts") or [])
            show(
                ["Ctrl-C ends the view, not the watch", "", *picture(name, last, plots, time.time(), color=has_color())]
            )
    return last


def _follow(name: str, looks: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """A line for each change: of the weight, of a verdict, of what is done about a breach."""
    known: dict[str, str] = {}
    last: dict[str, Any] = {}
    for last in looks:
        for topic, state, text in _changes(last):
            if known.get(topic) != state:
                say(f"{local_time(time.time())} {name}: {paragraph(text, '    ')}")
                known[topic] = state
    return last


def _changes(service: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is followed: its name, what makes it another one, and the words for it."""
    bake = service["bake"]
    if bake["state"] == "superseded":
        return
    share = (service.get("weights") or {}).get(bake["color"], 0)
    yield "weight", str(share), f"{bake['color']} has {share}% of the traffic"
    for problem in problems(service):
        yield "problem", problem, f"real traffic is not known: {problem}"
    for verdict in bake.get("verdicts") or []:
        yield verdict["criterion"], verdict["outcome"], f"{verdict['outcome']}: {verdict['sentence']}"
    for breach in bake["breaches"]:
        yield breach, breach, f"breach: {breach}"
    if bake.get("holding"):
        yield "holding", bake["holding"], f"no rollback: {bake['holding']}"


def problems(service: dict[str, Any]) -> list[str]:
    """Why nothing is known of real traffic; empty when all is well."""
    found = [(color.get("traffic") or {}).get("problem") for color in service["evidence"].values()]
    return list(dict.fromkeys(each for each in found if each))


def _end(client: Client, name: str, bake: dict[str, Any]) -> str:
    is_frozen = bake["state"] == "breached" and bake["on_breach"] == "freeze"
    words = f"{name}: {bake['color']} {_ENDS.get('frozen' if is_frozen else bake['state'], bake['state'])}"
    why = f": {'; '.join(bake['breaches'])}" if bake["breaches"] and bake["state"] != "superseded" else ""
    return f"{words}{why}{_advice(client, name, bake)}"


def _advice(client: Client, name: str, bake: dict[str, Any]) -> str:
    """What to do next, on a line of its own."""
    if bake["state"] == "rolled-back":
        with contextlib.suppress(LbswitchError):
            last = client.history(1, name)
            if last and last[0]["kind"] == "rollback":
                return (
                    f"\nlbswitch show {last[0]['id']} tells what happened; lbswitch release -s {name} lets it try again"
                )
    if bake["state"] == "breached":
        return f"\n{bake['color']} keeps the traffic: lbswitch rollback -s {name} goes back"
    return ""
