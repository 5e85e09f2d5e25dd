"""`config schema`."""

from __future__ import annotations

import click

from lbswitch.cli.options import Group
from lbswitch.cli.output import say_json


@click.group(cls=Group, short_help="The configuration file's schema.")
def config() -> None:
    r"""About the configuration file. What is wrong in yours is said by `lbswitch check`.

    \b
    Example:
      lbswitch config schema > lbswitch.schema.json
    """


@config.command(short_help="Print the JSON Schema of the configuration file.")
def schema() -> None:
    r"""Print the JSON Schema of the configuration file, for editors and linters. Reads no file and no agent.

    \b
    Example:
      lbswitch config schema > lbswitch.schema.json
    """
    from lbswitch.core import config_text

    say_json(config_text.schema())
