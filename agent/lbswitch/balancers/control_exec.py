"""`docker exec` that ends in time, whatever runs."""

from __future__ import annotations

import math
import os
import selectors
import signal
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lbswitch import procs
from lbswitch.balancers import control_container as engine
from lbswitch.errors import BalancerMissing

if TYPE_CHECKING:
    from docker.models.containers import Container

_KILL_AFTER_S = 2
_GRACE_S = 5.0
_MOST_BYTES = 16 * 1024 * 1024
_HEADER = struct.Struct(">BxxxL")  # stream and length: the multiplexed format of the Engine's API, ContainerAttach
_NO_PROGRAM = (126, 127)
_MISSING = ("executable file not found", "no such file or directory")


def execute(container: Container, argv: Sequence[str], timeout_s: float) -> procs.Result:
    """Exit code and output of a program in a running container. Raises: procs.TimedOut, BalancerMissing.

    `timeout` in the container ends it; without one it is ended from here, if its process can be seen from here.
    """
    limit = ["timeout", "-k", str(_KILL_AFTER_S), str(max(1, math.ceil(timeout_s)))]
    began = time.monotonic()
    result = _execute(container, [*limit, *argv], timeout_s + _KILL_AFTER_S + _GRACE_S)
    if _lacks(result, "timeout"):
        result = _execute(container, list(argv), timeout_s)
    elif result.returncode != 0 and time.monotonic() - began >= timeout_s:
        raise procs.TimedOut(argv, timeout_s)
    if _lacks(result, argv[0]):
        raise BalancerMissing(f"container {container.name} has no program {argv[0]}")
    return result


def _execute(container: Container, argv: list[str], timeout_s: float) -> procs.Result:
    from docker.errors import APIError

    assert container.client is not None  # noqa: S101  # it came from one
    api = container.client.api
    identity = api.exec_create(container.id, argv)["Id"]
    try:
        socket: Any = api.exec_start(identity, socket=True)
    except APIError as error:  # newer engines say so at once when there is no such program
        if not any(missing in str(error).lower() for missing in _MISSING):
            raise
        return procs.Result(_NO_PROGRAM[1], str(error.explanation))
    try:
        content = _read(socket, time.monotonic() + timeout_s)
    except TimeoutError as error:
        _end(container, api.exec_inspect(identity))
        raise procs.TimedOut(argv, timeout_s) from error
    finally:
        socket._response.close()  # the client keeps it there, so that it lives as long as its socket
        socket.close()
    code = api.exec_inspect(identity)["ExitCode"]
    return procs.Result(-1 if code is None else int(code), _output(content).decode(errors="replace"))


def _read(socket: Any, deadline: float) -> bytes:
    """What comes until the other side closes, cut when it is far too much. Raises: TimeoutError."""
    content = bytearray()
    with selectors.DefaultSelector() as arrived:  # not select(2), which fails when many files are open
        arrived.register(socket.fileno(), selectors.EVENT_READ)
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not arrived.select(remaining_s):
                raise TimeoutError
            chunk = socket.read(65536) if hasattr(socket, "read") else socket.recv(65536)
            if not chunk:
                return bytes(content)
            content += chunk if len(content) < _MOST_BYTES else b""


def _output(content: bytes) -> bytes:
    """Both streams in the order in which they came; the engine copies each by itself."""
    parts, place = [], 0
    while place + _HEADER.size <= len(content):
        _, length = _HEADER.unpack_from(content, place)
        place += _HEADER.size
        parts.append(content[place : place + length])
        place += length
    return b"".join(parts)


def _end(container: Container, started: dict[str, Any]) -> None:
    pid = int(started.get("Pid") or 0)
    if pid and started.get("Running") and engine.is_here(container):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _lacks(result: procs.Result, program: str) -> bool:
    """Whether the runtime or `timeout` says that there is no such program."""
    words = result.output.lower()
    named = f'"{program}"' in words or f"'{program}'" in words or f"‘{program}’" in words
    is_said = any(missing in words for missing in _MISSING)
    return result.returncode in _NO_PROGRAM and named and is_said
