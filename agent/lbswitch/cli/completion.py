"""`completion`."""

from __future__ import annotations

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import say, say_json


@click.command(cls=Command, short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
@pass_settings
def completion(settings: Settings, context: click.Context, shell: str) -> None:
    r"""Print the script that makes a shell complete commands, options and, when the agent answers, service names.

    It changes no file; put the output where your shell looks.

    \b
    Examples:
      lbswitch completion bash > /etc/bash_completion.d/lbswitch
      lbswitch completion zsh  > "${fpath[1]}/_lbswitch"
      lbswitch completion fish > ~/.config/fish/completions/lbswitch.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this click can't complete {shell}")
    script = kind(context.find_root().command, {}, "lbswitch", "_LBSWITCH_COMPLETE").source()
    if settings.json:
        say_json({"shell": shell, "script": script})
    else:
        say(script)
