"""Writes packaging/man/lbswitch.1 from what `lbswitch --help` is made of, for every command.

python scripts/man.py            write it
python scripts/man.py --print    print it instead; a test compares
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from lbswitch import __version__
from lbswitch.cli.main import cli

PAGE = Path(__file__).resolve().parents[1] / "packaging" / "man" / "lbswitch.1"
_HEAD = """.\\" Made by scripts/man.py from the help of the commands: edit that.
.TH LBSWITCH 1 "" "lbswitch {version}" "User Commands"
.SH NAME
lbswitch \\- switch nginx or HAProxy traffic between blue and green
.SH SYNOPSIS
.B lbswitch
[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGS\\fR]
.SH DESCRIPTION"""
_TAIL = """.SH FILES
.TP
.I /etc/lbswitch/lbswitch.yaml
The configuration, unless \\-\\-config or LBSWITCH_CONFIG names another.
.TP
.I /run/lbswitch/agent.sock
The agent's socket. Whoever may connect to it may switch.
.TP
.I /var/lib/lbswitch
Pointer or maps, journal, history and snapshots; for a managed balancer also its rendered configuration.
.SH SEE ALSO
.BR nginx (8),
.BR haproxy (1),
.BR systemctl (1),
and the documentation that comes with lbswitch: docs/configuration.md, docs/cli.md, docs/service\\-files.md"""


def page() -> str:
    """The whole page as roff (man(7))."""
    context = click.Context(cli, info_name="lbswitch")
    commands = list(_commands(cli, context))
    every = [set(_options(command, inner)) for command, inner in commands if not isinstance(command, click.Group)]
    common = set.intersection(*every)
    lines = [_HEAD.format(version=__version__), *_text(cli), ".SH OPTIONS"]
    lines.append("Every command takes these, before it or after it:")
    lines += [_option(*record) for record in _options(*commands[0]) if record in common]
    lines.append(".SH COMMANDS")
    for command, inner in commands:
        usage = " ".join([inner.command_path, *command.collect_usage_pieces(inner)])
        lines += [f'.SS "{_escaped(usage)}"', *_text(command)]
        lines += [_option(*record) for record in _options(command, inner) if record not in common]
    return "\n".join([*lines, _TAIL]) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """All that do something, those of inner groups after the group itself, in the order of the help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield command, inner
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _text(command: click.Command) -> Iterator[str]:
    r"""The help: paragraphs are filled, those that begin with \b stay as they are."""
    blocks = (command.help or "").replace("\f", "").strip().split("\n\n")
    for number, block in enumerate(blocks):
        if block.lstrip().startswith("\b"):
            kept = textwrap.dedent(block.lstrip().removeprefix("\b").strip("\n"))
            yield from (".PP", ".nf", *map(_escaped, kept.splitlines()), ".fi")
        else:
            yield from ([".PP"] if number else [])
            yield _escaped(" ".join(block.split()))


def _options(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """How each option is written, and its help."""
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    return [record for record in records if record is not None and not record[0].startswith("-h, --help")]


def _option(names: str, text: str) -> str:
    return f".TP\n.B {_escaped(names)}\n{_escaped(' '.join(text.split()))}"


def _escaped(text: str) -> str:
    """What roff would read as something else."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> None:
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
