"""`drain`: what is still open to colors without traffic."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import Cell, complain, has_color, is_terminal, local_time, printable, say, say_json, table
from lbswitch.client import Client
from lbswitch.errors import AgentUnreachable

_PAUSE_S = 0.25
_AWAY_S = 20.0  # for so long an agent may be restarted
_SURE = 4  # answers of `unknown` in a row
_TIMEOUT, _UNKNOWN = 1, 9
_HEADER = ("SERVICE", "COLOR", "STATE", "OPEN", "CLOSED", "AFTER", "WORKERS")
_STYLES = {"drained": "green", "draining": "yellow", "unknown": "red"}

Drains = dict[str, dict[str, Any]]


def _duration(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, float] | None:
    """What was written, and the seconds that it means."""
    from lbswitch.core.durations import parse_duration

    try:
        return None if text is None else (text, parse_duration(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from None


@click.command(cls=Command, for_service=True, short_help="What is still open to the color without traffic.")
@click.option("--wait", is_flag=True, help="Until nothing is open any more.")
@click.option("--timeout", metavar="DURATION", callback=_duration, help="With --wait: give up after this, such as 90s.")
@click.option("--close", is_flag=True, help="End what is left now, a few at a time.")
@click.option(
    "--over",
    metavar="DURATION",
    callback=_duration,
    help="With --close: spread over this time (by default drain.close_over of the service).",
)
@pass_settings
def drain(
    settings: Settings, wait: bool, timeout: tuple[str, float] | None, close: bool, over: tuple[str, float] | None
) -> None:
    r"""The connections that are still open to the color that lost its traffic, by worker.

    A switch closes no connection: streams, WebSockets and long requests go on where they are until they end. This
    tells how many are left. Workers that are old are from before a reload of the balancer. Without --service it is
    about all services.

    --wait ends when nothing is open any more on any of them. On a terminal it shows progress, elsewhere it prints a
    line for each change. It goes on while the agent is being restarted.

    --close ends what is left on one service's idle color, spread over a time, so that its clients don't come back
    all at once. It stops when the service moves again, and never closes a connection to a color that has traffic.

    \b
    Examples:
      lbswitch drain
      lbswitch drain --wait --timeout 10m && systemctl stop shop-blue
      lbswitch drain --service shop --close --over 30s --wait
      lbswitch drain --json

    \b
    Exit codes of --wait: 0 drained, or there is nothing to drain, 1 the timeout passed, 9 nobody can know how many
    are open; of --close: 3 refused (the color has traffic, or they can't be closed from here), 7 an operation is
    running; all of them: lbswitch --help
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    if over is not None and not close:
        raise click.UsageError("--over is for --close")
    client = settings.client()
    service = settings.chosen_service(client) if close else settings.service
    if close and service is not None:
        found = _close(client, service, over)
        if not settings.json:
            _say_closing(found)
    drains = _read(client, service)
    if wait:
        drains = _wait(settings, client, service, drains, timeout)
    if settings.json:
        say_json({"services": drains})
    elif not wait and not close:
        _show(drains)
    if wait:
        _judge(drains, timeout)


def _read(client: Client, service: str | None) -> Drains:
    drains: Drains = client.drains(service)["services"]
    return drains


def _close(client: Client, service: str, over: tuple[str, float] | None) -> dict[str, Any]:
    """Only what was seen: a service that moves in between is refused."""
    color = _read(client, service)[service]["color"]
    request: dict[str, Any] = {"close": True}
    if color is not None:
        request["color"] = color
    if over is not None:
        request["over"] = over[0]
    return client.close_drain(service, request)


def _say_closing(found: dict[str, Any]) -> None:
    closing, name, color = found.get("closing"), printable(found["service"]), found["color"]
    if closing is None:
        say(f"{name}: nothing is open to {color}")
    else:
        say(f"{name}: closing {_connections(closing['total'])} to {color}, spread over {closing['over_s']:g} s")


# -- showing ---------------------------------------------------------------------------------------------------


def _show(drains: Drains) -> None:
    for line in table(_HEADER, [_row(found) for found in drains.values()], color=has_color()):
        if not say(line):
            return
    for name, found in drains.items():
        if found.get("note"):
            complain(f"{printable(name)}: {printable(found['note'])}")


def _row(found: dict[str, Any]) -> list[Cell]:
    state, operation = str(found["state"]), found.get("operation")
    return [
        Cell(printable(found["service"])),
        Cell(found["color"] or "-"),
        Cell(printable("both have traffic" if state == "none" else state), _STYLES.get(state, "")),
        Cell("-" if found["open"] is None else str(found["open"])),
        Cell(str(found["closed"])),
        Cell("-" if operation is None else f"operation {operation}"),
        Cell(", ".join(map(_worker, found["workers"])) or "-"),
    ]


def _worker(worker: dict[str, Any]) -> str:
    pid = "unknown" if worker["pid"] is None else worker["pid"]
    return f"{pid}{' (old)' if worker['old'] else ''}: {worker['open']}"


def _connections(count: int) -> str:
    return f"{count} connection{'s' * (count != 1)}"


# -- waiting ---------------------------------------------------------------------------------------------------


def _wait(
    settings: Settings, client: Client, service: str | None, drains: Drains, timeout: tuple[str, float] | None
) -> Drains:
    """Until none is draining, or the timeout has passed. Gives the last answer."""
    began, doubtful = time.monotonic(), 0
    progress = _Progress(silent=settings.json)
    try:
        while True:
            progress.show(drains, time.monotonic() - began)
            doubtful = doubtful + 1 if _of(drains, "unknown") else 0
            if not _of(drains, "draining") and not 0 < doubtful < _SURE:
                return drains
            left_s = float("inf") if timeout is None else began + timeout[1] - time.monotonic()
            if left_s <= 0:
                return drains
            time.sleep(min(_PAUSE_S, left_s))
            drains = _read_patiently(client, service)
    finally:
        progress.end()


def _read_patiently(client: Client, service: str | None) -> Drains:
    """Also while the agent is being restarted. Raises: AgentUnreachable when it stays away."""
    deadline = time.monotonic() + _AWAY_S
    while True:
        try:
            return _read(client, service)
        except AgentUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)


