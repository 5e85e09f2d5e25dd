"""HAProxy by hand: a map changed through the Runtime API, and a reload of the master.

Frontend and backends are set as lbswitch renders them where it matters to clients, `option idle-close-on-response`
included, without which a reload cuts idle connections.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
from collections.abc import Sequence
from typing import ClassVar

import psutil
from scripts.benchmark import programs
from scripts.benchmark.daemon import Daemon
from scripts.benchmark.systems.system import WORKERS, Absent, Color, System
from tests.support.wait import wait_until

_CONFIGURATION = """\
global
    maxconn 4096
    nbthread {workers}
    stats socket {directory}/worker.sock mode 600 level admin expose-fd listeners
    hard-stop-after 30m
    mworker-max-reloads 50
    no strict-limits
{user}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    timeout http-keep-alive 60s
    option http-keep-alive
    http-reuse safe
    option idle-close-on-response
    option forwardfor
    option redispatch 1
    retries 1
    retry-on conn-failure empty-response

frontend shop
    bind {address}
    http-request disable-l7-retry unless {{ method GET HEAD OPTIONS }}
    use_backend {choice}

backend shop_blue
    server s1 {blue}

backend shop_green
    server s1 {green}
"""


class _Haproxy(System):
    group = "by hand"
    balancer = "haproxy"

    def program(self) -> str:
        """Raises: Absent."""
        found = programs.of_the_host("haproxy")
        if found is None:
            raise Absent("HAProxy is not installed")
        return found

    @property
    def version(self) -> str:
        return programs.version_of(self.program())

    def start(self) -> None:
        self._configuration = self.directory / "haproxy.cfg"
        self._write("blue")
        argv = [self.program(), "-W", "-S", f"{self.directory}/master.sock", "-f", str(self._configuration)]
        self._daemon = Daemon(argv, self.directory)
        self.settle()

    def settle(self) -> None:
        """A master that only just started, or started anew, loses a signal for a reload."""
        wait_until(self._is_ready, "HAProxy's master knows its worker", 10)

    def _is_ready(self) -> bool:
        return "worker" in self.ask("master.sock", "show proc")

    def ask(self, name: str, command: str) -> str:
        """What it says to a command on one of its sockets. Raises: OSError."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.directory / name))
            sock.sendall(f"{command}\n".encode())
            sock.shutdown(socket.SHUT_WR)  # a master keeps the connection open until then
            return b"".join(iter(lambda: sock.recv(4096), b"")).decode()

    def stop(self) -> None:
        if hasattr(self, "_daemon"):
            self._daemon.stop()

    def workers(self) -> Sequence[psutil.Process]:
        return self._daemon.children()

    def _write(self, live: Color) -> None:
        new = self.directory / "haproxy.cfg.new"
        new.write_text(
            _CONFIGURATION.format(
                workers=WORKERS,
                directory=self.directory,
                address=self.address,
                choice=self.choice(live),
                blue=self.servers.blue,
                green=self.servers.green,
                user=_user(),
            )
        )
        new.rename(self._configuration)

    def choice(self, live: Color) -> str:
        """What follows `use_backend`."""
        raise NotImplementedError


class HaproxyReloadByHand(_Haproxy):
    """The signal returns before anything has happened, so its command time says nothing."""

    name = "HAProxy reload by hand"
    way = "rewrite use_backend, SIGUSR2 to the master"
    pause_s = 0.8

    def choice(self, live: Color) -> str:
        return f"shop_{live}"

    def move(self, to: Color) -> None:
        self._write(to)
        self._daemon.signal(signal.SIGUSR2)


class HaproxyRuntimeByHand(_Haproxy):
    """What is physically possible: nothing is on disk, nothing is verified."""

    name = "HAProxy Runtime API by hand"
    way = "prepare, add and commit map on the stats socket"
    _map: ClassVar[str] = "live.map"

    def choice(self, live: Color) -> str:  # noqa: ARG002 - the map holds it
        return f"shop_%[str(shop),map({self.directory}/{self._map},blue)]"

    def start(self) -> None:
        (self.directory / self._map).write_text("shop blue\n")
        super().start()

    def move(self, to: Color) -> None:
        path = self.directory / self._map
        version = self.ask("worker.sock", f"prepare map {path}").rpartition(":")[2].strip()
        said = self.ask("worker.sock", f"add map @{version} {path} shop {to};commit map @{version} {path}").strip()
        if said:
            raise RuntimeError(f"HAProxy refused the map: {said}")


def _user() -> str:
    """The lines that name the distribution's user of workers, where there is one and it can be become."""
    try:
        pwd.getpwnam("haproxy")
    except KeyError:
        return ""
    return "    user haproxy\n    group haproxy\n" if os.getuid() == 0 else ""
