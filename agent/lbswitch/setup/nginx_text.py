"""Where the words of an nginx configuration are, byte by byte: crossplane knows lines, an edit needs places.

The rules are those of ngx_conf_read_token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LUA = re.compile(rb"""[{}]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|--[^\n]*""", re.DOTALL)
_BLANK = b" \t\r\n"
_END_WORD = b" \t\r\n;{"


@dataclass(frozen=True, slots=True)
class Word:
    """One word: `text` without its quotes, `start` and `end` with them (byte offsets)."""

    text: str
    start: int
    end: int
    line: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A directive up to its `;` or `{`; `end` is the offset after that."""

    words: tuple[Word, ...]
    end: int
    opens: bool

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return self.words[0].line

    @property
    def name(self) -> str:
        """The directive."""
        return self.words[0].text


def statements(content: bytes) -> Iterator[Statement]:
    """All directives in the order of the file, blocks flattened."""
    words: list[Word] = []
    place, line = 0, 1
    while place < len(content):
        char = content[place : place + 1]
        if char in (b";", b"{", b"}"):
            place += 1
            if words and char != b"}":
                yield Statement(tuple(words), place, char == b"{")
                if char == b"{" and words[0].text.endswith("_by_lua_block"):
                    end = _after_block(content, place)
                    line += content.count(b"\n", place, end)
                    place = end
            words = []
            continue
        end = _skip(content, place)
        if end == place:
            end = _word_end(content, place)
            words.append(Word(_text(content[place:end]), place, end, line))
        line += content.count(b"\n", place, end)
        place = end


def _skip(content: bytes, place: int) -> int:
    """Behind blanks and a comment that begin here."""
    while place < len(content) and content[place] in _BLANK:
        place += 1
    if content[place : place + 1] == b"#":
        end = content.find(b"\n", place)
        return len(content) if end < 0 else end
    return place


def _word_end(content: bytes, place: int) -> int:
    quote = content[place : place + 1] if content[place] in b"'\"" else b""
    place += len(quote)
    while place < len(content):
        if content[place] == ord("\\"):
            place += 2
        elif quote:
            place += 1
            if content[place - 1 : place] == quote:
                return place
        elif content.startswith(b"${", place):
            place = max(content.find(b"}", place) + 1, place + 2)
        elif content[place] in _END_WORD:
            return place
        else:
            place += 1
    return len(content)


def _text(raw: bytes) -> str:
    if raw[:1] in (b"'", b'"') and raw[-1:] == raw[:1] and len(raw) > 1:
        raw = raw[1:-1]
    return raw.decode(errors="surrogateescape")


def _after_block(content: bytes, place: int) -> int:
    """Behind the brace that closes a block of Lua: braces are counted, those in its strings are not."""
    depth = 1
    for part in _LUA.finditer(content, place):
        depth += {b"{": 1, b"}": -1}.get(part[0], 0)
        if not depth:
            return part.end()
    return len(content)