def _of(drains: Drains, state: str) -> list[dict[str, Any]]:
    return [found for found in drains.values() if found["state"] == state]


class _Progress:
    """One line that changes on a terminal, one line for each change elsewhere."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._terminal = is_terminal()
        self._said: dict[str, str] = {}

    def show(self, drains: Drains, waited_s: float) -> None:
        if self._silent:
            return
        if self._terminal:
            sys.stdout.write(f"\r\x1b[?7l{_in_one_line(drains)} ({waited_s:.0f} s)\x1b[K\x1b[?7h")
            sys.stdout.flush()
            return
        for name, found in drains.items():
            text = _sentence(found)
            if self._said.get(name) != text:
                say(f"{local_time(time.time())} {printable(name)}: {text}")
                self._said[name] = text

    def end(self) -> None:
        if self._terminal and not self._silent:
            sys.stdout.write("\n")
            sys.stdout.flush()


def _in_one_line(drains: Drains) -> str:
    waiting = [f"{printable(found['service'])}: {_sentence(found)}" for found in _of(drains, "draining")]
    return "; ".join(waiting) or "; ".join(f"{printable(name)}: {_sentence(each)}" for name, each in drains.items())


def _sentence(found: dict[str, Any]) -> str:
    color, count = found["color"], found["closed"]
    closed = f", {count} {'was' if count == 1 else 'were'} closed" if count else ""
    if found["state"] == "none":
        return "nothing drains, both colors get traffic"
    if found["state"] == "unknown":
        return f"unknown how many connections are open to {color}"
    if found["open"] is None:
        return f"connections to {color} are being counted{closed}"
    if found["state"] == "draining":
        old = sum(worker["open"] for worker in found["workers"] if worker["old"])
        within = f" ({old} in old workers)" if old else ""
        return f"{_connections(found['open'])} open to {color}{within}{closed}"
    return f"{color} is drained{closed}"


def _judge(drains: Drains, timeout: tuple[str, float] | None) -> None:
    """Raises: Exit, after the reason was said."""
    left = list(_complaints(drains, timeout))
    for text in left:
        complain(f"lbswitch: {text}")
    if left:
        raise click.exceptions.Exit(_TIMEOUT if _of(drains, "draining") else _UNKNOWN)


def _complaints(drains: Drains, timeout: tuple[str, float] | None) -> Iterator[str]:
    for found in _of(drains, "draining"):
        name, waited = printable(found["service"]), "" if timeout is None else f" after {timeout[0]}"
        yield f"{name}: not drained{waited}: {_sentence(found)}; lbswitch drain --close -s {name} ends them"
    for found in _of(drains, "unknown"):
        name = printable(found["service"])
        yield f"{name}: it can't be known from this host how many connections are open to {found['color']}"
