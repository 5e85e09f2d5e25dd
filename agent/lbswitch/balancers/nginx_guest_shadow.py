"""The owner's whole configuration with a candidate's files instead of ours that are installed, for `nginx -t`.

    STAGING/ours/http.conf             the candidate
    STAGING/files/0.conf               owner's files from which an include leads to ours, with that include rewritten
    STAGING/root/etc/nginx/nginx.conf  his main file in the same way, beside symlinks to what lies beside the original:
                                       nginx looks there for relative paths of includes, certificates, ...

All other files are the owner's own. Lines keep their numbers: what nginx says of a copy is true of the original.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lbswitch.balancers import nginx_config
from lbswitch.balancers.nginx_guest_files import GuestFiles
from lbswitch.balancers.nginx_pointer import make_directory
from lbswitch.errors import CheckFailed
from lbswitch.ports import Rendered

_PLACE = re.compile(r"^.* in (\S.*?):(\d+)$")
_ARGUMENT = r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\\.|[^\s;{\\])+)"""
_INCLUDE = re.compile(rf"(?<![^\s;{{}}])(?:include|'include'|\"include\")\s+{_ARGUMENT}\s*;", re.DOTALL)
_STAMP = re.compile(
    r"^nginx: |^\d{4}/\d\d/\d\d [\d:]{8} (?=\[)|(?<=\]) \d+#\d+:(?= )"
)  # what -e stderr puts before words
_SERIOUS = re.compile(r"\[(?:emerg|alert|crit|error)\]")


@dataclass(frozen=True, slots=True)
class _Include:
    line: int
    argument: str
    files: tuple[str, ...]


