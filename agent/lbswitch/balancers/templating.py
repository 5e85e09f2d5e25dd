"""Render the balancer's configuration from Jinja templates, strictly."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.utils import missing

from lbswitch.errors import RenderFailed

STOCK_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_UNKNOWN = re.compile(r"No (filter|test) named '([^']*)'")
_LONGEST_LINE = 120


def refuse_control_characters(value: object) -> object:
    """Jinja finalizer: no expression may put a line break or another control character into a file.

    Raises: ValueError.
    """
    text = str(value)
    found = _CONTROL.search(text)
    if found:
        raise ValueError(f"an expression gave {text!r}, which holds the control character {found[0]!r}")
    return value


class _NotThere(jinja2.UndefinedError):
    """A template used a variable, or an attribute of one, that there is not. `of` is `missing` for a variable."""

    def __init__(self, of: Any, name: str, message: str | None = None) -> None:
        super().__init__(message)
        self.of = of
        self.name = name


class _Undefined(jinja2.StrictUndefined):
    """Like Jinja's strict one, and remembers what was asked of what."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: Callable[..., Exception] = _NotThere,  # noqa: ARG002 - Jinja's signature
    ) -> None:
        super().__init__(hint, obj, name, partial(_NotThere, obj, str(name)))  # type: ignore[arg-type]


