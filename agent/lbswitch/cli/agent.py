"""`agent`."""

from __future__ import annotations

import click

from lbswitch.cli.options import Command, Settings, pass_settings


@click.command(cls=Command, short_help="Run the agent in the foreground.")
@click.option(
    "--log-format", type=click.Choice(("text", "json")), default="text", show_default=True, help="Of the log on stderr."
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
    help="The least important that is logged.",
)
@pass_settings
def agent(settings: Settings, log_format: str, log_level: str) -> None:
    r"""Run the agent in the foreground, as a service manager does.

    It reads the configuration, finishes or reverts what an earlier agent left open, starts the balancer if it does
    not run, checks the health of both colors and listens on its socket. --socket (or LBSWITCH_SOCKET) takes the
    place of agent.socket. SIGHUP reads the configuration again, SIGTERM and SIGINT end the agent.

    It is never in the way of traffic: the balancer is a process of its own that goes on serving when the agent
    ends, however it ends. To stop the balancer say `lbswitch balancer stop`.

    \b
    Examples:
      lbswitch agent --config ./lbswitch.yaml
      lbswitch agent --log-format json --log-level debug
    """
    settings.only_local("agent")
    from pathlib import Path

    from lbswitch.wiring import run_agent

    run_agent(Path(settings.config_path), log_format, log_level, settings.listen_socket)