class Shadow:
    """One check. Made by `prepare`; `write` it, run nginx with `main`, and `explain` what it said."""

    def __init__(self, main: str, files: GuestFiles, candidate: Rendered) -> None:
        """Read the owner's files. Raises: CheckFailed when his main file can't be read."""
        self._original = main
        self._files = files
        self._candidate = candidate
        try:
            self._texts = nginx_config.gather(main, files.read, files.names)
        except OSError as error:
            raise CheckFailed(f"{main}: {error.strerror or error}; it is named by balancer.config") from error
        self._includes = {path: self._includes_in(path) for path in self._texts if files.name_of(path) is None}
        self._leading = self._find_leading()
        self._copies: dict[str, str] = {}
        self.main = main

    @property
    def included(self) -> frozenset[str]:
        """Which of our files the owner includes."""
        names = (
            self._files.name_of(file) for found in self._includes.values() for each in found for file in each.files
        )
        return frozenset(name for name in names if name is not None)

    def write(self, staging: Path, seen: str) -> None:
        """Write everything below `staging`, which nginx knows as `seen`. Raises: OSError, CheckFailed."""
        self._copies = {f"{seen}/ours/{file.name}": file.name for file in self._candidate.files}
        _write_all(staging / "ours", {file.name: file.content for file in self._candidate.files})
        if not self._leading:
            return
        numbers = {path: f"{number}.conf" for number, path in enumerate(sorted(self._leading - {self._original}))}
        places = {path: f"{seen}/files/{name}" for path, name in numbers.items()}
        contents = {path: nginx_config.encode(self._rewritten(path, places, seen)) for path in self._leading}
        _write_all(staging / "files", {name: contents[path] for path, name in numbers.items()})
        root = staging / "root"
        self._mirror(root)
        _write(root / self._original.lstrip("/"), contents[self._original])
        self.main = f"{seen}/root{self._original}"
        self._copies |= {place: path for path, place in places.items()}
        self._copies |= {f"{seen}/ours/": f"{self._files.output}/current/", f"{seen}/root": ""}

    def explain(self, output: str) -> str:
        """The checker's words about the real files, each with the line that it is about."""
        for copy in sorted(self._copies, key=len, reverse=True):
            output = output.replace(copy, self._copies[copy])
        lines = [_STAMP.sub("", line) for line in output.splitlines()]
        said = [line for line in lines if line and not line.startswith("configuration file ")]
        serious = [line for line in said if _SERIOUS.search(line)] or said
        return "; ".join(self._with_line(line) for line in serious)

    # -- includes ----------------------------------------------------------------------------------------------

    def _includes_in(self, path: str) -> tuple[_Include, ...]:
        return tuple(
            _Include(line, argument, tuple(self._expanded(argument)))
            for line, argument in nginx_config.includes_in(self._texts[path])
        )

    def _expanded(self, argument: str) -> list[str]:
        return nginx_config.expand(nginx_config.full_path(argument, self._original), self._files.names)

    def _find_leading(self) -> frozenset[str]:
        """The owner's files from which ours are reached, and the main file if there are any."""
        found: set[str] = set()
        while True:
            more = {
                path
                for path, includes in self._includes.items()
                if path not in found and any(self._leads(file, found) for each in includes for file in each.files)
            }
            if not more:
                return frozenset(found)
            found |= more

    def _leads(self, file: str, found: set[str] | frozenset[str]) -> bool:
        return file in found or self._files.name_of(file) is not None

    def _rewritten(self, path: str, places: Mapping[str, str], seen: str) -> str:
        """The text with includes that lead to ours naming the copies, in as many lines."""
        text, position = self._texts[path], 0
        parts = []
        for each in self._includes[path]:
            if not any(self._leads(file, self._leading) for file in each.files):
                continue
            match = _find(text, each, position)
            if match is None:
                raise CheckFailed(
                    f"{path}:{each.line}: this include could not be followed; write it on a line of its own"
                )
            instead = "; ".join(f"include {_quoted(self._place(file, places, seen))}" for file in each.files)
            parts += [text[position : match.start()], instead, "\n" * match[0].count("\n"), ";"]
            position = match.end()
        return "".join([*parts, text[position:]])

    def _place(self, file: str, places: Mapping[str, str], seen: str) -> str:
        name = self._files.name_of(file)
        return f"{seen}/ours/{name}" if name is not None else places.get(file, file)

    # -- what is beside the main file --------------------------------------------------------------------------

    def _mirror(self, root: Path) -> None:
        """Symlinks to everything beside the main file; where somebody goes up from there, up to the top."""
        here = posixpath.dirname(self._original)
        make_directory(root / here.lstrip("/"))
        self._link_entries(root, here, posixpath.basename(self._original))
        while here != "/" and any("../" in text for text in self._texts.values()):
            here, name = posixpath.split(here)
            self._link_entries(root, here, name)

    def _link_entries(self, root: Path, directory: str, but: str) -> None:
        for name in self._files.names(directory):
            if name != but:
                (root / directory.lstrip("/") / name).symlink_to(posixpath.join(directory, name))

    # -- words -------------------------------------------------------------------------------------------------

    def _with_line(self, said: str) -> str:
        match = _PLACE.match(said)
        text = "" if match is None else self._text(match[1])
        lines, number = text.split("\n"), int(match[2]) if match is not None else 0
        shown = lines[number - 1].strip() if 1 <= number <= len(lines) else ""
        return f"{said} (`{shown}`)" if shown else said

    def _text(self, path: str) -> str:
        ours = {file.name: file for file in self._candidate.files}.get(path)
        if ours is not None:
            return "" if ours.secret else nginx_config.decode(ours.content)
        return self._texts.get(path, "")


def _find(text: str, include: _Include, position: int) -> re.Match[str] | None:
    """The include directive in the text, at its line and after what was rewritten already."""
    start = max(position, _start_of_line(text, include.line))
    for match in _INCLUDE.finditer(text, start):
        if text.count("\n", 0, match.start()) + 1 != include.line:
            return None
        if _unquoted(match[1]) == include.argument:
            return match
    return None


def _start_of_line(text: str, line: int) -> int:
    position = 0
    for _ in range(line - 1):
        position = text.index("\n", position) + 1
    return position


def _unquoted(argument: str) -> str:
    """As crossplane does."""
    quote = argument[0]
    return argument[1:-1].replace(f"\\{quote}", quote) if quote in "\"'" else argument


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_all(directory: Path, contents: Mapping[str, bytes]) -> None:
    """In a container nginx may be another user, whatever the umask is here."""
    make_directory(directory)
    for name, content in contents.items():
        _write(directory / name, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)
