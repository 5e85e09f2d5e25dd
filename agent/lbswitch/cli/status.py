"""`status`, once or for as long as somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings, require_service
from lbswitch.cli.output import (
    Cell,
    has_color,
    is_terminal,
    local_time,
    paint,
    paragraph,
    printable,
    say,
    say_json,
    table,
)
from lbswitch.client import Client
from lbswitch.errors import AgentUnreachable

_COLORS = ("blue", "green")
_INDENT = "    "  # of the second and further lines of one trouble
_HEADER = ("SERVICE", "LIVE", "GENERATION", "VERIFIED", "BLUE", "GREEN", "FROZEN")
_DETAIL_HEADER = ("SERVICE", "FACT", "INTENDED", "ON DISK", "RUNNING")
_LONG_S = 60.0
_DIFF_STYLES = {"-": "red", "+": "green", "@": "dim"}
_BAKES = {"baking": "is watched", "passed": "passed its watch", "rolled-back": "was rolled back"}
_STATE_STYLES = {"healthy": "green", "unhealthy": "red", "unknown": "yellow"}


def _number(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if value != value:  # NaN is within every range
        raise click.BadParameter("is not a number")
    return value


@click.command(cls=Command, for_service=True, short_help="What is live, and how both colors are.")
@click.option("--detail", is_flag=True, help="Also what is intended, on disk and running, with what differs.")
@click.option("--watch", is_flag=True, help="Keep looking until Ctrl-C.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    callback=_number,
    default=1.0,
    show_default=True,
    help="Between two looks of --watch.",
)
@pass_settings
def status(settings: Settings, detail: bool, watch: bool, interval: float) -> None:
    r"""What is live, how much of the traffic it gets, and how the servers of both colors are.

    VERIFIED says that the agent saw what is intended at the service's own listener the last time it looked. Under
    the table stands whatever is not as it should be, with its numbers. It changes nothing and asks nobody but the
    agent; the exit code is 0 whenever the agent answers, also when a color is unhealthy.

    --detail asks disk, listener and workers now, and shows for each service what is intended, what is on disk and what
    runs. Whatever somebody else has changed is told below with a diff; `lbswitch apply` puts it back.

    --watch redraws on a terminal and goes on while the agent is being restarted; elsewhere it prints one line for
    each change.

    \b
    Examples:
      lbswitch status
      lbswitch status --service shop --json
      lbswitch status --detail -s shop
      lbswitch status --watch --interval 0.5
      lbswitch status --watch | tee switch.log
    """
    if watch and settings.json:
        raise click.UsageError("--json prints one document, --watch goes on: use GET /v1/events for a stream")
    if watch and detail:
        raise click.UsageError("--detail asks once, --watch goes on: take one of them")
    client = settings.client()
    if not watch:
        _once(settings, client, detail=detail)
    else:
        _look_on(_looks(settings, client, interval))


def _look_on(looks: Iterator[dict[str, Any] | AgentUnreachable]) -> None:
    """Until Ctrl-C, which is how this ends and nothing to talk about."""
    try:
        _redraw(looks) if is_terminal() else _follow(looks)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def _once(settings: Settings, client: Client, *, detail: bool) -> None:
    document = _read(settings, client, detail=detail)
    if settings.json:
        say_json(document)
        return
    lines = status_lines(_without_drift(document) if detail else document, color=has_color())
    if detail:
        lines += ["", *detail_lines(document, color=has_color())]
    for line in lines:
        if not say(line):
            return


def _read(settings: Settings, client: Client, *, detail: bool = False) -> dict[str, Any]:
    """The Status document, with `--service` only that service in it. Raises: AgentUnreachable, UnknownService."""
    document = client.status(detail=detail and not settings.service)
    if settings.service:
        found = require_service(document, settings.service)
        document["services"] = {settings.service: client.detail(settings.service) if detail else found}
    return document


# -- the table -----------------------------------------------------------------------------------------------


def status_lines(document: dict[str, Any], *, color: bool) -> list[str]:
    """The table, then a line for everything that is not as it should be."""
    services = document["services"]
    lines = table(_HEADER, [_row(name, service) for name, service in services.items()], color=color)
    lines += [_watch(name, service["bake"]) for name, service in services.items() if _is_watched(service)]
    troubles = [line for name, service in services.items() for line in _service_troubles(name, service)]
    troubles += _agent_troubles(document.get("agent") or {})
    told = [line for trouble in troubles for line in paragraph(trouble, _INDENT).split("\n")]
    return lines + [paint(line, "yellow", color=color) for line in told]


def _is_watched(service: dict[str, Any]) -> bool:
    return bool(service.get("bake") and service["bake"]["state"] == "baking")


def _watch(name: str, bake: dict[str, Any]) -> str:
    """The watch in a line: how long it goes on, and each criterion's value beside its threshold."""
    from lbswitch.cli.picture import remaining

    verdicts = [_value(verdict) for verdict in bake.get("verdicts") or []]
    watch = f"{bake['color']} is watched, {remaining(bake, time.time())}"
    return f"{name}: {'; '.join([watch, *verdicts])}"


