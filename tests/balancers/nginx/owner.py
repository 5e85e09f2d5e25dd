"""An nginx as somebody else configures it, in a directory of its own; lbswitch is its guest."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from lbswitch.balancers.nginx_guest import NginxGuest
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from tests.support.ports import free_port
from tests.support.wait import wait_until

_WORKERS = 2
_MAIN = """\
worker_processes {workers};
pid {base}/nginx.pid;
error_log {base}/log/error.log;
{user}
events {{
    worker_connections 768;
    # multi_accept on;
}}

http {{
    sendfile on;
    types_hash_max_size 2048;
    include mime.types;
    default_type application/octet-stream;
    access_log {base}/log/access.log;
    client_body_temp_path {base}/tmp/body;
    proxy_temp_path {base}/tmp/proxy;
    fastcgi_temp_path {base}/tmp/fastcgi;
    uwsgi_temp_path {base}/tmp/uwsgi;
    scgi_temp_path {base}/tmp/scgi;

    gzip on;
    include conf.d/*.conf;
    include {base}/etc/sites-enabled/*;
}}
"""
_DEFAULT_SITE = """\
# The default site, as Debian ships it
server {{
    listen 127.0.0.1:{default_port} default_server;
    root {base}/www;
    index index.html;
    server_name _;
    location / {{
        try_files $uri $uri/ =404;
    }}
}}
"""
_SHOP = """\
server {{
    listen 127.0.0.1:{port};
    server_name shop.example;
    include {base}/lbswitch/current/shop.server.conf;
    location / {{
        proxy_pass http://$lbswitch_shop;
        proxy_set_header Host $host;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }}
}}
"""
_TLS = """\
server {{
    listen 127.0.0.1:{tls_port} ssl;
    server_name shop.example;
    ssl_certificate tls/cert.pem;
    ssl_certificate_key tls/key.pem;
    auth_basic "owner only";
    auth_basic_user_file {base}/etc/passwords;
    deny all;
    include {base}/lbswitch/current/shop.server.conf;
    location / {{
        proxy_pass http://$lbswitch_shop;
        proxy_set_header Host $host;
    }}
}}
"""


class Owner:
    """The owner's side: his files, his processes. `base/etc` is his /etc/nginx."""

    def __init__(self, base: Path, binary: str, certificate: tuple[Path, Path] | None = None) -> None:
        self.base, self.binary = base, binary
        self.etc, self.output, self.state_dir = base / "etc", base / "lbswitch", base / "state"
        self.main = self.etc / "nginx.conf"
        self.port, self.tls_port, self.default_port = free_port(), free_port(), free_port()
        for name in ("etc/conf.d", "etc/sites-available", "etc/sites-enabled", "etc/tls", "log", "tmp", "www"):
            (base / name).mkdir(parents=True)
        (base / "www/index.html").write_text("Welcome to nginx!\n")
        self.write("nginx.conf", _MAIN, workers=_WORKERS, user="user www-data;" if os.geteuid() == 0 else "")
        self.write("mime.types", "types {{\n    text/html html;\n}}\n")
        self.write("conf.d/lbswitch.conf", "include {base}/lbswitch/current/http.conf;\n")
        self.site("default", _DEFAULT_SITE)
        self.site("shop", _SHOP)
        if certificate is not None:
            for path, name in zip(certificate, ("cert.pem", "key.pem"), strict=True):
                (self.etc / "tls" / name).write_bytes(path.read_bytes())
            self.write("passwords", "")
            self.site("tls", _TLS)

    def write(self, name: str, text: str, **values: Any) -> Path:
        """A file below etc; `{base}`, `{port}` and so on are filled in."""
        path = self.etc / name
        path.write_text(text.format(**vars(self), **values))
        return path

    def site(self, name: str, text: str) -> Path:
        """A site that is enabled by a relative symlink."""
        path = self.write(f"sites-available/{name}", text)
        link = self.etc / "sites-enabled" / name
        if not link.is_symlink():
            link.symlink_to(f"../sites-available/{name}")
        return path

    def balancer(self, **settings: Any) -> dict[str, Any]:
        """The section `balancer` of lbswitch.yaml."""
        return {
            "kind": "nginx", "managed": False, "config": str(self.main), "output_dir": str(self.output), **settings,
        }  # fmt: skip

    def fingerprint(self) -> dict[str, tuple[str, int]]:
        """Digest and time of everything that is the owner's or installed, but for logs and temporary files."""
        found = {}
        for top in (self.etc, self.output, self.base / "www"):
            for path in sorted(top.rglob("*")):
                content = b"" if path.is_dir() else path.read_bytes() if path.exists() else b"dangling"
                found[str(path)] = (hashlib.sha256(content).hexdigest(), path.lstat().st_mtime_ns)
        return found

    # -- the processes -----------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.binary, "-c", str(self.main), *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    def start(self) -> Self:
        done = self.run()
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(self.workers()) == _WORKERS, "all workers are there")
        return self

    def start_without_us(self) -> Self:
        """With the same command line, before anything of lbswitch is there to be included."""
        kept = {path: path.read_bytes() for path in (self.etc / "conf.d" / "lbswitch.conf", *self.sites())}
        times = {path: path.stat() for path in kept}
        for path in kept:
            path.write_text("")
        self.start()
        for path, content in kept.items():
            path.write_bytes(content)
            os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
        return self

    def sites(self) -> list[Path]:
        return sorted((self.etc / "sites-available").iterdir())

    def pid(self) -> int | None:
        try:
            pid = int((self.base / "nginx.pid").read_text())
            return pid if "nginx" in psutil.Process(pid).name() else None
        except (OSError, ValueError, psutil.Error):
            return None

    def workers(self) -> set[int]:
        pid = self.pid()
        return {child.pid for child in psutil.Process(pid).children()} if pid is not None else set()

    def stop(self) -> None:
        pid = self.pid()
        if pid is None:
            return
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        family[0].terminate()
        _, left = psutil.wait_procs(family, timeout=10)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)

    def error_log(self) -> str:
        return (self.base / "log/error.log").read_text()


class Guest:
    """The adapter in the owner's nginx, driven as the agent does it; `intent` is what was committed last."""

    def __init__(self, owner: Owner, services: Mapping[str, Mapping[str, Any]], **balancer: Any) -> None:
        self.owner = owner
        document = {
            "agent": {"state_dir": str(owner.state_dir)},
            "balancer": owner.balancer(binary=owner.binary, **balancer),
            "services": services,
        }
        self.config = Config.model_validate(document)
        self.nginx = NginxGuest(self.config)
        self.intent = Intent(
            {
                name: ServiceIntent(Route(service.initial), 1, service.weights is not None)
                for name, service in self.config.services.items()
            },
            1,
        )

    def install(self) -> Self:
        """Render, check, commit and install; nginx is not told."""
        rendered = self.nginx.render(self.intent)
        self.nginx.check(rendered)
        self.nginx.commit(self.intent, self.intent.services)
        self.nginx.install(rendered)
        return self

    def switch(self, color: Color | Route, service: str = "shop") -> None:
        """The next generation by the pointer alone."""
        route = color if isinstance(color, Route) else Route(color)
        generation = self.intent.generation + 1
        weighted = self.intent.services[service].weighted or route.is_split
        self.intent = self.intent.with_services({service: ServiceIntent(route, generation, weighted)}, generation)
        self.nginx.commit(self.intent, [service])

    def reload(self) -> None:
        """Install what the intent needs, reload, and wait until every listener runs it."""
        rendered = self.nginx.render(self.intent)
        self.nginx.check(rendered)
        self.nginx.install(rendered)
        self.nginx.reload()
        for name in self.intent.services:
            wait_until(lambda name=name: self.runs(name, rendered.revision), f"{name} runs {rendered.revision}")

    def runs(self, service: str, revision: str, times: int = 10) -> bool:
        return all(self.nginx.observe(service).revision == revision for _ in range(times))
