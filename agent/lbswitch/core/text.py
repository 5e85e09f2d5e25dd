"""Text that others wrote, made safe for one line of a terminal, a log or an alert."""

from __future__ import annotations


def printable(text: object) -> str:
    """One line without control characters: what others wrote can't move the cursor or begin a line."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def paragraph(text: object, indent: str = "") -> str:
    """Like `printable`, keeping the lines; all but the first begin with the indent."""
    lines = str(text).replace("\r\n", "\n").rstrip("\n").split("\n")
    return f"\n{indent}".join(printable(line) for line in lines)
