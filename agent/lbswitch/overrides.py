"""The operator's templates beside the stock ones: which is used, from which stock it was made, how they differ.

A copy that was made with `lbswitch templates copy` begins with a Jinja comment that names the stock template and its
hash; nothing of it gets into what is rendered.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lbswitch import __version__, configfile, files
from lbswitch.balancers.templating import STOCK_TEMPLATES
from lbswitch.core import defaults
from lbswitch.errors import InvalidRequest, NotAllowed

KINDS = ("nginx", "haproxy")
_SUFFIX = ".j2"
_MARK = re.compile(r"\A\{# lbswitch (?P<version>\S+): a copy of (?P<name>\S+), (?P<digest>[0-9a-f]{12}) #\}\n?")


class State(StrEnum):
    """What a template is."""

    STOCK = "stock"  # comes with lbswitch and is used
    OVERRIDDEN = "overridden"  # the operator's is used instead
    OWN = "own"  # the operator's, and there is no stock one: used when another template includes it


class Base(StrEnum):
    """Which stock template an override was made from."""

    CURRENT = "current"
    OLDER = "older"  # or newer: another than the one that is installed
    UNKNOWN = "unknown"  # it was not made with `templates copy`


@dataclass(frozen=True, slots=True)
class Template:
    """One template of a kind. `made_with` is the version of lbswitch that an override was copied from."""

    kind: str
    file: str
    stock: Path | None
    override: Path | None
    base: Base | None = None
    made_with: str | None = None

    @property
    def name(self) -> str:
        """Such as `nginx/nginx.conf.j2`."""
        return f"{self.kind}/{self.file}"

    @property
    def state(self) -> State:
        """Whose is used."""
        if self.override is None:
            return State.STOCK
        return State.OWN if self.stock is None else State.OVERRIDDEN

    @property
    def path(self) -> Path:
        """The file that is used."""
        path = self.override or self.stock
        assert path is not None  # noqa: S101 - one of the two is there
        return path

    def text(self) -> str:
        """What is used. Raises: NotAllowed, InvalidRequest."""
        return read(self.path)


@dataclass(frozen=True, slots=True)
class Collection:
    """All templates of these kinds, and the directory of the operator's, if there is one."""

    templates: tuple[Template, ...]
    directory: Path | None

    def find(self, wanted: str) -> Template:
        """By `nginx/nginx.conf.j2`, `nginx.conf.j2` or `nginx.conf`. Raises: InvalidRequest."""
        names = (wanted, f"{wanted}{_SUFFIX}")
        found = [one for one in self.templates if one.name in names or one.file in names]
        if len(found) == 1:
            return found[0]
        known = ", ".join(one.name for one in found or self.templates)
        if found:
            raise InvalidRequest(f"{wanted!r} is the name of several templates, say which: {known}")
        close = difflib.get_close_matches(wanted, [text for one in self.templates for text in (one.name, one.file)], 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidRequest(f"there is no template {wanted!r}{meant} There are: {known}")


def of(config_path: Path, kind: str | None) -> Collection:
    """Those of the configuration's balancer, or of `kind`; without a configuration file those of both.

    Only the usual file may be missing. Raises: ConfigError.
    """
    if str(config_path) == defaults.CONFIG and not config_path.exists():
        return collection((kind,) if kind else KINDS, None)
    settings = configfile.load(config_path).balancer
    return collection((kind or str(settings.kind),), None if settings.templates is None else Path(settings.templates))


def collection(kinds: tuple[str, ...], directory: Path | None) -> Collection:
    """Stock templates of these kinds, with overrides below `directory`."""
    return Collection(tuple(one for kind in kinds for one in _of_kind(kind, directory)), directory)


def _of_kind(kind: str, directory: Path | None) -> Iterator[Template]:
    stock = {path.name: path for path in (STOCK_TEMPLATES / kind).glob(f"*{_SUFFIX}")}
    ours: dict[str, Path] = {}
    for place in () if directory is None else (directory, directory / kind):  # the later one is looked at first
        ours |= {path.name: path for path in place.glob(f"*{_SUFFIX}") if path.is_file()}
    foreign = {path.name for other in KINDS if other != kind for path in (STOCK_TEMPLATES / other).glob(f"*{_SUFFIX}")}
    for name in sorted(stock.keys() | (ours.keys() - foreign)):
        override = ours.get(name)
        base, version = _base(stock.get(name), override)
        yield Template(kind, name, stock.get(name), override, base, version)


def _base(stock: Path | None, override: Path | None) -> tuple[Base | None, str | None]:
    if stock is None or override is None:
        return None, None
    try:
        match = _MARK.match(override.read_text())
    except (OSError, UnicodeDecodeError):
        return Base.UNKNOWN, None
    if match is None:
        return Base.UNKNOWN, None
    return (Base.CURRENT if match["digest"] == _digest(read(stock)) else Base.OLDER), match["version"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: Path) -> str:
    """The text of a template. Raises: NotAllowed, InvalidRequest."""
    try:
        return path.read_text()
    except PermissionError as error:
        raise NotAllowed(f"{path} may not be read by this user: {error.strerror}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} can't be read: {error}") from error


def diff(template: Template) -> str:
    """The override against the stock template, unified; empty without an override, and for one that is a copy."""
    if template.stock is None or template.override is None:
        return ""
    stock, ours = read(template.stock), _MARK.sub("", read(template.override))
    before, after = stock.splitlines(keepends=True), ours.splitlines(keepends=True)
    return "".join(_closed(difflib.unified_diff(before, after, f"stock/{template.name}", str(template.override))))


def _closed(lines: Iterator[str]) -> Iterator[str]:
    """As diff(1) says it when the last line of a file has no end."""
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def copy(template: Template, directory: Path) -> Path:
    """Begin an override in `directory/KIND/`. Raises: InvalidRequest when there is one, NotAllowed."""
    if template.override is not None or template.stock is None:
        raise InvalidRequest(f"{template.name} has an override already, which stays as it is: {template.override}")
    text = read(template.stock)
    mark = f"{{# lbswitch {__version__}: a copy of {template.name}, {_digest(text)} #}}\n"
    path = directory / template.kind / template.file
    if path.exists():
        raise InvalidRequest(f"{path} is there already and stays as it is")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_file(path, (mark + text).encode(), 0o644)
    except OSError as error:
        raise NotAllowed(f"{path} can't be written: {error.strerror}; nothing was changed") from error
    return path