def _value(verdict: dict[str, Any]) -> str:
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g}"
    limit = "" if verdict["threshold"] is None else f" ({verdict['operator']} {verdict['threshold']:g} is bad)"
    return f"{verdict['criterion']} {verdict['outcome']} at {value}{limit}"


def _row(name: str, service: dict[str, Any]) -> list[Cell]:
    verified = Cell("yes") if service["verified"] else Cell("NO", "red")
    frozen = Cell("yes", "yellow") if service["frozen"] else Cell("no")
    return [
        Cell(printable(name)),
        Cell(_share(service), service["live"]),
        Cell(str(service["generation"])),
        verified,
        *(_pool(service[color]) for color in _COLORS),
        frozen,
    ]


def _share(service: dict[str, Any]) -> str:
    live, weight = service["live"], service["weight"]
    other = "blue" if live == "green" else "green"
    return live if weight == 100 else f"{live} {weight}% / {other} {100 - weight}%"


def _pool(pool: dict[str, Any]) -> Cell:
    state = str(pool.get("state", "unknown"))
    return Cell(f"{pool['healthy']}/{pool['total']} {state}", _STATE_STYLES.get(state, ""))


def _service_troubles(name: str, service: dict[str, Any]) -> Iterator[str]:
    if service.get("problem"):
        yield _prefixed(name, service["problem"])
    if service["frozen"]:
        yield f"{name}: frozen: {service['frozen']}; lbswitch release -s {name} ends that"
    for color, why in (service.get("quarantined") or {}).items():
        yield f"{name}: {color} is quarantined: {printable(why)}; lbswitch release -s {name} ends that"
    if _is_watched(service):
        yield from _watch_troubles(name, service)
    if (drain := service.get("drain")) and drain.get("open"):
        yield f"{name}: {drain['open']} open to {drain['color']} still; lbswitch drain -s {name} shows them"
    for difference in service.get("drift") or ():
        yield _drift(name, difference)
    if operation := service.get("operation"):
        by = f" by {operation['actor']}" if operation.get("actor") else ""
        yield f"{name}: a {operation.get('kind', 'operation')}{by} is running"
    for color in _COLORS:
        for server in service[color]["servers"]:
            if not server["healthy"]:
                yield f"{name}: {color} {server['address']} is {_server_trouble(server)}"


def _watch_troubles(name: str, service: dict[str, Any]) -> Iterator[str]:
    from lbswitch.cli.monitoring import problems

    bake = service["bake"]
    if bake["holding"]:
        yield f"{name}: {bake['color']} breached and keeps the traffic, {bake['holding']}"
    for breach in bake["breaches"]:
        yield f"{name}: breach: {breach}"
    for problem in problems(service):
        yield f"{name}: real traffic is not known: {problem}"


def _server_trouble(server: dict[str, Any]) -> str:
    state = server.get("state", "unhealthy")
    error = f": {printable(server['last_error'])}" if server.get("last_error") else ""
    counted = f" ({server['failed']} of {server['checks']} checks failed)" if server.get("checks") else ""
    return f"{state}{error}{counted}"


def _agent_troubles(agent: dict[str, Any]) -> Iterator[str]:
    config, balancer = agent.get("config") or {}, agent.get("balancer") or {}
    if config.get("error"):
        yield f"configuration {config.get('path')} is not in use: {config['error']}"
    if config.get("files_error"):
        yield f"the rendered files were not applied: {config['files_error']}"
    if balancer.get("running") is False:
        why = balancer.get("why_down") or "lbswitch balancer start"
        yield f"{balancer.get('kind')} is not running, there is no traffic: {why}"
    lingering = [worker for worker in balancer.get("lingering") or () if worker["age_s"] >= _LONG_S]
    if lingering:
        oldest_min = max(worker["age_s"] for worker in lingering) / 60
        yield (
            f"{balancer.get('kind')}: {balancer['old_workers']} workers from before reloads still run, the oldest for "
            f"{oldest_min:.0f} min"
        )
    for difference in agent.get("drift") or ():
        yield _drift(str(balancer.get("kind", "balancer")), difference)
    for note in agent.get("notes") or ():
        yield f"note: {note}"


def _drift(name: str, difference: dict[str, Any]) -> str:
    where = {"disk": "on disk", "running": "running"}.get(difference["where"], difference["where"])
    what = difference["what"].removeprefix(f"{name}: ")
    return f"{name}: drift {where}: {what}; lbswitch apply puts it back, lbswitch status --detail shows it"


def _prefixed(name: str, text: str) -> str:
    return text if text.startswith(f"{name}:") else f"{name}: {text}"


# -- three columns -------------------------------------------------------------------------------------------


def _without_drift(document: dict[str, Any]) -> dict[str, Any]:
    """What differs is told below, with its diffs."""
    services = {name: {**service, "drift": []} for name, service in document["services"].items()}
    return {**document, "services": services, "agent": {**(document.get("agent") or {}), "drift": []}}


