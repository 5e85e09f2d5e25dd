"""Small changes to somebody else's text, at exact places, that can be taken out again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Edit:
    """`new` in the place of `old`. With `whole_line`, nothing was there and `new` is one line.

    `at` is the byte offset in the text as it was before any edit.
    """

    at: int
    old: bytes
    new: bytes
    whole_line: bool = False


class NotOurs(Exception):
    """Lines of ours can't be found exactly any more; the message says which, and what to do."""


def apply(text: bytes, edits: Iterable[Edit]) -> bytes:
    """The text with all edits made. Raises: ValueError, when it is not the text they are for."""
    parts, place = [], 0
    for edit in sorted(edits, key=lambda edit: edit.at):
        if edit.at < place or text[edit.at : edit.at + len(edit.old)] != edit.old:
            raise ValueError(f"the edit at byte {edit.at} does not fit")
        parts += [text[place : edit.at], edit.new]
        place = edit.at + len(edit.old)
    return b"".join([*parts, text[place:]])


def take_out(text: bytes, edits: Sequence[Edit]) -> bytes:
    """The text without these edits, wherever they are by now; what others wrote stays. Raises: NotOurs."""
    lines = {edit.new.strip() for edit in edits if edit.whole_line}
    kept = b"".join(line for line in text.splitlines(keepends=True) if line.strip() not in lines)
    for new, olds in _replacements(edits).items():
        kept = _put_back(kept, new, olds)
    return kept


def _replacements(edits: Sequence[Edit]) -> dict[bytes, list[bytes]]:
    """What was replaced by each new text, in the order of the file."""
    found: dict[bytes, list[bytes]] = {}
    for edit in sorted(edits, key=lambda edit: edit.at):
        if not edit.whole_line:
            found.setdefault(edit.new, []).append(edit.old)
    return found


def _put_back(text: bytes, new: bytes, olds: list[bytes]) -> bytes:
    whole_word = rb"(?![A-Za-z0-9_])" if new[-1:].isalnum() or new.endswith(b"_") else b""
    pieces = re.split(re.escape(new) + whole_word, text)
    if len(set(olds)) == 1:
        return olds[0].join(pieces)
    if len(pieces) != len(olds) + 1:
        raise NotOurs(
            f"`{_shown(new)}` is there {len(pieces) - 1} times instead of {len(olds)}, and stands for different "
            f"things: {', '.join(_shown(old) for old in dict.fromkeys(olds))}"
        )
    parts = [pieces[0]]
    for old, piece in zip(olds, pieces[1:], strict=True):
        parts += [old, piece]
    return b"".join(parts)


def _shown(text: bytes) -> str:
    return text.decode(errors="backslashreplace").strip()


def line_ending(text: bytes) -> bytes:
    r"""How lines end in this text: `\r\n` or `\n`."""
    first = text.find(b"\n")
    return b"\r\n" if first > 0 and text[first - 1 : first] == b"\r" else b"\n"


def line_start(text: bytes, at: int) -> int:
    """Where the line begins that holds byte `at`."""
    return text.rfind(b"\n", 0, at) + 1


def after_line(text: bytes, at: int) -> int:
    """Where the line after the one that holds byte `at` begins, or the end of the text."""
    end = text.find(b"\n", at)
    return len(text) if end < 0 else end + 1


def indentation(text: bytes, at: int) -> bytes:
    """The blanks that the line with byte `at` begins with."""
    line = text[line_start(text, at) :]
    return line[: len(line) - len(line.lstrip(b" \t"))]


def new_line(text: bytes, at: int, line: bytes) -> Edit:
    """Insert `line` at `at`, which is the beginning of a line or the end of the text."""
    ending = line_ending(text)
    if at == len(text) and text and not text.endswith(b"\n"):
        return Edit(at, b"", ending + line, whole_line=True)
    return Edit(at, b"", line + ending, whole_line=True)


def diff(path: Path, before: bytes | None, after: bytes | None) -> str:
    """A unified diff; None is "no file"."""
    old, new = ((text or b"").decode(errors="backslashreplace").split("\n") for text in (before, after))
    lines = difflib.unified_diff(
        _with_ends(old),
        _with_ends(new),
        "/dev/null" if before is None else str(path),
        "/dev/null" if after is None else str(path),
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _with_ends(lines: list[str]) -> list[str]:
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
