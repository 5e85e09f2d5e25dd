"""The configuration of somebody else's HAProxy: which files the running master was given, and what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control import Control
from lbswitch.core.config import BalancerConfig
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing

_WITH_VALUE = ("-p", "-n", "-N", "-m", "-C", "-S", "-L", "-x", "-f")
_WITH_PIDS = ("-sf", "-st")
_OF_THE_CHECK = ("-n", "-N", "-m", "-L", "-dr", "-dW", "-dV")
_READLINK_S = 10.0


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a HAProxy was started with (management guide, section 3); `kept` are the options that a check needs too."""

    program: str
    files: tuple[str, ...]
    directory: str | None = None
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, argv: Sequence[str]) -> CommandLine:
        """Read it; after a reload the master has added `-sf PIDS` and `-x SOCKET` by itself."""
        files: list[str] = []
        kept: list[str] = []
        directory = None
        words = list(argv[1:])
        while words:
            word = words.pop(0)
            if word == "--":
                files, words = [*files, *words], []
            elif word in _WITH_PIDS:
                while words and not words[0].startswith("-"):
                    words.pop(0)
            elif word in _WITH_VALUE and words:
                value = words.pop(0)
                files += [value] if word == "-f" else []
                directory = value if word == "-C" else directory
                kept += [word, value] if word in _OF_THE_CHECK else []
            elif word in _OF_THE_CHECK:
                kept.append(word)
        return cls(argv[0], tuple(files), directory, tuple(kept))


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a configuration file: `frontend web`, `defaults`, `global`; `lines` have no comments."""

    kind: str
    name: str
    lines: tuple[str, ...]

    def has(self, words: str) -> bool:
        """Whether a line begins with these words."""
        return any(line == words or line.startswith(f"{words} ") for line in self.lines)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What HAProxy would load, in its order, found by one look.

    `base` is where relative paths begin; `ours` are the paths that lead to our file, by whatever links.
    """

    command: CommandLine
    base: str
    files: tuple[str, ...]
    ours: frozenset[str]

    @property
    def theirs(self) -> list[str]:
        """The owner's own files."""
        return [file for file in self.files if file not in self.ours]


class Owner:
    """Everything is looked up when it is asked for: the owner may edit, reload and restart at any time."""

    def __init__(self, control: Control, balancer: BalancerConfig, ours: Path) -> None:
        """`ours` is the path under which our file is loaded, as this host has it."""
        self._control = control
        self._configured = tuple(map(str, balancer.config or ()))
        self._ours = ours

    def look(self) -> Loaded:
        """By the running master's command line; by `balancer.config` when it is down. Raises: CheckFailed."""
        command = self.command_line()
        base = self.base(command)
        files = tuple(self.files(command, base))
        return Loaded(command, base, files, frozenset(file for file in files if self.is_ours(base, file)))

    def loads_ours(self) -> bool:
        """Whether our file is among those that are loaded. Raises: CheckFailed."""
        return bool(self.look().ours)

    def files(self, command: CommandLine, base: str | None = None) -> list[str]:
        """What HAProxy would load, in its order."""
        start = self.base(command) if base is None else base
        return [file for named in command.files for file in self._expanded(start, named)]

    def command_line(self) -> CommandLine:
        """The running master's; when it is down, what `balancer.config` names."""
        argv = self._control.arguments()
        found = CommandLine.parse(argv) if argv else None
        if found is None or not found.files:
            return CommandLine("haproxy", self._configured)
        return found

    def sections(self, loaded: Loaded) -> list[Section]:
        """All sections of the owner's readable files, in order."""
        return [section for file in loaded.theirs for section in _sections(self._text(loaded.base, file))]

    def _text(self, base: str, file: str) -> str:
        try:
            return self._control.read(Path(base, file)).decode(errors="replace")
        except OSError:
            return ""

    def base(self, command: CommandLine) -> str:
        """The directory that relative paths begin at: -C, in the directory that the master runs in."""
        pid = self._control.pid() if self._control.kind is not Kind.DOCKER else None
        try:
            own = "/" if pid is None else str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:  # another user's; systemd starts services in /
            own = "/"
        return str(Path(own, command.directory or ""))

    def _expanded(self, base: str, named: str) -> list[str]:
        """A directory stands for its *.cfg files, which are not hidden."""
        path = Path(base, named)
        try:
            names = self._control.names(path)
        except OSError:
            return [named]
        if names == [str(path)]:  # `ls` of a file
            return [named]
        return [str(path / name) for name in sorted(names) if name.endswith(".cfg") and not name.startswith(".")]

    def is_ours(self, base: str, file: str) -> bool:
        """Whether this path leads to our file, by whatever links. Raises: CheckFailed."""
        path = Path(base, file)
        if self._control.kind is not Kind.DOCKER:
            return os.path.realpath(path) == os.path.realpath(self._ours)
        ours = self._control.seen(self._ours)
        return path == ours or self._resolved(path) == self._resolved(ours)

    def _resolved(self, path: Path) -> str:
        """In the container; a path that leads nowhere is itself."""
        try:
            done = self._control.run(["readlink", "-f", str(path)], timeout_s=_READLINK_S)
        except (OSError, procs.TimedOut, BalancerMissing):
            return str(path)
        return done.output.strip() if done.ok else str(path)


_KINDS = (
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache"),
    *("program", "http-errors", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile"),
)


def _sections(text: str) -> Iterator[Section]:
    kind, name, lines = "", "", list[str]()
    for raw in text.splitlines():
        words = raw.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] in _KINDS:
            yield Section(kind, name, tuple(lines))
            kind, name, lines = words[0], words[1] if len(words) > 1 else "", []
        else:
            lines.append(" ".join(words))
    yield Section(kind, name, tuple(lines))
