"""What every system that is compared has in common."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, NamedTuple, Self

import psutil
from scripts.benchmark.web import get
from tests.support.ports import free_port
from tests.support.wait import wait_until

WORKERS = 2  # of every system: worker processes (nginx), threads (HAProxy, Envoy), GOMAXPROCS (Traefik, Caddy)
Color = Literal["blue", "green"]


class Absent(Exception):
    """A system can't be measured here; the message says why."""


class Servers(NamedTuple):
    """The addresses of the two servers between which is switched."""

    blue: str
    green: str

    def of(self, color: Color) -> str:
        return self.blue if color == "blue" else self.green


def other(color: Color) -> Color:
    return "green" if color == "blue" else "blue"


class System(ABC):
    """A proxy in a directory of its own. As a context manager it runs inside the block and is gone after it.

    `name` is what tables call it, `group` what it is compared as, and `way` says how it is switched. `pause_s` is how
    long the old color may go on answering after a switch, generously: the next switch waits for it.
    """

    name: ClassVar[str]
    group: ClassVar[Literal["lbswitch", "by hand", "peer"]]
    way: ClassVar[str]
    balancer: ClassVar[str]
    pause_s: ClassVar[float] = 0.4

    def __init__(self, servers: Servers, directory: Path) -> None:
        """`directory` is empty and its own; it is removed at the end."""
        self.servers = servers
        self.directory = directory
        self.port = free_port()
        self.live: Color = "blue"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the balancer, such as `nginx 1.22.1`. Raises: Absent."""

    @abstractmethod
    def start(self) -> None:
        """Start it on blue, in `self.directory`. Raises: Absent, RuntimeError."""

    @abstractmethod
    def stop(self) -> None:
        """End all its processes."""

    @abstractmethod
    def move(self, to: Color) -> None:
        """Send traffic to that color as its user would, and return when the user's command does.

        Raises: RuntimeError, OSError.
        """

    def settle(self) -> None:  # noqa: B027 - most can at any time
        """Wait until it can be told to switch again. Raises: AssertionError."""

    @abstractmethod
    def workers(self) -> Sequence[psutil.Process]:
        """The processes that carry traffic now."""

    def switch(self, to: Color) -> None:
        """`move`, and remember where traffic goes."""
        self.move(to)
        self.live = to

    def __enter__(self) -> Self:
        try:
            self.start()
            wait_until(lambda: get(self.address).color == "blue", f"{self.name} serves blue", 20)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
