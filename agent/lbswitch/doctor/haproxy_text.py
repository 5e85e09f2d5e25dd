"""An owner's HAProxy configuration as sections and lines, in the order in which HAProxy reads the files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_PROXIES = ("frontend", "backend", "listen")
_SECTIONS = (
    *_PROXIES,
    *("global", "defaults", "peers", "resolvers", "userlist", "mailers", "cache", "program", "http-errors", "ring"),
    *("log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"),
)


class Files(Protocol):
    """Where the files are."""

    def read(self, path: Path) -> bytes:
        """A file. Raises: OSError."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line in words, without its comment."""

    file: str
    number: int
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.number}"

    @property
    def text(self) -> str:
        """The words again."""
        return " ".join(self.words)


@dataclass(slots=True)
class Section:
    """`frontend web from base`: kind, name, the line itself, and what follows. `base` are the defaults it takes."""

    head: Line
    base: Section | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Such as `frontend`."""
        return self.head.words[0]

    @property
    def name(self) -> str:
        """Empty for `global`."""
        return self.head.words[1] if len(self.head.words) > 1 else ""

    def option(self, name: str) -> bool:
        """Whether an `option` is on here, or in the defaults that this section takes."""
        for line in reversed(self.lines):
            if line.words[:2] == ("option", name):
                return True
            if line.words[:3] == ("no", "option", name):
                return False
        return self.base is not None and self.base.option(name)

    def find(self, *words: str) -> Iterator[Line]:
        """The lines that begin so."""
        return (line for line in self.lines if line.words[: len(words)] == words)


@dataclass(frozen=True, slots=True)
class HAProxyConfig:
    """All files together."""

    files: tuple[str, ...]
    sections: tuple[Section, ...]

    def of_kind(self, *kinds: str) -> Iterator[Section]:
        """Sections of these kinds."""
        return (section for section in self.sections if section.kind in kinds)

    def in_global(self, *words: str) -> Iterator[Line]:
        """The lines of `global` sections that begin so."""
        return (line for section in self.of_kind("global") for line in section.find(*words))

    def section_of(self, wanted: Line) -> Section:
        """The section that a line is in."""
        return next(section for section in self.sections if any(line is wanted for line in section.lines))


def load(names: Sequence[str], files: Files) -> HAProxyConfig:
    """Read these files, in this order. Raises: OSError."""
    return HAProxyConfig(tuple(names), tuple(_sections(_all_lines(names, files))))


def _all_lines(names: Iterable[str], files: Files) -> Iterator[Line]:
    for name in names:
        text = files.read(Path(name)).decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            words = _words(line)
            if words:
                yield Line(name, number, words)


def _words(line: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(line, comments=True))
    except ValueError:  # quotes that shells and HAProxy see differently
        return tuple(line.partition("#")[0].split())


def _sections(lines: Iterator[Line]) -> Iterator[Section]:
    """The latest defaults hold for the proxies after them, unless `from` names others."""
    current: Section | None = None
    latest: Section | None = None
    named: dict[str, Section] = {}
    for line in lines:
        if line.words[0] not in _SECTIONS:
            if current is not None:
                current.lines.append(line)
            continue
        if current is not None:
            yield current
        current = Section(line, _base(line, named, latest))
        if current.kind == "defaults":
            latest = current
            named[current.name] = current
    if current is not None:
        yield current


def _base(line: Line, named: dict[str, Section], latest: Section | None) -> Section | None:
    if "from" in line.words[:-1]:
        return named.get(line.words[line.words.index("from") + 1])
    return latest if line.words[0] in _PROXIES else None
