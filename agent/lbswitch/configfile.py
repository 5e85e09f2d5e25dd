"""The configuration file on disk."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from lbswitch.core import defaults
from lbswitch.errors import ConfigError, Problem

if TYPE_CHECKING:  # every command loads this module, and pathlib alone would cost it 4 ms
    from pathlib import Path

    from lbswitch.core.config import Config

_LARGEST = 16 * 1024 * 1024
_ELSEWHERE = "name another with --config or LBSWITCH_CONFIG"
_TOP_LEVEL = re.compile(r"^[^\s#].*", re.MULTILINE)
_PLAIN_KEY = re.compile(r"(agent|balancer|services):(?:\s|$)")
_NOTHING = re.compile(r" *(?:#.*)?")
_NOT_PLAIN = re.compile(r"""["'|>&*!?%@`\[\]\t\\]|<<""")
_BLOCK = re.compile(r"agent:(?: +#.*)?")
_FLOW = re.compile(r"agent: +\{([^{}#]*)\}")
_ENTRY = re.compile(r"([a-z_]+):(?: +(.*))?")
_PATH = re.compile(r"(/[\w./-]+)(?: +#.*)?", re.ASCII)


def default_path() -> Path:
    """`$LBSWITCH_CONFIG`, else `/etc/lbswitch/lbswitch.yaml`."""
    from pathlib import Path

    return Path(os.environ.get("LBSWITCH_CONFIG") or defaults.CONFIG)


def load(path: Path) -> Config:
    """Read and validate the file. Raises: ConfigError, also when there is no file or it can't be read."""
    from lbswitch.core.config_text import parse  # heavy: pydantic

    text = _read(path)
    return parse(text, str(path)).read_from(text)


def load_text(text: str, source: str) -> Config:
    """Validate what was once in a file; `source` names it in messages. Raises: ConfigError."""
    from lbswitch.core.config_text import parse

    return parse(text, source).read_from(text)


def socket_of(path: Path | str) -> str:
    """`agent.socket` of the file. Quick: without validating, or even parsing, what is not needed for it.

    Raises: ConfigError, when the file can't be read or the socket can't be found in it.
    """
    socket = _socket_in(_read(path))
    if socket is not None:
        return socket
    from pathlib import Path

    return load(Path(path)).agent.socket


def likely_socket(path: Path | str) -> str | None:
    """`agent.socket` of a file that is wrong elsewhere; None when the file or its agent section is of no use."""
    try:
        text = _read(path)
    except ConfigError:
        return None
    lines = list(_TOP_LEVEL.finditer(text))
    places = [index for index, line in enumerate(lines) if (key := _PLAIN_KEY.match(line[0])) and key[1] == "agent"]
    return _socket_in_block(_block(text, lines, places[0])) if len(places) == 1 else None


def _read(path: Path | str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib would have to be loaded
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise _unreadable(path, _reason(error)) from error
    if len(content) > _LARGEST:
        raise _unreadable(path, f"is larger than {_LARGEST >> 20} MiB: this is not a configuration of lbswitch")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, f"is not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8", line) from error


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"does not exist: write one there, or {_ELSEWHERE}"
    if isinstance(error, IsADirectoryError):
        return f"is a directory: {_ELSEWHERE}"
    if isinstance(error, PermissionError):
        who = f"this user (uid {os.geteuid()})"
        return f"may not be read by {who}: run as another user, give it read access, or {_ELSEWHERE}"
    return f"can't be read: {error.strerror}"


def _unreadable(path: Path | str, message: str, line: int = 0) -> ConfigError:
    return ConfigError(str(path), [Problem(message, line=line)])


def _socket_in(text: str) -> str | None:
    """The socket, when the file is written plainly enough to be sure; else None."""
    text = text.removeprefix("\ufeff")
    lines = list(_TOP_LEVEL.finditer(text))
    if lines and lines[0][0].rstrip() == "---":
        del lines[0]
    keys = [match[1] if (match := _PLAIN_KEY.match(line[0])) else None for line in lines]
    if None in keys or len(set(keys)) != len(keys) or not keys:
        return None
    if "agent" not in keys:
        return defaults.SOCKET
    return _socket_in_block(_block(text, lines, keys.index("agent")))


def _block(text: str, lines: list[re.Match[str]], index: int) -> str:
    """From one of the lines that begin at the margin to the next."""
    end = lines[index + 1].start() if index + 1 < len(lines) else len(text)
    return text[lines[index].start() : end]


def _socket_in_block(block: str) -> str | None:
    """The socket of an agent section; None when there is something wrong with that."""
    return _plain_socket(block) or _parsed_socket(block)


def _plain_socket(block: str) -> str | None:
    """The socket of a section so plain that nothing else can be meant; without a YAML parser, which costs 25 ms."""
    first, *rest = (line.rstrip() for line in block.splitlines() if not _NOTHING.fullmatch(line))
    if any(_NOT_PLAIN.search(line) or line.count("{") != line.count("}") for line in (first, *rest)):
        return None
    flow = _FLOW.fullmatch(first)
    if flow is not None and not rest:
        return _socket_among([part.strip() for part in flow[1].split(",") if part.strip()])
    return _socket_in_lines(rest) if rest and _BLOCK.fullmatch(first) else None


def _socket_in_lines(lines: list[str]) -> str | None:
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    if min(indents) != indents[0] or indents[0] == 0:
        return None
    keys = [
        (line[indent:], after)
        for line, indent, after in zip(lines, indents, [*indents[1:], 0], strict=True)
        if indent == indents[0]
    ]
    if any(after > indents[0] and not key.endswith(":") for key, after in keys):
        return None  # a value that goes on
    return _socket_among([key for key, _ in keys])


def _socket_among(entries: list[str]) -> str | None:
    """Of keys that stand beside each other."""
    matches = [_ENTRY.fullmatch(entry) for entry in entries]
    known = {match[1]: match[2] for match in matches if match is not None}
    if not entries or len(known) < len(entries):
        return None  # something else is there, or a key twice
    if "socket" not in known:
        return defaults.SOCKET
    path = _PATH.fullmatch(known["socket"] or "")
    return None if path is None else path[1]


def _parsed_socket(block: str) -> str | None:
    from lbswitch.core.yaml_tree import NotYaml, read_tree

    try:
        root, problems = read_tree(block)
    except NotYaml:
        return None
    agent = root.plain()["agent"]
    socket = agent.get("socket", defaults.SOCKET) if isinstance(agent, dict) else None
    return socket if isinstance(socket, str) and socket.startswith("/") and not problems else None
