"""The requests that are not idempotent and that a bad color answered, for reconciliation: JSONL or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lbswitch.cli.incident_facts import Record
from lbswitch.cli.output import printable
from lbswitch.errors import InvalidRequest, LbswitchError
from lbswitch.files import replace_file

Format = Literal["csv", "jsonl"]

_FIELDS = ("time", "method", "path", "status", "request_id", "failure")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection


def format_of(path: str, given: str | None) -> Format:
    """What is asked for, or what the name ends with. Raises: InvalidRequest."""
    found = given or path.rpartition(".")[2].lower()
    if found == "csv":
        return "csv"
    if found in ("jsonl", "ndjson"):
        return "jsonl"
    raise InvalidRequest(f"{path!r} ends neither with .csv nor with .jsonl: say --format csv or --format jsonl")


def exported(record: Record, form: Format) -> str:
    """The whole file, with a line for each request in the order of time."""
    rows = sorted(record["not_idempotent"], key=lambda row: float(row["at"]))
    return _csv(rows) if form == "csv" else "".join(_json_lines(rows))


def _json_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps({field: exported_time(row) if field == "time" else row.get(field) for field in _FIELDS}) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow(_FIELDS)
    for row in rows:
        writer.writerow([exported_time(row), *(cell(row.get(field)) for field in _FIELDS[1:])])
    return text.getvalue()


def cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula: those begin with an apostrophe. One line, None is empty."""
    if value is None:
        return ""
    text = str(value)
    mark = "'" if text.lstrip(" ").startswith(_FORMULA) else ""
    return mark + printable(text)


def exported_time(row: dict[str, Any]) -> str:
    """When a request was answered: UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(float(row["at"]), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(path: str, text: str, *, force: bool) -> None:
    """Write a file that is there as a whole or not at all; readable by its owner: it tells what clients asked for.

    Raises: InvalidRequest when there is one and `force` is not given, LbswitchError.
    """
    file = Path(path)
    if not force and (file.exists() or file.is_symlink()):
        raise InvalidRequest(f"{path} is there already: name another file, or overwrite it with --force")
    if file.is_dir():
        raise InvalidRequest(f"{path} is a directory: name a file")
    try:
        replace_file(file, text.encode("utf-8", "backslashreplace"), 0o600)
    except OSError as error:
        raise LbswitchError(f"{path} can't be written: {error.strerror or error}") from error
