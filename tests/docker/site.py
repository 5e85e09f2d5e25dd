"""An owner's nginx 1.26 or HAProxy 3.0 in a Debian 13 container, and a service `shop` with lbswitch as a guest.

DIRECTORY/owner   the owner's configuration, in the container /etc/lb
DIRECTORY/out     output_dir, in the container /etc/lbswitch-out
DIRECTORY/state   state_dir, in the container /lbswitch/state
DIRECTORY/rw      HAProxy's master socket, in the container /run/lb
"""

import contextlib
import shutil
import urllib.request
from typing import Any

from docker.models.containers import Container

from tests.support.agent import Agent, make_short_directory
from tests.support.app import App
from tests.support.docker import Engine
from tests.support.ports import free_port
from tests.support.wait import wait_until

_NGINX = """daemon off;
user www-data;
error_log stderr;
pid /run/nginx.pid;
events {{}}
http {{
    access_log off;
    {http}
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{ {location} }}
    }}
}}
"""
_HAPROXY = """global
    hard-stop-after 30s
defaults
    mode http
    option idle-close-on-response
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend web
    bind 127.0.0.1:{port}
    {frontend}
"""


class Site:
    """Owner, container, applications and agent: `start` brings all up, `close` leaves nothing."""

    def __init__(self, kind: str, engine: Engine) -> None:
        self.kind, self.engine = kind, engine
        self.blue, self.green, self.third = (App(name) for name in ("blue", "green", "third"))
        self.port = free_port()
        self.directory = make_short_directory()
        self.name = f"lb-{self.directory.name}"
        self.out, self.state = self.directory / "out", self.directory / "state"
        for path in (self.directory / "rw", self.out, self.state, self.directory / "owner"):
            path.mkdir()
            path.chmod(0o755)
        self.templates = self.directory / "agent" / "templates"
        self.templates.mkdir(parents=True)
        self.agent = Agent(self.directory / "agent", self.config(), env=engine.env)
        self.container: Container

    def config(self, blue: App | None = None) -> dict[str, Any]:
        """The document of lbswitch.yaml, with another application behind blue if one is given."""
        haproxy = {"master_socket": str(self.directory / "rw" / "master.sock")} if self.kind == "haproxy" else {}
        return {
            "agent": {"state_dir": str(self.state)},
            "balancer": {
                "kind": self.kind,
                "managed": False,
                "config": "/etc/lb/nginx.conf" if self.kind == "nginx" else "/etc/lb",
                "output_dir": str(self.out),
                "control": "docker",
                "container": self.name,
                "templates": str(self.templates),
                **haproxy,
            },
            "services": {
                "shop": {
                    "bind": f"127.0.0.1:{self.port}",
                    "blue": {"servers": [(blue or self.blue).address]},
                    "green": {"servers": [self.green.address]},
                    "health": {"interval": "100ms", "timeout": "500ms"},
                    "verify": {"deadline": "1s"},  # without the owner's lines the start waits so long
                }
            },
        }

    # -- the owner ---------------------------------------------------------------------------------------------

    def run_container(self) -> None:
        argv = {
            "nginx": ["nginx", "-c", "/etc/lb/nginx.conf"],
            "haproxy": ["haproxy", "-W", "-db", "-S", "/run/lb/master.sock", "-f", "/etc/lb"],
        }[self.kind]
        mounts = {
            self.directory / "owner": "/etc/lb",
            self.out: "/etc/lbswitch-out",
            self.state: "/lbswitch/state",
            self.directory / "rw": "/run/lb",
        }
        self.container = self.engine.run(argv, mounts, name=self.name)

    def write_owner(self, *, is_host: bool) -> None:
        """The owner's configuration, with lbswitch's lines or without."""
        owner = self.directory / "owner"
        if self.kind == "nginx":
            lines = {
                "http": "include /etc/lbswitch-out/current/http.conf;" if is_host else "",
                "server": "include /etc/lbswitch-out/current/shop.server.conf;" if is_host else "",
                "location": "proxy_pass http://$lbswitch_shop;" if is_host else "return 204;",
            }
            (owner / "nginx.conf").write_text(_NGINX.format(port=self.port, **lines))
            return
        use = "use_backend lbswitch_shop_%[str(shop),map(/etc/lbswitch-out/live.map)]"
        text = _HAPROXY.format(port=self.port, frontend=use if is_host else "http-request return status 204")
        (owner / "haproxy.cfg").write_text(text)
        if is_host:
            (owner / "lbswitch.cfg").symlink_to("/etc/lbswitch-out/current/lbswitch.cfg")

    def start(self) -> "Site":
        """The owner's balancer runs; lbswitch comes; the owner adds its lines and reloads."""
        self.write_owner(is_host=False)
        self.run_container()
        wait_until(lambda: self.front()[0] == 204, "the owner's balancer answers")
        for app in (self.blue, self.green, self.third):
            app.start()
        self.agent.start()
        self.write_owner(is_host=True)
        self.container.kill(signal="SIGHUP" if self.kind == "nginx" else "SIGUSR2")
        self.until_live("blue")
        return self

    def begin(self) -> None:
        """Whatever a test before left: the container runs, nothing is edited, blue is live."""
        self.container.start()
        for template in self.templates.iterdir():
            template.unlink()
        self.agent.write_config(self.config())
        wait_until(lambda: self.agent.lbswitch("apply").code == 0, "the configuration is applied")
        assert self.agent.lbswitch("blue").code == 0
        self.until_live("blue")

    # -- what is seen ------------------------------------------------------------------------------------------

    def front(self) -> tuple[int, str]:
        """Status and text of what the owner's listener answers. Raises: OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
            return answer.status, answer.read().decode().strip()

    def app(self) -> str:
        """Which application answers."""
        return self.front()[1].split()[0]

    def until_live(self, color: str) -> None:
        """The color answers, and the agent says so with its listener as the witness."""
        wait_until(lambda: self.app() == color, f"{color} answers")
        wait_until(lambda: self.status()["verified"] and self.status()["live"] == color, f"{color} is verified")
        wait_until(lambda: all(self.status()[c]["healthy"] for c in ("blue", "green")), "health is known")

    def status(self) -> dict[str, Any]:
        return self.agent.status("shop")

    def processes(self) -> list[tuple[str, str]]:
        """Pid and command line of master and workers; checks that the agent runs in the container are not meant."""
        listed = self.container.top(ps_args="-eo pid,args")["Processes"] or []
        found = [(pid, " ".join(words)) for pid, *words in listed]
        return [(pid, line) for pid, line in found if line.startswith("nginx: ") or " -W " in line]

    def files(self) -> dict[str, bytes]:
        """All that lbswitch wrote for the balancer, without what it is just checking."""
        paths = [path for path in sorted(self.out.rglob("*")) if path.is_file() and ".check-" not in str(path)]
        return {str(path): path.read_bytes() for path in paths}

    def show(self) -> None:
        """Print the logs."""
        print(f"--- agent\n{self.agent.log()}")
        with contextlib.suppress(AttributeError):
            print(f"--- container\n{self.container.logs().decode()}")

    def close(self) -> None:
        """End and remove everything."""
        self.engine.remove_containers()
        self.agent.close()
        for app in (self.blue, self.green, self.third):
            app.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
