"""What a way of switching is tried on: two applications, a balancer, an agent whose steps can be struck, and load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.balancers.haproxy.guest import Guest
from tests.balancers.nginx.owner import Owner
from tests.faults.forked import Forked
from tests.support.agent import make_short_directory
from tests.support.app import App
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.wait import wait_until

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
_CHECKER = """\
#!/bin/sh
# Takes the place of the balancer's program, whose checks it may answer itself.
for word in "$@"; do
  if [ "$word" = {flag} ]; then
    mode=$(cat {directory}/checker)
    [ -z "$mode" ] || echo "$mode" >>{directory}/checker.log
    case "$mode" in
      hang) exec sleep 30 ;;
      crash) kill -SEGV $$ ;;
      yes) exit 0 ;;
      no) echo '{complaint}' >&2; exit 1 ;;
    esac
  fi
done
exec {program} "$@"
"""
_COMPLAINTS = {
    "nginx": "nginx: [emerg] the checker of the test says no in nginx.conf:1",
    "haproxy": "[ALERT]    (1) : config : the checker of the test says no",
}
_FLAGS = {"nginx": "-t", "haproxy": "-c"}
EXTRA = {
    "nginx": ("# nothing\n", "nonsense;\n"),
    "haproxy": ("HTTP/1.0 503 Gone\r\nContent-Length: 0\r\n\r\n", "nonsense"),
}
"""What a file that the configuration includes holds: good, and such that the balancer refuses it."""
# A host that is busy may miss checks, and this is not about that.
_SERVICE = {
    "health": {"interval": "200ms", "timeout": "5s", "rise": 1, "fall": 20},
    "failover": {"enabled": False},
    "verify": {"deadline": "3s"},
}


def program(kind: str) -> str | None:
    """The balancer's program: the first of `LBSWITCH_TEST_NGINX` or `LBSWITCH_TEST_HAPROXY`, or the one installed."""
    other = os.environ.get(f"LBSWITCH_TEST_{kind.upper()}", "").partition(":")[0]
    return other or shutil.which(kind) or shutil.which(kind, path=_SBIN)


