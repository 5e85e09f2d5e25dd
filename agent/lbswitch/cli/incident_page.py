"""The record of an incident as one page that needs nothing else: no script, no network, everything escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lbswitch.cli.incident_export import exported_time
from lbswitch.cli.incident_facts import (
    Plot,
    Record,
    Section,
    headline,
    next_steps,
    not_idempotent,
    plot,
    sections,
)
from lbswitch.cli.output import printable

_MOST_REQUESTS = 1_000
_WIDTH, _HEIGHT = 720, 140
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1a1a1a }
table { border-collapse: collapse; margin: .5em 0 }
th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 1.8em }
.breach { color: #b00020 } .pass { color: #1b6e2c } .insufficient { color: #8a6100 }
rect.requests { fill: #9db8d9 } rect.errors { fill: #b00020 }
"""


def page(operation: Mapping[str, Any], record: Record) -> str:
    """The whole document."""
    title = f"Incident {operation['id']}: {operation['service']}"
    body = "\n".join(_body(operation, record))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(operation: Mapping[str, Any], record: Record) -> Iterator[str]:
    yield f"<h1>{_safe(headline(operation, record))}</h1>"
    at = record["timeline"].get("committed_at") or operation.get("ended_at") or 0.0
    when = datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "")
    yield f"<p>Operation {_safe(operation['id'])}, generation {_safe(operation['generation'])}, ended {when} UTC.</p>"
    for section in sections(operation, record):
        yield from _section(section)
        if section.title == "before and after":
            yield from _plotted(operation, plot(record))
    yield from _requests(record)
    yield "<h2>what to do next</h2>"
    yield f"<ul>{''.join(f'<li>{_safe(step)}</li>' for step in next_steps(operation, record))}</ul>"


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{_safe(section.title)}</h2>"
    if section.rows:
        yield _table(section.header, section.rows)
    yield from (f"<p>{_safe(note)}</p>" for note in section.notes)


def _requests(record: Record) -> Iterator[str]:
    rows = sorted(record["not_idempotent"], key=lambda row: float(row["at"]))
    if not rows:
        return
    yield "<h2>requests that are not idempotent</h2>"
    fields = ("method", "path", "status", "request_id", "failure")
    cells = [
        [exported_time(row), *("-" if row.get(field) in (None, "") else str(row[field]) for field in fields)]
        for row in rows[:_MOST_REQUESTS]
    ]
    yield _table(("TIME", "METHOD", "PATH", "STATUS", "REQUEST ID", "FAILURE"), cells)
    count = not_idempotent(record)
    if count > len(cells):
        yield f"<p>{count - len(cells):,} more are not on this page; lbswitch show --export has up to 10,000.</p>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(text.lower())}</th>" for text in header)
    lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{lines}\n</table>"


def _cell(text: str) -> str:
    style = f' class="{text}"' if text in ("breach", "pass", "insufficient") else ""
    return f"<td{style}>{_safe(text)}</td>"


def _plotted(operation: Mapping[str, Any], found: Plot | None) -> Iterator[str]:
    """Requests as bars with the errors in front of them."""
    if found is None:
        return
    top = max(found.requests)
    words = (
        f"{operation['from']} with its traffic: requests (at most {top:,.0f}/s) and errors (red, at most "
        f"{max(found.errors):,.0f}/s); one bar is {found.step_s} s, from {found.begins_s:+d} s of the first bad answer"
    )
    wide = _WIDTH / len(found.requests)
    yield f"<p>{_safe(words)}</p>"
    yield f'<svg role="img" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    yield f"<title>{_safe(words)}</title>"
    for name, values in (("requests", found.requests), ("errors", found.errors)):
        for place, value in enumerate(values):
            high = value / top * _HEIGHT if top > 0 else 0.0
            yield (
                f'<rect class="{name}" x="{place * wide:.1f}" y="{_HEIGHT - high:.1f}" '
                f'width="{max(1.0, wide - 1):.1f}" height="{high:.1f}"/>'
            )
    yield "</svg>"


def _safe(text: object) -> str:
    """One line of text in a document, also within quotes."""
    return html.escape(printable(text), quote=True)