def detail_lines(document: dict[str, Any], *, color: bool) -> list[str]:
    """What is intended, on disk and running for each service; then the diffs of what differs."""
    services, agent = document["services"], document.get("agent") or {}
    rows = [row for name, service in services.items() for row in _detail_rows(name, service)]
    lines = table(_DETAIL_HEADER, rows, color=color)
    drift = [each for service in services.values() for each in service.get("drift") or ()]
    for difference in [*drift, *(agent.get("drift") or ())]:
        lines += ["", printable(difference["what"])]
        diff = str(difference.get("diff") or "").splitlines()
        lines += [paint(f"{_INDENT}{printable(line)}", _DIFF_STYLES.get(line[:1], ""), color=color) for line in diff]
    return [*lines, "", "lbswitch apply puts it back"] if drift or agent.get("drift") else lines


def _detail_rows(name: str, service: dict[str, Any]) -> Iterator[list[Cell]]:
    columns = [service.get("intended") or {}, service.get("on_disk") or {}, service.get("running") or {}]
    titles = iter([printable(name)])
    for title, tell in (("live", _live), ("generation", _plain("generation")), ("revision", _plain("revision"))):
        intended, *others = [tell(column) for column in columns]
        yield [Cell(next(titles, "")), Cell(title), Cell(intended), *(_compared(intended, other) for other in others)]
    intended = _route(columns[0])
    for worker in columns[2].get("workers") or ():
        served = _compared(intended, _route(worker))
        yield [Cell(""), Cell(f"worker {worker['pid']}"), Cell(intended), Cell(""), served]
    if error := columns[2].get("error"):
        yield [Cell(""), Cell("listener"), Cell(""), Cell(""), Cell(printable(error), "red")]


def _compared(intended: str, found: str) -> Cell:
    return Cell(found) if found == intended else Cell(f"{found} (differs)", "red")


def _live(column: dict[str, Any]) -> str:
    return _share(column) if column.get("live") else "-"


def _plain(key: str) -> Callable[[dict[str, Any]], str]:
    def tell(column: dict[str, Any]) -> str:
        value = column.get(key)
        return "-" if value is None else printable(value)

    return tell


def _route(column: dict[str, Any]) -> str:
    return f"{_live(column)}, generation {column.get('generation', '-')}"


# -- looking on ----------------------------------------------------------------------------------------------


def _looks(settings: Settings, client: Client, interval_s: float) -> Iterator[dict[str, Any] | AgentUnreachable]:
    """One document after the other; that the agent is away counts only for the first. Raises: AgentUnreachable."""
    yield _read(settings, client)
    while True:
        time.sleep(interval_s)
        try:
            yield _read(settings, client)
        except AgentUnreachable as error:
            yield error


def _redraw(looks: Iterator[dict[str, Any] | AgentUnreachable]) -> None:
    from lbswitch.cli.redraw import redrawn

    with redrawn() as show:
        for look in looks:
            show([f"{_now()}  Ctrl-C ends", "", *_picture(look)])


def _picture(look: dict[str, Any] | AgentUnreachable) -> list[str]:
    if isinstance(look, AgentUnreachable):
        return [paint(line, "red", color=has_color()) for line in paragraph(look, _INDENT).split("\n")]
    return status_lines(look, color=has_color())


def _follow(looks: Iterator[dict[str, Any] | AgentUnreachable]) -> None:
    """One line for each service at first, then one for each change, until nobody reads."""
    known: dict[str, str] = {}
    for look in looks:
        summaries = _summaries(look)
        for name, text in summaries.items():
            if known.get(name) != text and not say(f"{_now()} {paragraph(_prefixed(name, text), _INDENT)}"):
                return
        known |= summaries


def _summaries(look: dict[str, Any] | AgentUnreachable) -> dict[str, str]:
    if isinstance(look, AgentUnreachable):
        return {"agent": str(look)}
    summaries = {name: _summary(name, service) for name, service in look["services"].items()}
    return {**summaries, "agent": "; ".join(_agent_troubles(look.get("agent") or {})) or "answers"}


def _summary(name: str, service: dict[str, Any]) -> str:
    """What of a service is worth a line when it changes; counters of checks are not."""
    verified = "verified" if service["verified"] else "NOT verified"
    live = f"{_share(service)} live (generation {service['generation']}, {verified})"
    pools = ", ".join(f"{color} {_pool(service[color]).text}" for color in _COLORS)
    frozen = f", frozen: {service['frozen']}" if service["frozen"] else ""
    problem = f", {service['problem'].removeprefix(f'{name}: ')}" if service.get("problem") else ""
    bake = service.get("bake")
    watch = f", {bake['color']} {_BAKES.get(bake['state'], bake['state'])}" if bake else ""
    return f"{live}, {pools}{watch}{frozen}{problem}"


def _now() -> str:
    return local_time(time.time())
