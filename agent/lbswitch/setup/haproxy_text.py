"""An HAProxy configuration as sections and lines, with the place of each line in its file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SECTIONS = frozenset(
    [
        "global",
        "defaults",
        "frontend",
        "backend",
        "listen",
        "userlist",
        "peers",
        "resolvers",
        "mailers",
        "program",
        "http-errors",
        "ring",
        "cache",
        "fcgi-app",
        "log-forward",
        "log-profile",
        "traces",
        "crt-store",
        "acme",
    ]
)
_WORD = re.compile(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s"'#\\]|(?<=\S)\#)+|\#.*""")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that says something; `start` is its byte offset, `words` are as written, without the comment."""

    file: Path
    number: int
    start: int
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.file}:{self.number}"

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(slots=True)
class Section:
    """A section with its lines; `name` is empty for `global` and nameless `defaults`."""

    kind: str
    name: str
    head: Line
    lines: list[Line] = field(default_factory=list)
    defaults: Section | None = None

    def all(self, keyword: str) -> list[Line]:
        """Its lines that begin with this word."""
        return [line for line in self.lines if line.words[0] == keyword]

    def mode(self) -> str:
        """`http` or `tcp`: its own, or that of the defaults before it."""
        for section in (self, self.defaults):
            for line in section.all("mode") if section is not None else ():
                if len(line.words) > 1:
                    return line.words[1]
        return "tcp"


def sections(texts: Mapping[Path, bytes]) -> list[Section]:
    """All sections of all files, in the order in which HAProxy reads them."""
    found: list[Section] = []
    defaults: Section | None = None
    for path, text in texts.items():
        for line in _lines(path, text):
            if line.words[0] in _SECTIONS:
                section = Section(line.words[0], line.words[1] if len(line.words) > 1 else "", line)
                if section.kind == "defaults":
                    defaults = section
                else:
                    section.defaults = defaults
                found.append(section)
            elif found:
                found[-1].lines.append(line)
    return found


def _lines(path: Path, text: bytes) -> Iterator[Line]:
    start = 0
    for number, raw in enumerate(text.splitlines(keepends=True), 1):
        words = tuple(word for word in _WORD.findall(raw.decode(errors="surrogateescape")) if not word.startswith("#"))
        if words:
            yield Line(path, number, start, words)
        start += len(raw)


def files(config: tuple[str, ...]) -> list[Path]:
    """The files of these -f arguments, in HAProxy's order: of a directory its *.cfg by name."""
    found: list[Path] = []
    for argument in config:
        path = Path(argument)
        if path.is_dir():
            found += sorted(each for each in path.glob("*.cfg") if not each.name.startswith("."))
        else:
            found.append(path)
    return found
