"""`apply`."""

from __future__ import annotations

from typing import Any

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import complain, paragraph, printable, say, say_json


@click.command(cls=Command, short_help="Serve what configuration and templates say now.")
@click.option("--force", is_flag=True, help="Also if it empties a pool, or cuts off a service's clients.")
@click.option("--dry-run", is_flag=True, help="Print what would change in the rendered files; change nothing.")
@pass_settings
def apply(settings: Settings, force: bool, dry_run: bool) -> None:
    r"""Have the agent read configuration, templates and certificates again, and serve what they say.

    The agent notices edits by itself; this is for what it refused or could not do, and to have an answer. What is
    refused changes nothing. It also puts right what somebody changed in lbswitch's own files or in the running
    balancer (drift), whatever agent.on_drift says. Never moves traffic between colors.

    Refused without --force: what leaves a pool without servers; removing a service, or moving its `bind`, while
    clients are connected or were within the last minute.

    \b
    Examples:
      lbswitch apply --dry-run
      lbswitch apply
      lbswitch apply --force

    \b
    Exit codes: 0 done or nothing to do, 2 configuration, template, certificate or the balancer's checker says no,
    3 needs --force, 4 failed and was put back, 6 agent unreachable; all of them: lbswitch --help
    """
    request = {name: True for name, given in (("force", force), ("dry_run", dry_run)) if given}
    answer = settings.client().apply(request)
    if settings.json:
        say_json(answer)
    elif dry_run:
        _tell_rehearsal(answer)
    else:
        _tell(answer)


def _tell(answer: dict[str, Any]) -> None:
    for what in answer["differs"]:
        complain(f"  put right: {paragraph(what, '    ')}")
    how = "with a reload" if answer["reloaded"] else "without a reload"
    if answer["configuration"] == "applied":
        say(f"applied {how}, revision {printable(str(answer['revision']))}")
    elif not answer["differs"]:
        say(f"nothing to do: revision {printable(str(answer['revision']))} is served")


def _tell_rehearsal(answer: dict[str, Any]) -> None:
    if answer["diff"]:
        say(paragraph(answer["diff"].rstrip("\n")))
    for what in answer["differs"]:
        complain(f"  would be put right: {paragraph(what, '    ')}")
    how = "with a reload" if answer["reloaded"] else "without a reload"
    unchanged = "what drifted would be put right" if answer["differs"] else "nothing would change"
    would = f"would be applied {how}" if answer["configuration"] == "applied" else unchanged
    complain(f"dry run: {would}; nothing was changed")
