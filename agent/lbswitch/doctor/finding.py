"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad; the number is the exit code (that of monitoring plugins), a note is none."""

    NOTE = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: what is wrong, with numbers and FILE:LINE, and its mend: a command, or lines to write."""

    severity: Severity
    what: str
    mend: str
    service: str | None = None


def error(what: str, mend: str, service: str | None = None) -> Finding:
    """Traffic is lost or wrong, or will be at the next restart or switch."""
    return Finding(Severity.ERROR, what, mend, service)


def warning(what: str, mend: str, service: str | None = None) -> Finding:
    """It works, and will bite."""
    return Finding(Severity.WARNING, what, mend, service)


def note(what: str, mend: str, service: str | None = None) -> Finding:
    """Good to know; nothing has to be done."""
    return Finding(Severity.NOTE, what, mend, service)


class NotChecked(Exception):
    """A check could not look; the message reads on from "not checked: "."""
