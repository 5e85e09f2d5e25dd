"""HAProxy's Runtime API, through the master's socket: it reaches every worker, also those still draining.

Commands and answers: sections 9.3 and 9.4 of HAProxy's management guide.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TIMEOUT_S = 2.0
_TICK_S = 0.1
_MASTER = re.compile(r"^(\d+)\s+master\s+(\d+) \[failed: (\d+)\]", re.MULTILINE)
_WORKER = re.compile(r"^(\d+)\s+worker\s", re.MULTILINE)
_UPTIME = re.compile(r"^(\d+)\s+worker\s.*?(\d+)d(\d+)h(\d+)m(\d+)s", re.MULTILINE)
_OLD_WORKERS = "# old workers"
_BACKENDS, _SERVERS = 2, 4  # the types of rows that `show stat` is asked for
_GONE = b"Can't find the target PID"


class Unanswered(Exception):
    """The master or a worker can't be reached, does not answer in time, or says no."""


class Silent(Unanswered):
    """There was no answer in time."""


@dataclass(frozen=True, slots=True)
class Processes:
    """What `show proc` says: pids, reloads since the start, and failed reloads since the last good one.

    `uptimes_s` says by pid how many seconds ago a worker started.
    """

    master: int
    reloads: int
    failed: int
    current: tuple[int, ...]
    draining: tuple[int, ...]
    uptimes_s: Mapping[int, int] = field(default_factory=dict, compare=False)

    @property
    def workers(self) -> tuple[int, ...]:
        """Every worker that may still answer requests, the current one first."""
        return self.current + self.draining

    @classmethod
    def parse(cls, text: str) -> Processes:
        """Read the table. Raises: Unanswered."""
        master = _MASTER.search(text)
        if master is None:
            raise Unanswered(f"`show proc` gave no list of processes: {text[:80]!r}")
        current, _, draining = text.partition(_OLD_WORKERS)
        return cls(
            master=int(master[1]),
            reloads=int(master[2]),
            failed=int(master[3]),
            current=tuple(map(int, _WORKER.findall(current))),
            draining=tuple(map(int, _WORKER.findall(draining))),
            uptimes_s={int(pid): _seconds(*map(int, age)) for pid, *age in _UPTIME.findall(text)},
        )


def _seconds(days: int, hours: int, minutes: int, seconds: int) -> int:
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Runtime:
    """The master's socket. One connection a question: nothing is left half-said when a process goes away."""

    def __init__(
        self,
        path: Path,
        timeout_s: float = _TIMEOUT_S,
        is_alive: Callable[[int], bool] | None = None,
        current: Path | None = None,
    ) -> None:
        """Remember where; the socket exists while HAProxy runs. `timeout_s` is for one answer.

        `current` is the socket of whichever worker is the current one, where there is such a thing.

        `is_alive` says whether a worker still exists; in a container its pid means nothing to this host.
        """
        self.path = path
        self._timeout_s = timeout_s
        self._is_alive = is_alive or _is_alive
        self._current = current

    def with_timeout(self, timeout_s: float) -> Runtime:
        """The same socket, with another patience in seconds."""
        return Runtime(self.path, timeout_s, self._is_alive, self._current)

    def processes(self) -> Processes:
        """Master and workers. Raises: Unanswered."""
        return Processes.parse(self._exchange(None, "show proc\n"))

    def ask(self, worker: int, command: str) -> str:
        """What this worker says to a command. Raises: Unanswered."""
        return self._exchange(worker, f"@!{worker} {command}\n")

    def ask_all(self, worker: int, commands: Sequence[str]) -> str:
        """What this worker says to commands on one line; each runs whatever the one before said. Raises: Unanswered."""
        return self._exchange(worker, _line(worker, commands))

    def ask_current(self, worker: int, commands: Sequence[str]) -> str:
        """The same, on the current worker's own socket if it has one: without the master in between it is quicker.

        `worker` is meant to be the current one; after a reload in this moment another one answers. Raises: Unanswered.
        """
        if self._current is None or not self._current.exists():
            return self.ask_all(worker, commands)
        return self._exchange(worker, "; ".join(commands) + "\n", self._current)

    def requests(self, worker: int) -> Mapping[str, int]:
        """Requests and tunnels that this worker has in flight to servers, by backend. Raises: Unanswered."""
        return {backend: count for backend, _, count in self._current_sessions(worker, f"-1 {_BACKENDS} -1")}

    def requests_by_server(self, worker: int, backend: str) -> Mapping[str, int]:
        """The same in one backend, by server. Raises: Unanswered."""
        return {server: count for _, server, count in self._current_sessions(worker, f"{backend} {_SERVERS} -1")}

    def _current_sessions(self, worker: int, which: str) -> Iterator[tuple[str, str, int]]:
        """Names of proxy and server, and what each has, of the rows of `show stat`. Raises: Unanswered."""
        header, *lines = self.ask(worker, f"show stat {which}").lstrip("# ").splitlines() or [""]
        names = header.split(",")
        if "scur" not in names:
            raise Unanswered(f"worker {worker} gave no statistics: {header[:80]!r}")
        current = names.index("scur")
        rows = (line.split(",", current + 1) for line in lines if "," in line)
        return ((row[0], row[1], int(row[current] or 0)) for row in rows)

    def tell(self, worker: int, commands: Sequence[str]) -> None:
        """Commands that say nothing when all is well, on one line, so that they run right after each other.

        Raises: Unanswered with the worker's words.
        """
        self._expect_silence(worker, _line(worker, commands))

    def feed(self, worker: int, command: str, payload: str) -> None:
        """A command with lines of payload, which hold no empty one. Raises: Unanswered."""
        self._expect_silence(worker, f"@!{worker} {command} <<\n{payload}\n")

    def _expect_silence(self, worker: int, text: str) -> None:
        answer = self._exchange(worker, text).strip()
        if answer:
            raise Unanswered(f"worker {worker} says: {answer.splitlines()[0][:200]}")

    def _exchange(self, worker: int | None, text: str, path: Path | None = None) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_TICK_S)
                connection.connect(str(path or self.path))
                connection.sendall(text.encode())
                connection.shutdown(socket.SHUT_WR)
                answer = self._read(connection, worker)
        except TimeoutError:
            raise Silent(f"no answer on {self.path} within {self._timeout_s:g} s") from None
        except OSError as error:
            raise Unanswered(f"{self.path}: {error.strerror or error}") from error
        if not answer or answer.startswith(_GONE):
            what = f"worker {worker} is gone" if answer else "the connection ended without an answer"
            raise Unanswered(f"{self.path}: {what}")
        return answer.decode(errors="replace")

    def _read(self, connection: socket.socket, worker: int | None) -> bytes:
        """Until the connection ends; the master may keep it open when a worker goes away, so that is looked for."""
        answer, deadline = bytearray(), time.monotonic() + self._timeout_s
        while not answer.startswith(_GONE):
            try:
                data = connection.recv(65536)
            except TimeoutError:
                if worker is not None and not self._is_alive(worker):
                    return _GONE
                if time.monotonic() > deadline:
                    raise
                continue
            if not data:
                break
            answer += data
        return bytes(answer)


def _line(worker: int, commands: Sequence[str]) -> str:
    return "; ".join(f"@!{worker} {command}" for command in commands) + "\n"


def _is_alive(pid: int) -> bool:
    """Whether there is such a process; one that belongs to somebody else is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
