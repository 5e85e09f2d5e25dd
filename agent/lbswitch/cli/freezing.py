"""`freeze` and `release`."""

from __future__ import annotations

from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import printable, say, say_json
from lbswitch.cli.switching import reason_option


@click.command(cls=Command, for_service=True, short_help="Allow no switch until released.")
@reason_option("shown in the status and when a switch is refused")
@pass_settings
def freeze(settings: Settings, reason: str | None) -> None:
    r"""Latch a service: no automatic switch, and none by hand but a rollback, until `lbswitch release`.

    The agent freezes a service by itself when it had to switch too often. Freezing never moves traffic and never
    stops health checks; it survives restarts of the agent. A frozen service still says what is wrong in `status`.

    \b
    Examples:
      lbswitch freeze --reason "database migration until 18:00"
      lbswitch freeze --service shop
    """
    client = settings.client()
    name = settings.chosen_service(client)
    service = client.freeze(name, {} if reason is None else {"reason": reason})
    _tell(settings, service, f"{name}: frozen: {service.get('frozen')}; {_serves(service)}")


@click.command(cls=Command, for_service=True, short_help="End a freeze and a quarantine.")
@pass_settings
def release(settings: Settings) -> None:
    r"""End a freeze and a quarantine, so that switches are possible again; where there was neither, nothing changes.

    A color that the agent rolled back is quarantined: it gets no traffic until this command says that another release
    runs there, or that it may try again. A switch with --force passes the quarantine and leaves it.

    It never moves traffic by itself. From then on the agent may switch automatically again if the live color is
    unhealthy and failover is enabled.

    \b
    Example:
      lbswitch release --service shop
    """
    client = settings.client()
    name = settings.chosen_service(client)
    service = client.release(name)
    _tell(settings, service, f"{name}: not frozen, nothing quarantined; {_serves(service)}")


def _tell(settings: Settings, service: dict[str, Any], text: str) -> None:
    if settings.json:
        say_json(service)
    else:
        say(printable(text))


def _serves(service: dict[str, Any]) -> str:
    return f"{service['live']} is live (generation {service['generation']})"
