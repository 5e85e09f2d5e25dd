"""Finds the master process of an nginx or HAProxy among others by its command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbswitch.core.config import BalancerKind

_TITLE = "nginx: master process "


@dataclass(frozen=True, slots=True)
class Process:
    """One process: `argv` is its command line, in which nginx has put all in one word."""

    pid: int
    parent: int
    argv: tuple[str, ...]


def command_line(argv: Sequence[str]) -> list[str]:
    """Program and arguments: nginx's master has them, joined by blanks, behind a title."""
    text = " ".join(argv)
    return text.removeprefix(_TITLE).split() if text.startswith(_TITLE) else list(argv)


def option(arguments: Sequence[str], letter: str) -> list[str]:
    """The values of `-c VALUE` or `-cVALUE` in a command line, in order."""
    found = []
    for place, word in enumerate(arguments):
        if word == f"-{letter}" and place + 1 < len(arguments):
            found.append(arguments[place + 1])
        elif word.startswith(f"-{letter}/"):
            found.append(word[2:])
    return found


def masters(kind: BalancerKind, processes: Iterable[Process]) -> list[Process]:
    """The masters among them, whatever configuration they have.

    HAProxy's workers have the master's command line, nginx's for an instant after the fork; a program that nginx was
    told to upgrade to runs below the master that is still in charge.
    """
    family = [process for process in processes if _is_of(kind, process)]
    pids = {process.pid for process in family}
    return [process for process in family if process.parent not in pids]


def _is_of(kind: BalancerKind, process: Process) -> bool:
    if kind is BalancerKind.NGINX:
        return " ".join(process.argv).startswith(_TITLE)
    return bool(process.argv) and Path(process.argv[0]).name.startswith("haproxy") and "-c" not in process.argv


def is_master_worker(process: Process) -> bool:
    """Whether this HAProxy was told on its command line to stay as a master, which a reload needs."""
    return any(word in ("-W", "-Ws") for word in process.argv)


def reads(
    kind: BalancerKind, process: Process, config: Sequence[str], built_in: Callable[[str], tuple[str, str]]
) -> bool:
    """Whether it was started with one of these files; `built_in` gives nginx's own prefix and main file."""
    arguments = command_line(process.argv)
    wanted = {os.path.realpath(path) for path in config}
    if kind is BalancerKind.HAPROXY:
        base = (option(arguments, "C") or ["/"])[-1]
        return any(_real(os.path.join(base, path)) in wanted for path in _haproxy_files(arguments))  # noqa: PTH118
    return _real(nginx_config(arguments, built_in)) in wanted


def _real(path: str) -> str:
    """The path without symlinks; as it is where one of them is being replaced at this moment."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def nginx_config(arguments: Sequence[str], built_in: Callable[[str], tuple[str, str]]) -> str:
    """The main file of an nginx with this command line."""
    named, prefixes = option(arguments, "c"), option(arguments, "p")
    if named and named[-1].startswith("/"):
        return named[-1]
    prefix, file = built_in(arguments[0])
    return str(Path((prefixes or [prefix])[-1], (named or [file])[-1]))


def _haproxy_files(arguments: Sequence[str]) -> list[str]:
    """What follows each -f, and everything after --."""
    before = list(arguments)
    after = before[before.index("--") + 1 :] if "--" in before else []
    return option(before, "f") + after
