"""What goes to stdout and stderr: one JSON document or plain text, color only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TextIO

from lbswitch.core.text import paragraph as paragraph
from lbswitch.core.text import printable as printable

_STYLES = {"green": "32", "blue": "34", "red": "31", "yellow": "33", "bold": "1", "dim": "2"}


def say(text: str) -> bool:
    """Write a line to stdout; False when nobody reads any more, which is not an error."""
    return _write(sys.stdout, text + "\n")


def say_raw(text: str) -> bool:
    """Write to stdout what has its own ends of lines; False when nobody reads any more."""
    return _write(sys.stdout, text)


def complain(text: str) -> None:
    """Write a line to stderr."""
    _write(sys.stderr, text + "\n")


def say_json(document: Any) -> None:
    """Write the one JSON document of this run. ASCII only: no locale can spoil it."""
    say(json.dumps(document, indent=2))


def _write(stream: TextIO | None, text: str) -> bool:
    if stream is None:  # started with the descriptor closed
        return False
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Send what follows nowhere, so that Python's own flush at exit is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def is_terminal() -> bool:
    """Whether stdout is one."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_color() -> bool:
    """Whether to color stdout: on a capable terminal, unless NO_COLOR (no-color.org) says otherwise."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def local_time(at: float | None) -> str:
    """Seconds since the epoch as local time (ISO 8601) to the second."""
    return "-" if not at else datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


class Cell(NamedTuple):
    """A piece of text with the name of a style, or none."""

    text: str
    style: str = ""


def paint(text: str, style: str, *, color: bool) -> str:
    """The text in that style (ECMA-48 SGR)."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if color and style else text


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, color: bool) -> list[str]:
    """Aligned lines under a header. Widths are counted in characters of the plain text."""
    lines = [[Cell(title, "bold") for title in header], *rows]
    widths = [max(len(line[column].text) for line in lines) for column in range(len(header))]
    return ["  ".join(_padded(line, widths, color=color)).rstrip() for line in lines]


def _padded(line: Sequence[Cell], widths: Sequence[int], *, color: bool) -> list[str]:
    return [
        paint(cell.text, cell.style, color=color) + " " * (width - len(cell.text))
        for cell, width in zip(line, widths, strict=True)
    ]
