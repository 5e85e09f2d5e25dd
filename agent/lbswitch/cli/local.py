"""`check`, `render` and `balancer`: what is done on this host's files, with or without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbswitch.cli.options import Command, Group, Settings, pass_settings
from lbswitch.cli.output import complain, paragraph, say, say_json

if TYPE_CHECKING:
    from lbswitch.local import BalancerHandle, CheckReport, RenderReport


@click.command(cls=Command, short_help="Judge configuration and templates; change nothing.")
@pass_settings
def check(settings: Settings) -> None:
    r"""Judge the configuration file, the templates and what they render, with the balancer's own checker.

    All that is wrong is said at once, each with file and line, and the exit code is 2 (configuration) or 4 (the
    balancer says no). It changes nothing, needs no agent and does not ask the servers; ports that others hold it does
    not see.

    \b
    Examples:
      lbswitch check
      lbswitch check --config ./lbswitch.yaml && systemctl reload lbswitch
    """
    settings.only_local("check")
    from lbswitch import local

    report = local.check(Path(settings.config_path))
    if settings.json:
        say_json({name: getattr(report, name) for name in report.__dataclass_fields__})
        return
    services = "1 service" if report.services == 1 else f"{report.services} services"
    say(f"{report.kind} {report.version}: {services}, revision {report.revision} is valid; {_installed(report)}")
    for note in report.notes:
        complain(f"  note: {paragraph(note, '    ')}")


def _installed(report: CheckReport | RenderReport) -> str:
    if report.installed is None:
        return "nothing is installed yet"
    return "it is installed" if report.installed == report.revision else f"installed is {report.installed}"


@click.command(cls=Command, short_help="Print the rendered configuration.")
@click.option("--diff", is_flag=True, help="Only what differs from what is installed, as a unified diff.")
@pass_settings
def render(settings: Settings, diff: bool) -> None:
    r"""Print the configuration that lbswitch would write for nginx or HAProxy.

    It changes nothing and needs no agent; the content of secret files is never shown. With --diff an empty output
    means that nothing differs; the exit code is 0 either way.

    \b
    Examples:
      lbswitch render
      lbswitch render --diff
    """
    settings.only_local("render")
    from lbswitch import local

    report = local.render(Path(settings.config_path))
    if settings.json:
        say_json(_render_document(report))
    elif diff:
        say(report.diff.rstrip("\n")) if report.diff else complain("nothing differs from what is installed")
    else:
        for name, text, secret in report.files:
            say(f"# ---- {name}{': secret, not shown' if secret else ''}\n{text.rstrip()}".rstrip())


def _render_document(report: RenderReport) -> dict[str, Any]:
    files = [{"name": name, "text": None if secret else text, "secret": secret} for name, text, secret in report.files]
    return {"revision": report.revision, "installed": report.installed, "diff": report.diff, "files": files}


@click.group(cls=Group, short_help="Start, stop and look at the managed balancer.")
def balancer() -> None:
    r"""The managed nginx or HAProxy itself, with or without an agent running.

    It is a process of its own: it outlives the agent, and no command but stop and restart ends it.

    \b
    Example:
      lbswitch balancer status
    """


@balancer.command()
@pass_settings
def start(settings: Settings) -> None:
    r"""Start what is installed; one that runs already is left alone.

    \b
    Example:
      lbswitch balancer start
    """
    handle = _handle(settings)
    ran = handle.status()["running"]
    _tell_change(settings, handle.start(), "runs already" if ran else "started")


@balancer.command()
@pass_settings
def stop(settings: Settings) -> None:
    r"""Stop the balancer: TRAFFIC ENDS. Requests in flight may finish for a bounded time.

    The agent does not start it again by itself; `lbswitch balancer start` does.

    \b
    Example:
      lbswitch balancer stop
    """
    handle = _handle(settings)
    ran = handle.status()["running"]
    _tell_change(settings, handle.stop(), "stopped" if ran else "was not running")


@balancer.command()
@pass_settings
def restart(settings: Settings) -> None:
    r"""Stop and start the balancer: new connections are refused in between.

    Switches and changes of the configuration never need it.

    \b
    Example:
      lbswitch balancer restart
    """
    handle = _handle(settings)
    ran = handle.status()["running"]
    _tell_change(settings, handle.restart(), "restarted" if ran else "was not running and was started")


@balancer.command()
@pass_settings
def status(settings: Settings) -> None:
    r"""Say whether the balancer runs and what it has on disk; 0 either way.

    \b
    Example:
      lbswitch balancer status --json
    """
    _tell(settings, _handle(settings).status())


def _handle(settings: Settings) -> BalancerHandle:
    settings.only_local("balancer")
    from lbswitch import local

    return local.balancer(Path(settings.config_path))


def _tell_change(settings: Settings, found: dict[str, Any], outcome: str) -> None:
    """What a command did to the balancer, in one line; the routes are of interest only while it serves them."""
    if settings.json:
        say_json(found)
        return
    say(f"{found['kind']} {found['version']} {outcome} ({_revision(found)})")
    if found["running"]:
        _tell_routes(found)


def _tell(settings: Settings, found: dict[str, Any]) -> None:
    if settings.json:
        say_json(found)
        return
    runs = "is running" if found["running"] else "is not running"
    say(f"{found['kind']} {found['version']} {runs}, {_revision(found)}")
    _tell_routes(found)


def _revision(found: dict[str, Any]) -> str:
    return f"revision {found['revision']}" if found["revision"] else "nothing is installed"


def _tell_routes(found: dict[str, Any]) -> None:
    for name, service in found.get("services", {}).items():
        share = "" if service["weight"] == 100 else f" {service['weight']}%"
        say(f"  {name}: {service['live']}{share}, generation {service['generation']}")
