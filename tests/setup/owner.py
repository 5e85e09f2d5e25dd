"""Somebody else's nginx and HAProxy, really running: the packaged files, with sites of an operator."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from tests.support.agent import Agent, Said, _environment, make_short_directory
from tests.support.ports import free_port
from tests.support.wait import wait_until

PACKAGED_NGINX = Path("/etc/nginx")
PACKAGED_HAPROXY = Path("/etc/haproxy")

_TLS_SITE = """\
# the shop, by its operator\r
upstream shop_blue {{\r
    server {blue};\r
}}\r
upstream shop_green {{ server {green}; }}\r
\r
server {{\r
    listen 127.0.0.1:{tls} ssl;   # no default site\r
    server_name shop.example www.shop.example;\r
    ssl_certificate {directory}/shop.pem;\r
    ssl_certificate_key {directory}/shop.key;\r
\r
    location / {{\r
        proxy_pass http://shop_blue;   # switched by hand until now\r
        proxy_set_header Host $host;\r
    }}\r
    location = /robots.txt {{ return 200 "none"; }}\r
}}"""


class Owner:
    """A directory with the owner's files; `snapshot` is all that init may not change unasked."""

    def __init__(self) -> None:
        self.directory = make_short_directory()
        self.etc = self.directory / "etc"
        self.config_path = self.directory / "lbswitch.yaml"
        self.state_dir = self.directory / "state"
        self.socket = self.directory / "agent.sock"
        self.env = _environment()

    def snapshot(self) -> dict[str, tuple[str, int, int, int]]:
        """Digest or target, mode and owner of everything in etc/ that is not lbswitch's own directory."""
        found = {}
        for path in sorted(self.etc.rglob("*")):
            if "lbswitch" in path.relative_to(self.etc).parts[:-1] or path.name == "lbswitch":
                continue
            status = path.lstat()
            what = (
                str(path.readlink())
                if path.is_symlink()
                else "directory"
                if path.is_dir()
                else hashlib.sha256(path.read_bytes()).hexdigest()
            )
            found[str(path)] = (what, status.st_mode, status.st_uid, status.st_gid)
        return found

    def serves(self) -> str:
        """The color that a client reaches."""
        return self.get(self.url, host="shop.example").partition(" ")[0]

    def agent(self) -> Agent:
        """Its agent, not yet started."""
        return _GuestsAgent(self)

    def close(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.processes(), timeout=10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """The owner's balancer: its master and its workers."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline", "name"]):
            if not str(process.info["name"]).startswith(("nginx", "haproxy")):
                continue
            if any(str(self.directory) in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found |= {each.pid: each for each in [process, *process.children(recursive=True)]}
        return list(found.values())

    def get(self, url: str, *, host: str | None = None) -> str:
        """The body of an answer."""
        argv = ["curl", "-sk", "-m", "5", url, *(["-H", f"Host: {host}"] if host else [])]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20).stdout

    def _substitute(self, path: Path, *pairs: tuple[str, str]) -> None:
        text = path.read_bytes()
        for old, new in pairs:
            text = text.replace(old.encode(), new.encode())
        path.write_bytes(text)


class _GuestsAgent(Agent):
    """An agent with the configuration that init wrote; the balancer is not its to stop."""

    def __init__(self, owner: Owner) -> None:
        self._is_ours = False
        self.directory = owner.directory
        self.config_path, self.state_dir, self.socket = owner.config_path, owner.state_dir, owner.socket
        self.log_path = owner.directory / "agent.log"
        self.env = owner.env
        self._process = None

    def balancer_kill(self) -> int:
        return 0


class NginxOwner(Owner):
    """Debian's nginx with its default site, and the operator's `shop` with TLS in sites-available."""

    def __init__(self, blue: str, green: str) -> None:
        super().__init__()
        self.root = self.etc / "nginx"
        self.main = self.root / "nginx.conf"
        self.port, self.tls = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.tls}/"
        self.plain_url = f"http://127.0.0.1:{self.port}/"
        shutil.copytree(PACKAGED_NGINX, self.root, symlinks=True)
        self._relocate()
        self._add_site(blue, green)

    def _relocate(self) -> None:
        for name in ("log", "run", "www"):
            (self.directory / name).mkdir()
        (self.directory / "www" / "index.html").write_text("the default site\n")
        for path in [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]:
            self._substitute(
                path,
                ("/etc/nginx", str(self.root)),
                ("/var/log/nginx", str(self.directory / "log")),
                ("/run/nginx.pid", str(self.directory / "run" / "nginx.pid")),
                ("/var/www/html", str(self.directory / "www")),
                ("listen 80 default", f"listen 127.0.0.1:{self.port} default"),
                ("\tlisten [::]:80 default_server;\n", ""),
                *((("user www-data;\n", ""),) if os.geteuid() else ()),
            )
        for link in [path for path in self.root.rglob("*") if path.is_symlink()]:
            target = str(link.readlink())
            link.unlink()
            link.symlink_to(target.replace("/etc/nginx", str(self.root)))

    def _add_site(self, blue: str, green: str) -> None:
        certificate(self.directory)
        self.site = self.root / "sites-available" / "shop"
        text = _TLS_SITE.format(blue=blue, green=green, tls=self.tls, directory=self.directory)
        self.site.write_bytes(text.encode())
        self.site.chmod(0o640)
        (self.root / "sites-enabled" / "shop").symlink_to("../sites-available/shop")

    def start(self) -> "NginxOwner":
        subprocess.run([_nginx(), "-c", str(self.main)], check=True, timeout=20)
        wait_until(lambda: self.get(self.plain_url), "nginx answers")
        return self

    def reload(self) -> None:
        os.kill(int((self.directory / "run" / "nginx.pid").read_text()), signal.SIGHUP)

    def init_options(self) -> list[str]:
        return ["--nginx-config", str(self.main), "--state-dir", str(self.state_dir), "--socket", str(self.socket)]


class HAProxyOwner(Owner):
    """Debian's HAProxy with the operator's frontend and backends; `given` is what follows each -f."""

    def __init__(self, blue: str, green: str, *, directory: bool = False, frontend: str = "") -> None:
        super().__init__()
        self.root = self.etc / "haproxy"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        shutil.copytree(PACKAGED_HAPROXY, self.root, symlinks=True)
        self.main = self.root / "haproxy.cfg"
        self.master_socket = self.directory / "master.sock"
        run = self.directory / "run"
        run.mkdir()
        text = self.main.read_text().replace("/etc/haproxy", str(self.root)).replace("/run/haproxy", str(run))
        text = re.sub(r"^\s*(log\s+/dev/log|chroot|user|group|daemon|.*-base).*\n", "", text, flags=re.MULTILINE)
        text += _HAPROXY_SITE.format(port=self.port, blue=blue, green=green, frontend=frontend)
        self.main.write_text(text)
        self.given = [self.main]
        if directory:
            (self.root / "conf.d").mkdir()
            self.given.append(self.root / "conf.d")

    def start(self, *more: str) -> "HAProxyOwner":
        files = [word for path in self.given for word in ("-f", str(path))]
        argv = [
            _haproxy(),
            "-W",
            "-D",
            "-p",
            str(self.directory / "run" / "haproxy.pid"),
            "-S",
            str(self.master_socket),
        ]
        subprocess.run([*argv, *files, *more], check=True, timeout=20, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.get(self.url), "HAProxy answers")
        return self

    def init_options(self) -> list[str]:
        files = [word for path in self.given for word in ("--haproxy-config", str(path))]
        return [*files, "--state-dir", str(self.state_dir), "--socket", str(self.socket)]


_HAPROXY_SITE = """
# the shop, by its operator
frontend web
\tbind 127.0.0.1:{port}
\tacl is_static path_beg /static
\tuse_backend static if is_static
{frontend}\tdefault_backend shop_blue

backend shop_blue
\tserver one {blue} check
backend shop_green
\tserver one {green} check
backend static
\thttp-request return status 200 content-type text/plain string static
"""


def certificate(directory: Path) -> None:
    """A self-signed one."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "30", "-subj", "/CN=shop.example"]
    argv += ["-keyout", str(directory / "shop.key"), "-out", str(directory / "shop.pem")]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


def _nginx() -> str:
    return shutil.which("nginx") or "/usr/sbin/nginx"


def _haproxy() -> str:
    return shutil.which("haproxy") or "/usr/sbin/haproxy"


def run(owner: Owner, *arguments: str, stdin: int = subprocess.DEVNULL) -> Said:
    """A command of lbswitch as a process of its own, with the owner's lbswitch.yaml."""
    import json
    import sys

    program = "import sys; from lbswitch.cli.main import main; sys.exit(main())"
    argv = [sys.executable, "-c", program, "--config", str(owner.config_path), *arguments]
    done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, env=owner.env, timeout=60, check=False)
    try:
        return Said(done.returncode, json.loads(done.stdout))
    except ValueError:
        return Said(done.returncode, done.stdout + done.stderr)
