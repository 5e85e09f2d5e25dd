"""YAML as a tree that knows the line of everything, so that an error can say where it is.

Plain scalars mean what YAML 1.2 says, without its octal and hexadecimal forms: only `true` and `false`, numbers and
`null` are not text, so `on`, `12:30`, `0o17` and dates stay what was written. Aliases share nodes, so that what they
would expand to is bounded before anybody expands it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from lbswitch.errors import Problem

Scalar = str | int | float | bool | None

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_VALUES = 1_000_000
_DEEPEST = 40
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NUMBER_START = frozenset("0123456789+-.")
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True)
class Node:
    """A scalar, a list of nodes or a mapping of entries; `text` is a scalar as it was written."""

    line: int
    value: Scalar | list[Node] | dict[str, Entry]
    text: str = ""
    size: int = 1
    depth: int = 1
    is_open: bool = False

    def plain(self) -> Any:
        """The same as plain lists, dicts and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Entry(NamedTuple):
    """A value of a mapping, with the line of its key."""

    line: int
    node: Node


def locate(entry: Entry, location: Sequence[str | int]) -> tuple[Node, int]:
    """What is at the location, or the innermost around it that exists, and the line to name for it."""
    line = entry.line
    for part in location:
        child = _child(entry.node, part)
        if child is None:
            break
        entry, line = child, child.line if isinstance(child.node.value, dict | list) else child.node.line
    return entry.node, line


def _child(node: Node, part: str | int) -> Entry | None:
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return Entry(node.value[part].line, node.value[part])
    return None


class NotYaml(Exception):
    """The text can't be read as one YAML document; `problem` says where and why."""

    def __init__(self, message: str, line: int) -> None:
        """Say why, and the line it was noticed at."""
        super().__init__(message)
        self.problem = Problem(message, line=line)


def read_tree(text: str) -> tuple[Node, list[Problem]]:
    """The document and what is wrong with it as YAML (duplicate keys, tags) but does not keep it from being read.

    Raises: NotYaml.
    """
    text = text.removeprefix("\ufeff")
    _refuse_unprintable(text)
    composer = _Composer()
    for event in _events(text):
        composer.add(event)
    if composer.root is None:
        raise NotYaml("is empty", 0)
    return composer.root, composer.problems


def _refuse_unprintable(text: str) -> None:
    found = _UNPRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise NotYaml(f"holds the character U+{ord(found[0]):04X}, which may not be in a YAML file", line)


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise NotYaml(_in_words(error, text, line), line) from error
    except yaml.YAMLError as error:
        raise NotYaml(f"is not valid YAML: {error}", 0) from error


