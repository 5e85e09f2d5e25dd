"""`doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import has_color, paint, paragraph, say, say_json

if TYPE_CHECKING:
    from lbswitch.doctor.examine import Report
    from lbswitch.doctor.finding import Finding

_SHOWN = 3  # of one kind; a thousand services with the same mistake are one mistake
_NAMED = 5
_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


@click.command(cls=Command, for_service=True, short_help="Say what would bite in production, with its mend.")
@pass_settings
def doctor(settings: Settings) -> int:
    r"""Look for what would bite in production on this host, and say how to mend each.

    It reads configuration, templates, the balancer's files and processes, asks the agent if there is one, and asks
    each server's health path once. It changes nothing and takes ten seconds at most. What this user may not look at
    is said; docs/doctor.md explains every check.

    The exit code is that of monitoring plugins: 0 nothing or notes only, 1 the worst is a warning, 2 it is an error.

    \b
    Examples:
      lbswitch doctor
      lbswitch doctor --json | jq -r '.findings[] | .severity + " " + .id + ": " + .what'
      lbswitch doctor --service shop
    """
    settings.only_local("doctor")
    from lbswitch.doctor.case import Case
    from lbswitch.doctor.examine import examine
    from lbswitch.doctor.registry import CHECKS

    report = examine(Case(Path(settings.config_path), settings.client, settings.service), CHECKS)
    if settings.json:
        say_json(report.to_json())
    else:
        _tell(report)
    return int(report.worst)


def _tell(report: Report) -> None:
    color = has_color()
    for (check, severity), findings in groupby(report.findings, lambda each: (each[0], each[1].severity)):
        say(f"{paint(str(severity), _STYLES[str(severity)], color=color)} {check.id}")
        for line in _lines([finding for _, finding in findings]):
            say(f"  {line}")
    for why, ids in report.not_checked.items():
        say(paint(f"not checked: {paragraph(why, '  ')}", "dim", color=color))
        say(f"  {_wrapped(', '.join(ids))}")
    say(_summary(report))


def _lines(findings: list[Finding]) -> Iterator[str]:
    """What and mend of the first, and how many more there are."""
    for finding in findings[:_SHOWN]:
        yield _wrapped(paragraph(finding.what))
        yield "mend: " + "\n  ".join(_wrapped(line) for line in paragraph(finding.mend).split("\n"))
    if len(findings) > _SHOWN:
        services = [finding.service for finding in findings[_SHOWN:] if finding.service]
        listed = ", ".join(services[:_NAMED]) + (", ..." if len(services) > _NAMED else "")
        yield f"and {len(findings) - _SHOWN} more{f' ({listed})' if listed else ''}; --json has all"


def _wrapped(text: str, width: int = 116) -> str:
    """Broken between words, for terminals; a line to write, which is indented, stays whole."""
    if len(text) <= width or text.startswith(" "):
        return text
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n    ".join([*lines, line])


def _summary(report: Report) -> str:
    counts: dict[str, int] = {}
    for _, finding in report.findings:
        counts[str(finding.severity)] = counts.get(str(finding.severity), 0) + 1
    skipped = sum(len(ids) for ids in report.not_checked.values())
    made = len(report.results) - skipped
    checks = f"{made} check{'s' * (made != 1)}" + (f", {skipped} could not be made" if skipped else "")
    if not counts:
        return f"nothing found: {checks}"
    listed = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
    return f"{listed}: {checks}"
