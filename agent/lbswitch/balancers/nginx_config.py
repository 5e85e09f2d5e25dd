"""An nginx configuration as nginx reads it: files with their includes in place, parsed with crossplane.

    texts = gather("/etc/nginx/nginx.conf", read, names)     from the files, whether nginx likes them or not
    texts = dumped(output)                                   or from what `nginx -T` printed
    config = load(texts, "/etc/nginx/nginx.conf")
    for place in config.find("server"):
        cache = config.effective("open_file_cache", place.inside)

Directives that nginx does not know here are read all the same; whether a configuration is valid, `nginx -t` says.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Read = Callable[[str], bytes]
"""The bytes of a file by the path that nginx uses. Raises: OSError."""
Names = Callable[[str], list[str]]
"""The entries of a directory by the path that nginx uses. Raises: OSError."""

_MAGIC = re.compile(r"[*?[]")  # what ngx_conf_include takes for a pattern
_DUMPED = re.compile(r"^# configuration file (/.*):$", re.MULTILINE)
_DEEPEST = 64  # includes in includes; nginx itself stops when it has no more files to open


@dataclass(frozen=True, slots=True, eq=False)
class Directive:
    """One directive; `args` are unquoted, the parentheses of an `if` are left out. Compared by identity.

    `block` holds what is between its braces, None when it has none. An `include` has `files`, what it matches in the
    order in which nginx reads it (of an exact path also a file that is not there), and in `block` what these hold.
    """

    name: str
    args: tuple[str, ...]
    file: str
    line: int
    block: tuple[Directive, ...] | None = field(default=None, repr=False)
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *self.args))

    @property
    def where(self) -> str:
        """Such as `/etc/nginx/nginx.conf:12`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Place:
    """A directive and the blocks around it, outermost first; includes are no blocks."""

    directive: Directive
    around: tuple[Directive, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the blocks around it, such as `("http", "server")`; `()` at the top."""
        return tuple(block.name for block in self.around)

    @property
    def inside(self) -> tuple[Directive, ...]:
        """Those around what is in the block of this directive."""
        return (*self.around, self.directive)


@dataclass(frozen=True, slots=True)
class NginxConfig:
    """All files of a configuration. `problems` are syntax errors, as `FILE:LINE: WORDS`."""

    main: str
    texts: Mapping[str, str]
    top: tuple[Directive, ...]
    problems: tuple[str, ...]

    def walk(self) -> Iterator[Place]:
        """Every directive in the order of nginx; one in a file that is included twice comes twice."""
        return _walk(self.top, ())

    def find(self, name: str) -> Iterator[Place]:
        """Every directive of that name."""
        return (place for place in self.walk() if place.directive.name == name)

    def includes(self, path: str) -> list[Place]:
        """The include directives that name or match this file."""
        return [place for place in self.find("include") if path in place.directive.files]

    def effective(self, name: str, around: tuple[Directive, ...]) -> Directive | None:
        """What nginx inherits to the innermost of these blocks: its own directive, or that of the next one outward."""
        return next(iter(self.effective_all(name, around)), None)

    def effective_all(self, name: str, around: tuple[Directive, ...]) -> list[Directive]:
        """The same of a directive that may be there several times: all those of the innermost block that has any."""
        for inside in (*(block.block or () for block in reversed(around)), self.top):
            found = [directive for directive in _flat(inside) if directive.name == name]
            if found:
                return found
        return []


def load(texts: Mapping[str, str], main: str) -> NginxConfig:
    """Put the parsed files together, beginning with `main`; the keys are paths as nginx uses them."""
    problems: dict[str, None] = {}
    top = _Loader(texts, main, problems).file(main, ())
    return NginxConfig(main, texts, top, tuple(problems))


def gather(main: str, read: Read, names: Names) -> dict[str, str]:
    """The texts of `main` and of everything that it includes; files that can't be read are left out.

    Raises: OSError when `main` itself can't be read.
    """
    texts = {main: decode(read(main))}
    waiting = [main]
    while waiting:
        for path in _included(texts[waiting.pop()], main, names):
            if path in texts:
                continue
            try:
                texts[path] = decode(read(path))
            except OSError:
                continue
            waiting.append(path)
    return texts


def dumped(output: str) -> dict[str, str]:
    """The texts in the output of `nginx -T`."""
    parts = _DUMPED.split(output)[1:]
    return {
        path: text.removeprefix("\n").removesuffix("\n") for path, text in zip(parts[::2], parts[1::2], strict=True)
    }


def full_path(argument: str, main: str) -> str:
    """A path of a configuration file (include, ssl_certificate, ...): relative ones start beside `main`."""
    return posixpath.join(posixpath.dirname(main), argument)


def is_pattern(argument: str) -> bool:
    """Whether an include takes this for a pattern."""
    return _MAGIC.search(argument) is not None


def expand(pattern: str, names: Names) -> list[str]:
    """What an absolute pattern matches, in the order of glob(3) in the C locale; an exact path gives itself."""
    if not is_pattern(pattern):
        return [pattern]
    found = [""]
    for part in pattern.split("/")[1:]:
        found = [f"{directory}/{name}" for directory in found for name in _matching(directory or "/", part, names)]
    return sorted(found, key=os.fsencode)


def decode(content: bytes) -> str:
    """Bytes as text that `encode` turns into the same bytes."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """What `decode` was given."""
    return text.encode("utf-8", "surrogateescape")


def _matching(directory: str, part: str, names: Names) -> list[str]:
    if not is_pattern(part):
        return [part]
    try:
        entries = names(directory)
    except OSError:
        return []
    return [name for name in entries if _matches(name, part)]


def _matches(name: str, part: str) -> bool:
    """As glob(3): what begins with a dot is matched by what begins with a dot."""
    return fnmatch.fnmatchcase(name, part) and (not name.startswith(".") or part.startswith("."))


def _match_path(path: str, pattern: str) -> bool:
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(_matches, parts, wanted))


def includes_in(text: str) -> list[tuple[int, str]]:
    """Line and argument of every include directive in one file, in their order."""
    if "include" not in text:
        return []
    parsed, _ = _parse(text)
    return [(line, args[0]) for name, args, line in _flat_parsed(parsed) if name == "include" and args]


def _included(text: str, main: str, names: Names) -> Iterator[str]:
    for _, argument in includes_in(text):
        yield from expand(full_path(argument, main), names)


def _flat_parsed(statements: Any) -> Iterator[tuple[str, list[str], int]]:
    for statement in statements:
        yield statement["directive"], statement["args"], statement["line"]
        yield from _flat_parsed(statement.get("block", ()))


class _Loader:
    """Makes directives of what crossplane gives, with what includes match in their place."""

    def __init__(self, texts: Mapping[str, str], main: str, problems: dict[str, None]) -> None:
        self._texts, self._main, self._problems = texts, main, problems

    def file(self, path: str, open_files: tuple[str, ...]) -> tuple[Directive, ...]:
        text = self._texts.get(path)
        if text is None or path in open_files or len(open_files) > _DEEPEST:
            return ()
        parsed, errors = _parse(text)
        self._problems.update(dict.fromkeys(f"{path}:{line}: {words}" for line, words in errors))
        return self._block(parsed, (*open_files, path))

    def _block(self, statements: Any, open_files: tuple[str, ...]) -> tuple[Directive, ...]:
        return tuple(self._directive(statement, open_files) for statement in statements)

    def _directive(self, statement: Any, open_files: tuple[str, ...]) -> Directive:
        name, args, line = statement["directive"], tuple(statement["args"]), statement["line"]
        here = open_files[-1]
        if name == "include" and args:
            files = self._files(full_path(args[0], self._main))
            inside = tuple(directive for path in files for directive in self.file(path, open_files))
            return Directive(name, args, here, line, inside, files)
        block = self._block(statement["block"], open_files) if "block" in statement else None
        return Directive(name, args, here, line, block)

    def _files(self, pattern: str) -> tuple[str, ...]:
        if not is_pattern(pattern):
            return (pattern,)
        return tuple(sorted((path for path in self._texts if _match_path(path, pattern)), key=os.fsencode))


def _walk(directives: tuple[Directive, ...], around: tuple[Directive, ...]) -> Iterator[Place]:
    for directive in directives:
        yield Place(directive, around)
        inside = around if directive.name == "include" else (*around, directive)
        yield from _walk(directive.block or (), inside)


def _flat(directives: tuple[Directive, ...]) -> Iterator[Directive]:
    """The directives of one level, those of included files too."""
    for directive in directives:
        yield directive
        if directive.name == "include":
            yield from _flat(directive.block or ())


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[Any, tuple[tuple[int, str], ...]]:
    """Crossplane's statements of one text, and its errors as (line, words). Not to be changed: they are shared."""
    import crossplane  # type: ignore[import-untyped]

    descriptor = os.memfd_create("nginx.conf")  # it reads files only
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(encode(text))
        path = f"/proc/self/fd/{descriptor}"
        payload = crossplane.parse(path, single=True, check_ctx=False, check_args=False)
    finally:
        os.close(descriptor)
    errors = tuple((int(error["line"] or 0), _words(error["error"], path)) for error in payload["errors"])
    return payload["config"][0]["parsed"], errors


def _words(error: str, path: str) -> str:
    return error.partition(f" in {path}")[0] or "ends in the middle of a directive"
