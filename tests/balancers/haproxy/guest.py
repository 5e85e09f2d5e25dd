"""A HAProxy that is somebody else's, shaped as Debian packages it, with lbswitch as its guest."""

import copy
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbswitch.balancers.haproxy_guest import HAProxyGuest
from lbswitch.balancers.haproxy_runtime import Processes, Runtime
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Observation, Route, ServiceIntent
from tests.balancers.haproxy.managed import ask
from tests.support.ports import free_port
from tests.support.wait import wait_until

_OWNER = """\
global
\tlog {directory}/log.sock\tlocal0
\tstats socket {directory}/admin.sock mode 660 level admin expose-fd listeners
\tstats timeout 30s
\thard-stop-after 5m
\tssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets

defaults
\tlog\tglobal
\tmode\thttp
\toption\thttplog
\toption\tdontlognull
\toption\tidle-close-on-response
        timeout connect 5000
        timeout client  50000
        timeout server  50000
{defaults}
frontend web
        bind 127.0.0.1:{port}
        bind 127.0.0.1:{tls_port} ssl crt {pem}
        option forwardfor
        use_backend theirs if {{ path_beg /theirs }}
{lines}
        default_backend theirs

backend theirs
        option httpchk GET /health
        http-response set-header X-Backend theirs
        server a {theirs} check
{more}
"""