class Templates:
    """The templates of one balancer kind; those in `override` come before the stock ones."""

    def __init__(self, kind: str, override: Path | None = None) -> None:
        """Look in `override` (as `override/KIND/NAME` or `override/NAME`), then in the wheel."""
        self._kind = kind
        self.directories = (
            *((override / kind, override) if override is not None else ()),
            STOCK_TEMPLATES / kind,
        )
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.directories),
            undefined=_Undefined,
            finalize=refuse_control_characters,
            autoescape=False,  # noqa: S701 - not HTML; values are validated where they are read
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._compiled_from: object = None

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Path, time and size of every template: changes when an edit could change what is rendered.

        Of the stock ones only their directory's: nobody edits them, they are replaced by an upgrade.
        """
        own = tuple(stamp for directory in self.directories[:-1] for stamp in sorted(_stamps(directory)))
        return (*own, *_stamp(STOCK_TEMPLATES / self._kind))

    def render(self, name: str, variables: Mapping[str, Any]) -> bytes:
        """Render one template. Raises: RenderFailed, naming file, line and variable."""
        self._forget_when_changed()
        try:
            return self._environment.get_template(name).render(variables).encode()
        except jinja2.TemplateSyntaxError as error:  # in the template itself or in one that it includes
            place = f"{error.filename or name}:{error.lineno}"
            said = f"{str(error.message).rstrip('.')}{self._unknown_helper(error)}"
            raise RenderFailed(f"{place}: {said}{_shown(place)}{_included(_places(error))}") from error
        except UnicodeDecodeError as error:
            raise RenderFailed(f"{self._undecodable(name)}: is not UTF-8: {error.reason}; save it as UTF-8") from error
        except RecursionError as error:
            place = (_places(error) or [name])[-1]
            raise RenderFailed(f"{place}: the template includes itself, or calls itself without end") from error
        except Exception as error:  # a template can raise anything; all of it is the template's fault
            places = _places(error)
            place = places[-1] if places else name
            said = self._explained(error, place, variables)
            raise RenderFailed(f"{place}: {said}{_shown(place)}{_included(places[:-1])}") from error

    def _forget_when_changed(self) -> None:
        """Jinja looks again at files it has compiled, but not for one that now comes before them."""
        found = self.fingerprint()
        if self._compiled_from != found and self._environment.cache is not None:
            self._environment.cache.clear()
        self._compiled_from = found

    def _explained(self, error: Exception, place: str, variables: Mapping[str, Any]) -> str:
        """What went wrong, with the name of the variable and what was probably meant."""
        if isinstance(error, _NotThere):
            return self._not_there(error, place, variables)
        if isinstance(error, jinja2.TemplateNotFound):
            looked = ", ".join(str(directory) for directory in self.directories)
            return f"template {error.name} was not found in {looked}{_meant(str(error.name), self._names())}"
        if isinstance(error, jinja2.TemplateRuntimeError):
            return f"{str(error).rstrip('.')}{self._unknown_helper(error)}"
        return str(error) or type(error).__name__

    def _not_there(self, error: _NotThere, place: str, variables: Mapping[str, Any]) -> str:
        tree = self._tree(place)
        if error.of is missing:
            known = {*variables, *_assigned(tree)}
            return f"there is no variable {error.name!r}{_meant(error.name, known) or _listed('there are', variables)}"
        whole = _expression(tree, place, error.name)
        of = whole.rpartition(".")[0] if whole else type(error.of).__name__
        has = _attributes(error.of)
        where = f"{whole}: " if whole else ""
        return f"{where}{of} has no {error.name!r}{_meant(error.name, has) or _listed('it has', has)}"

    def _unknown_helper(self, error: Exception) -> str:
        """Which filter or test was probably meant."""
        match = _UNKNOWN.search(str(error))
        if match is None:
            return ""
        return _meant(match[2], self._environment.filters if match[1] == "filter" else self._environment.tests)

    def _names(self) -> Iterator[str]:
        return (path.name for directory in self.directories for path in directory.glob("*.j2"))

    def _undecodable(self, name: str) -> str:
        """The first template that is not UTF-8, and where: Jinja does not say."""
        for path in (path for directory in self.directories for path in sorted(directory.glob("*.j2"))):
            content = path.read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                return f"{path}:{line}"
        return name

    def _tree(self, place: str) -> nodes.Template | None:
        source = _read(place.rpartition(":")[0])
        return None if source is None else self._environment.parse(source)


def _stamp(directory: Path) -> Iterator[tuple[str, int, int]]:
    with contextlib.suppress(OSError):
        status = directory.stat()
        yield str(directory), status.st_mtime_ns, status.st_ino


def _stamps(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Path, time and size of the templates in it; what can't be looked at is not there."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.endswith(".j2"):
                    status = entry.stat()
                    yield entry.path, status.st_mtime_ns, status.st_size


def _places(error: Exception) -> list[str]:
    """File and line of every template that was being rendered, the innermost last."""
    return [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(".j2")
    ]


def _included(places: list[str]) -> str:
    """By whom; several lines of one file are one."""
    files = {place.rpartition(":")[0]: place for place in places}
    return "".join(f", included from {place}" for place in reversed(list(files.values())))


def _shown(place: str) -> str:
    """The line itself, in parentheses."""
    path, _, number = place.rpartition(":")
    lines = (_read(path) or "").split("\n") if number.isdecimal() else []
    index = int(number) - 1 if lines else 0
    line = lines[index].strip() if 0 <= index < len(lines) else ""
    if not line.isprintable() or not line:
        return ""
    return f" (`{line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + '...'}`)"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, sorted(set(known)), n=2)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _listed(what: str, known: Iterable[str]) -> str:
    return f"; {what}: {', '.join(sorted(known)) or 'none'}"


def _attributes(value: object) -> list[str]:
    """What a template can ask of it: keys, or public attributes."""
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    kind = type(value)
    return [name for name in dir(value) if not name.startswith("_") and not callable(getattr(kind, name, None))]


def _assigned(tree: nodes.Template | None) -> Iterator[str]:
    """Names that the template makes itself with `set` and `for`."""
    if tree is not None:
        yield from (node.name for node in tree.find_all(nodes.Name) if node.ctx == "store")


def _expression(tree: nodes.Template | None, place: str, attribute: str) -> str:
    """`nginx.worker` when that is the only expression there that asks for this attribute; else empty."""
    if tree is None:
        return ""
    line = int(place.rpartition(":")[2])
    asking = [node for node in tree.find_all(nodes.Getattr) if node.attr == attribute]
    here = [node for node in asking if node.lineno == line] or asking
    found = {name for node in here if (name := _dotted(node))}
    return found.pop() if len(found) == 1 else ""


def _dotted(node: nodes.Node) -> str:
    """The expression as it was written, if it holds names and dots alone."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        base = _dotted(node.node)
        return f"{base}.{node.attr}" if base else ""
    return ""