class Site:
    """A managed balancer; the subclasses are guests of somebody else's."""

    def __init__(self, kind: str, services: tuple[str, ...] = ("shop",), **settings: Any) -> None:
        self.kind, self.names = kind, services
        self.directory = make_short_directory()
        self.blue, self.green = App("blue", "v1"), App("green", "v2")
        self.ports: dict[str, int] = {}
        self._load: Load | None = None
        self.checker = self._checker()
        self.extra = self.directory / "extra"
        self.extra.write_text(EXTRA[kind][0])
        config = {
            "agent": {"snapshots": {"keep": 1000}},
            "balancer": self._balancer(),
            "services": {name: self._service(name, settings) for name in services},
        }
        self.agent = Forked(self.directory, config, self._below())

    def _checker(self) -> Path:
        wrapper = self.directory / self.kind
        values = {"flag": _FLAGS[self.kind], "complaint": _COMPLAINTS[self.kind], "program": program(self.kind)}
        wrapper.write_text(_CHECKER.format(directory=self.directory, **values))
        wrapper.chmod(0o755)
        (self.directory / "checker").write_text("")
        return wrapper

    def _balancer(self) -> dict[str, Any]:
        name = {"nginx": "nginx.conf.j2", "haproxy": "haproxy.cfg.j2"}[self.kind]
        where, line = {
            "nginx": ("http {\n", f"    include {self.extra};\n"),
            "haproxy": ("defaults lbswitch.http\n", f"    errorfile 503 {self.extra}\n"),
        }[self.kind]
        template = self.directory / "templates" / self.kind / name
        template.parent.mkdir(parents=True)
        stock = (_TEMPLATES / self.kind / name).read_text()
        assert stock.count(where) == 1
        template.write_text(stock.replace(where, where + line))
        templates = str(self.directory / "templates")
        return {"kind": self.kind, "binary": str(self.checker), "workers": 1, "templates": templates}

    def _service(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        self.ports[name] = self._port()
        return {
            "bind": f"127.0.0.1:{self.ports[name]}",
            "blue": {"servers": [self.blue.address]},
            "green": {"servers": [self.green.address]},
            **_SERVICE,
            **settings,
        }

    def _port(self) -> int:
        return free_port()

    def _below(self) -> list[Path]:
        return [self.directory / "state"]

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.blue.start()
        self.green.start()
        self._start_balancer()
        self.agent.start()
        self.until_well()

    def _start_balancer(self) -> None:
        """The agent does it."""

    def close(self) -> None:
        """End all of it; whatever the state of the last case."""
        if self._load is not None:
            self._load.close()
        for process in self.agent.balancer_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self.agent.close()
        self._stop_balancer()
        self.blue.stop()
        self.green.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _stop_balancer(self) -> None:
        """`Agent.close` did it."""

    @property
    def load(self) -> Load:
        """Requests all along, each on a connection of its own: nginx before 1.27.4 cuts idle ones when it reloads."""
        if self._load is None:
            port = self.ports[self.names[0]]
            settings = {"rate": 40.0, "new_connections": 1.0, "duration_s": 3600.0, "timeout_s": 20.0}
            self._load = Load("127.0.0.1", port, **settings).start()
        return self._load

    def master(self) -> int:
        """The pid of the balancer's master."""
        for process in self.agent.balancer_processes():
            if process.parent() is None or process.parent().name() != process.name():
                return process.pid
        raise AssertionError("the balancer does not run")

    @property
    def master_socket(self) -> Path:
        """HAProxy's."""
        return self.directory / "state" / "haproxy" / "master.sock"

    # -- what it does ----------------------------------------------------------------------------------------

    def front(self, name: str) -> str:
        """Which application answers for this service, asked on a connection of its own."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/", timeout=10) as answer:
            return str(answer.read().decode().split()[0])

    def services(self, *, detail: bool = False) -> dict[str, Any]:
        code, document = self.agent.http("GET", f"/v1/services{'?detail=true' if detail else ''}")
        assert code == 200, document
        return dict(document)

    def until_well(self) -> None:
        """Every color is healthy and every service seen. Raises: AssertionError."""

        def is_well() -> bool:
            services = self.services()["services"].values()
            pools = [service[color]["state"] for service in services for color in ("blue", "green")]
            assert set(pools) == {"healthy"}, pools
            unseen = [service["problem"] for service in services if not service["verified"]]
            assert not unseen, unseen
            return True

        wait_until(is_well, "all is healthy and verified", 20.0)

    def shares(self) -> dict[str, int]:
        """Green's percentage of each service, as intended."""
        return {name: each["weights"]["green"] for name, each in self.services()["services"].items()}

    def switch(self, to: str, weight: int = 100) -> None:
        """Of all services, over the agent's socket. Raises: AssertionError."""
        for name in self.names:
            body = {"to": to, "weight": weight}
            code, operation = self.agent.http("POST", f"/v1/services/{name}/switch", body)
            assert (code, operation.get("state")) in ((200, "done"), (200, "already")), operation

    def journal(self) -> list[dict[str, Any]]:
        """All operations, the newest first, from the file."""
        columns = ("id", "kind", "service", "source", "target", "weight", "state", "generation", "error", "notes")
        with contextlib.closing(sqlite3.connect(self.directory / "state" / "lbswitch.db", timeout=10)) as database:
            rows = database.execute(f"SELECT {', '.join(columns)} FROM operation ORDER BY id DESC").fetchall()
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def unweighted(self) -> None:
        """As if no service ever had a weight: of a stopped agent the journal is told so."""
        with contextlib.closing(sqlite3.connect(self.directory / "state" / "lbswitch.db", timeout=10)) as database:
            database.execute("UPDATE service SET weighted = 0 WHERE weight = 100")
            database.commit()


class NginxGuestSite(Site):
    """In the nginx of an owner."""

    def __init__(self, services: tuple[str, ...] = ("shop",), **settings: Any) -> None:
        super().__init__("nginx", services, verify={"deadline": "3s", "host": "shop.example"}, **settings)

    def _balancer(self) -> dict[str, Any]:
        base = self.directory / "owner"
        base.mkdir()
        self.owner = Owner(base, program("nginx") or "nginx")
        self.owner.write("conf.d/extra.conf", f"include {self.extra};\n")
        return self.owner.balancer(binary=str(self.checker), control="signal")

    def _port(self) -> int:
        return self.owner.port

    def _below(self) -> list[Path]:
        return [self.directory / "state", self.owner.output]

    def _start_balancer(self) -> None:
        self.owner.start_without_us()

    def start(self) -> None:
        """The owner includes lbswitch's files before they are there, so he reloads when they are."""
        self.blue.start()
        self.green.start()
        self._start_balancer()
        self.agent.start()
        os.kill(self.owner.pid() or 0, signal.SIGHUP)
        self.until_well()

    def _stop_balancer(self) -> None:
        self.owner.stop()

    def master(self) -> int:
        pid = self.owner.pid()
        assert pid is not None
        return pid


class HAProxyGuestSite(Site):
    """In the HAProxy of an owner."""

    def __init__(self, services: tuple[str, ...] = ("shop",), **settings: Any) -> None:
        super().__init__("haproxy", services, **settings)
        self.guest.write_owner(self.guest.lines("shop"))

    def _balancer(self) -> dict[str, Any]:
        self.pem = self.directory / "none.pem"
        shop = {"blue": {"servers": [self.blue.address]}, "green": {"servers": [self.green.address]}, **_SERVICE}
        self.guest = _Owned(
            program("haproxy") or "haproxy", {"shop": shop}, self.pem, self.blue.address, control="signal"
        )
        return {**self.guest.document["balancer"], "binary": str(self.checker)}

    def _port(self) -> int:
        return self.guest.port

    def _below(self) -> list[Path]:
        return [self.directory / "state", self.guest.output]

    def start(self) -> None:
        """lbswitch installs its file, and the owner starts HAProxy with it."""
        self.blue.start()
        self.green.start()
        self.agent.start()
        self.guest.start()
        self.until_well()

    def _stop_balancer(self) -> None:
        self.guest.close()

    @property
    def master_socket(self) -> Path:
        return Path(self.guest.document["balancer"]["master_socket"])

    def master(self) -> int:
        return self.guest.pid


class _Owned(Guest):
    """An owner without TLS."""

    def write_owner(self, lines: Any) -> None:
        super().write_owner(lines)
        text = self.owner.read_text()
        self.owner.write_text("".join(line for line in text.splitlines(keepends=True) if " ssl crt " not in line))
