"""What the machine itself takes for what a switch has to do: the floor under the other figures."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark import services, timing
from scripts.benchmark.bench import Bench
from scripts.benchmark.web import UnixClient

GROUP = "Limits of this machine"
FSYNC = "write 4 KiB and fsync"
RENAME = "rename a symlink and fsync its directory"
SQLITE = "SQLite commit (WAL, synchronous FULL)"
ECHO = "HTTP over a unix socket, bare"
AGENT = "HTTP over a unix socket, GET /healthz of the agent"


def run(bench: Bench) -> None:
    """In the directory where agents of this run keep their state, so on the same disk."""
    rounds = 50 if bench.is_quick else 500
    directory = bench.place.directory()
    with bench.survive("limits"):
        calls = {FSYNC: _fsync(directory), RENAME: _rename(directory), SQLITE: _sqlite(directory)}
        for name, samples in timing.in_turns(calls, rounds).items():
            bench.record.add(GROUP, name, "ms", samples)
    with bench.survive("limits: HTTP"):
        bench.record.add(GROUP, ECHO, "ms", _round_trips(_echo(directory / "echo.sock"), rounds))
    with bench.survive("limits: agent"), bench.servers() as servers:
        config = services.many(bench.balancers[0], 1, servers)
        with services.agent(bench, config) as agent:
            bench.record.add(GROUP, AGENT, "ms", _round_trips(agent.socket, rounds))


def _fsync(directory: Path) -> Callable[[], None]:
    path = directory / "file"
    block = b"x" * 4096

    def write() -> None:
        with path.open("ab") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())

    return write


def _rename(directory: Path) -> Callable[[], None]:
    new, link = directory / "new", directory / "link"

    def rename() -> None:
        new.symlink_to("file")
        new.rename(link)
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    return rename


def _sqlite(directory: Path) -> Callable[[], None]:
    database = sqlite3.connect(directory / "database", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE journal (id INTEGER PRIMARY KEY, document TEXT)")

    def commit() -> None:
        database.execute("INSERT INTO journal (document) VALUES (?)", ("x" * 500,))

    return commit


def _round_trips(path: Path, rounds: int) -> list[float]:
    client = UnixClient(path)
    try:
        return [client.request("GET", "/healthz").took_ms for _ in range(rounds + 5)][5:]
    finally:
        client.close()


def _echo(path: Path) -> Path:
    """A thread that answers every request on one connection without looking at it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            while connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    threading.Thread(target=serve, daemon=True).start()
    return path