class Guest:
    """Owner and guest in one directory: `serve`, `move`, `get`, `reload_by_owner`, `stop`, `close`."""

    def __init__(
        self,
        binary: str,
        services: dict[str, dict[str, Any]],
        pem: Path,
        theirs: str,
        *,
        load: str = "after",
        defaults: str = "",
        more: str = "",
        **balancer: Any,
    ) -> None:
        """`load` says how our file is loaded: `after` theirs, `before`, from a `directory`, or `never`."""
        self.directory = Path(tempfile.mkdtemp(prefix="lbs-"))  # short: socket paths have to fit
        self.directory.chmod(0o755)
        self.output = self.directory / "lbswitch"
        self.binary = binary
        self.load = load
        self.port, self.tls_port = free_port(), free_port()
        self.log = self.directory / "haproxy.log"
        self.cwd: Path | None = None
        self.options: list[str] = []
        self.environment: dict[str, str] = {}
        self.document = self._document(services, balancer)
        self.haproxy = self.adapter()
        self.owner = self.directory / "conf.d" / "haproxy.cfg"
        self.owner.parent.mkdir()
        self._values = {"pem": pem, "theirs": theirs, "defaults": defaults, "more": more}
        self.write_owner(
            [
                line
                for name, s in self.document["services"].items()
                if s.get("mode") != "tcp"
                for line in self.lines(name)
            ]
        )
        first = {
            name: ServiceIntent(Route(Color(s.get("initial", "blue"))), 1, "weights" in s)
            for name, s in services.items()
        }
        self.intent = Intent(first, 1)
        self._process: subprocess.Popen[bytes] | None = None

    def _document(self, services: dict[str, dict[str, Any]], balancer: dict[str, Any]) -> dict[str, Any]:
        services = copy.deepcopy(services)
        for service in services.values():
            service.setdefault("bind", f"127.0.0.1:{self.port}")
        settings = {
            "kind": "haproxy",
            "managed": False,
            "config": [str(self.directory / "conf.d" / "haproxy.cfg")],
            "output_dir": str(self.output),
            "pid_file": str(self.directory / "haproxy.pid"),
            "master_socket": str(self.directory / "master.sock"),
            **balancer,
        }
        return {"agent": {"state_dir": str(self.directory / "state")}, "balancer": settings, "services": services}

    def adapter(self) -> HAProxyGuest:
        """Another adapter for the same HAProxy, as a restarted agent has it."""
        return HAProxyGuest(Config.model_validate(self.document))

    def lines(self, service: str, condition: str = "") -> list[str]:
        """What the owner writes for this service."""
        found = self.haproxy.owner_lines(service)
        return [*found[:-1], found[-1] + condition]

    def write_owner(self, lines: Sequence[str]) -> None:
        """Put these lines into the frontend, as the owner does with an editor."""
        text = _OWNER.format(
            directory=self.directory,
            port=self.port,
            tls_port=self.tls_port,
            lines="\n".join(f"        {line}" for line in lines),
            **self._values,
        )
        self.owner.write_text(text)

    def install(self) -> None:
        rendered = self.haproxy.render(self.intent)
        self.haproxy.check(rendered)
        self.haproxy.commit(self.intent, self.intent.services)
        self.haproxy.install(rendered)

    def serve(self) -> "Guest":
        self.install()
        self.start()
        return self

    @property
    def ours(self) -> Path:
        return self.output / "current" / "lbswitch.cfg"

    def arguments(self) -> list[str]:
        """What the owner gives to HAProxy."""
        if self.load == "directory":
            (self.owner.parent / "zz-lbswitch.cfg").symlink_to(self.ours)
            return ["-f", str(self.owner.parent)]
        if self.load == "relative":
            return ["-f", self.owner.name, "-f", str(self.ours)]
        files = {"after": [self.owner, self.ours], "before": [self.ours, self.owner], "never": [self.owner]}
        return [word for file in files[self.load] for word in ("-f", str(file))]

    def start(self) -> None:
        """As the owner's systemd unit does."""
        (self.owner.parent / "zz-lbswitch.cfg").unlink(missing_ok=True)
        socket, pid = self.document["balancer"]["master_socket"], f"{self.directory}/haproxy.pid"
        argv = [self.binary, "-W", "-S", socket, "-p", pid, *self.options, *self.arguments()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.cwd,
                env={**os.environ, **self.environment},
            )
        wait_until(lambda: self._serves(), f"the owner's HAProxy serves:\n{self.log.read_text()}")

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        return bool(self.processes().current) and self.get("/theirs").status > 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def reload_by_owner(self) -> None:
        """kill -USR2 of the master, and a new worker."""
        before = self.processes()
        os.kill(self.pid, signal.SIGUSR2)
        wait_until(lambda: self.processes().reloads != before.reloads, "the owner's reload")
        wait_until(lambda: set(self.processes().current) - set(before.workers), "a new worker")

    def processes(self) -> Processes:
        try:
            return Runtime(Path(self.document["balancer"]["master_socket"])).processes()
        except Exception as error:
            raise RuntimeError(str(error)) from error

    def after(self, **routes: Route) -> Intent:
        """The next intent, in which these services go there (`-` is written `_`)."""
        generation = self.intent.generation + 1
        moved = {}
        for name, route in routes.items():
            before = self.intent.services[name.replace("_", "-")]
            moved[name.replace("_", "-")] = ServiceIntent(route, generation, before.weighted)
        return self.intent.with_services(moved)

    def move(self, **routes: Route) -> None:
        """Commit routes and see them at every service's listener."""
        self.intent = self.after(**routes)
        self.haproxy.commit(self.intent, [name.replace("_", "-") for name in routes])
        for name in self.intent.services:
            assert self.shows(name), (name, self.haproxy.observe(name), self.intent.services[name])

    def shows(self, service: str, seen: Observation | None = None) -> bool:
        seen = seen or self.haproxy.observe(service)
        return seen.shows(self.intent.services[service], self.haproxy.installed() or "")

    def connection(self, *, tls: bool = False) -> http.client.HTTPConnection:
        if not tls:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.tls_port, timeout=10, context=context)

    def get(self, path: str = "/", *, tls: bool = False, **headers: str) -> http.client.HTTPResponse:
        """One request on a connection of its own."""
        connection = self.connection(tls=tls)
        try:
            return ask(connection, path, {name.replace("_", "-"): value for name, value in headers.items()})
        finally:
            connection.close()

    def app(self, path: str = "/", **headers: str) -> str:
        """Which application answered."""
        return self.get(path, **headers).getheader("X-App") or ""

    def stop(self) -> None:
        """End it as the owner's service manager does, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