def _in_words(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    words = f"is not valid YAML: {error.problem}"
    if error.context:
        start = f" that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
        words += f" ({error.context}{start})"
    lines = text.splitlines()
    indent = re.match(r"\s*", lines[line - 1]) if 0 < line <= len(lines) else None
    if "tab" in str(error.problem) or "cannot start any token" in str(error.problem):
        words += "; indent with spaces, a tab can't do it" if indent and "\t" in indent[0] else ""
    return words


class _Key(NamedTuple):
    text: str
    line: int
    is_merge: bool
    is_kept: bool


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Node
    key: _Key | None = None
    merges: list[Node] = field(default_factory=list)
    merge_line: int = 0


class _Composer:
    """Builds the tree from parser events, without recursion."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._documents = 0
        self._values = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self._scalar,
            yaml.MappingStartEvent: self._start,
            yaml.SequenceStartEvent: self._start,
            yaml.MappingEndEvent: self._end,
            yaml.SequenceEndEvent: self._end,
            yaml.AliasEvent: self._alias,
            yaml.DocumentStartEvent: self._document,
        }

    def add(self, event: Any) -> None:
        """Take the next event."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            raise NotYaml("a second document begins (---): the file must hold exactly one", _line_of(event))

    def _scalar(self, event: Any) -> None:
        line, text = _line_of(event), event.value
        is_plain = event.implicit[0] and event.tag is None
        self._check_tag(event, line)
        node = Node(line, _resolve(text) if is_plain else text, text)
        self._anchor(event, node)
        self._put(node, is_merge=is_plain and text == "<<")

    def _start(self, event: Any) -> None:
        if len(self._stack) >= _DEEPEST:
            raise NotYaml(f"is nested deeper than {_DEEPEST} levels", _line_of(event))
        node = Node(_line_of(event), {} if isinstance(event, yaml.MappingStartEvent) else [], is_open=True)
        self._check_tag(event, node.line)
        self._anchor(event, node)
        self._stack.append(_Open(node))

    def _end(self, _: Any) -> None:
        closed = self._stack.pop()
        self._merge(closed)
        children = _children(closed.node)
        closed.node.size = 1 + sum(child.size for child in children)
        closed.node.depth = 1 + max((child.depth for child in children), default=0)
        closed.node.is_open = False
        self._put(closed.node)

    def _alias(self, event: Any) -> None:
        line, node = _line_of(event), self._anchors.get(event.anchor)
        if node is None:
            raise NotYaml(f"*{event.anchor} refers to an anchor that is not defined above it", line)
        if node.is_open:
            raise NotYaml(f"*{event.anchor} refers to the value that it is part of", line)
        if len(self._stack) + node.depth > _DEEPEST:
            raise NotYaml(f"*{event.anchor} makes it nested deeper than {_DEEPEST} levels", line)
        self._count(node.size, line)
        self._put(node, line=line)

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > _MOST_VALUES:
            raise NotYaml(f"holds more than {_MOST_VALUES} values, counting what its aliases stand for", line)

    def _anchor(self, event: Any, node: Node) -> None:
        self._count(1, node.line)
        if event.anchor is not None:
            self._anchors[event.anchor] = node

    def _check_tag(self, event: Any, line: int) -> None:
        is_text = isinstance(event, yaml.ScalarEvent) and event.tag in _TEXT_TAGS
        if event.tag is not None and not is_text:
            self._problem(f"has the tag {event.tag}, and tags are not supported", line)

    def _put(self, node: Node, *, is_merge: bool = False, line: int | None = None) -> None:
        """Add a finished node to what encloses it; `line` is where an alias stands."""
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif parent.key is None:
            parent.key = self._key(parent, node, line or node.line, is_merge)
        else:
            self._value(parent, parent.key, node)
            parent.key = None

    def _key(self, parent: _Open, node: Node, line: int, is_merge: bool) -> _Key:
        if isinstance(node.value, dict | list):
            self._problem(
                "a key must be a word; a list or mapping is none (text that begins with { or [ needs quotes)", line
            )
            return _Key("", line, is_merge=False, is_kept=False)
        assert isinstance(parent.node.value, dict)  # noqa: S101 - narrows the type
        before = parent.node.value[node.text].line if node.text in parent.node.value else 0
        if is_merge and parent.merge_line:
            before = parent.merge_line
        if before:
            where = f"in line {line}" if before == line else f"in line {before} and in line {line}"
            self._problem(f"the key is there twice, {where}", line, node.text)
        return _Key(node.text, line, is_merge, is_kept=not before)

    def _value(self, parent: _Open, key: _Key, node: Node) -> None:
        assert isinstance(parent.node.value, dict)  # noqa: S101 - narrows the type
        if key.is_kept and key.is_merge:
            parent.merge_line = key.line
            parent.merges = node.value if isinstance(node.value, list) else [node]
        elif key.is_kept:
            parent.node.value[key.text] = Entry(key.line, node)

    def _merge(self, closed: _Open) -> None:
        """Add what `<<` brings; what is written in the mapping itself comes first, then the first of the merged."""
        for source in closed.merges:
            if not isinstance(source.value, dict) or not isinstance(closed.node.value, dict):
                self._problem("<< takes a mapping or a list of mappings, such as <<: *name", closed.merge_line)
                continue
            self._count(source.size, closed.merge_line)
            for key, entry in source.value.items():
                closed.node.value.setdefault(key, entry)

    def _problem(self, message: str, line: int, key: str | None = None) -> None:
        words = [_word(parent) for parent in self._stack]
        if key is not None:
            words[-1:] = [key]
        self.problems.append(Problem(message, ".".join(word for word in words if word), line))


def _word(parent: _Open) -> str:
    """The part of a dotted path that an open list or mapping stands for."""
    if isinstance(parent.node.value, list):
        return str(len(parent.node.value))
    return "" if parent.key is None else parent.key.text


def _children(node: Node) -> list[Node]:
    if isinstance(node.value, dict):
        return [entry.node for entry in node.value.values()]
    return node.value if isinstance(node.value, list) else []


def _line_of(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _resolve(text: str) -> Scalar:
    """What a plain scalar means; numbers that are whole are ints, however they are written."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_START:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        return text
    number = float(text)
    return int(number) if abs(number) < 1e15 and number.is_integer() else number
