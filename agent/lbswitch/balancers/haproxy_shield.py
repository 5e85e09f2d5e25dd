"""The shield of HAProxy: a third map says which color of a service has the other one standing by.

    STATE/haproxy/shield.map     shop green      requests for green go to the backend shop_green_shielded

It changes as the other maps do, in every worker through the Runtime API and on disk, but at other times and alone: it
says nothing of where traffic goes. A worker that starts reads the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from lbswitch.balancers import haproxy_maps, shielding
from lbswitch.balancers.haproxy_runtime import Runtime, Silent, Unanswered
from lbswitch.core.config import Config
from lbswitch.core.model import Color
from lbswitch.errors import CommitFailed
from lbswitch.files import replace_file

_UNKNOWN_MAP = "Unknown map identifier"
_HUNG_S = 0.5
_HEAD = "# Written by lbswitch: services whose new color has the other one standing by.\n"


def map_of(directory: Path) -> Path:
    """The map in the directory of the other maps."""
    return directory / "shield.map"


class HAProxyShield:
    """Keeps the map, on disk and in the workers."""

    def __init__(self, config: Config, directory: Path, runtime: Runtime, is_running: Callable[[], bool]) -> None:
        """Nothing is looked at yet; `is_running` says whether there is a master, without one only the disk changes."""
        self._config = config
        self._path = map_of(directory)
        self._runtime = runtime
        self._brief = runtime.with_timeout(_HUNG_S)
        self._is_running = is_running

    def why_not(self, service: str) -> str | None:
        """Why this service has no shield; None when it has one."""
        return shielding.why_not(self._config, service)

    def ensure(self) -> None:
        """Make the map where there is none: HAProxy starts with no map missing. Raises: OSError."""
        if not self._path.exists() and shielding.shielded(self._config):
            self._write({})

    def shielded(self) -> dict[str, Color]:
        """Who is under it by the map on disk. Raises: OSError."""
        try:
            lines = [line.split() for line in self._path.read_text(errors="replace").splitlines()]
        except FileNotFoundError:
            return {}
        colors = {str(color): color for color in Color}
        return {line[0]: colors[line[1]] for line in lines if len(line) == 2 and line[1] in colors}

    def move(self, services: Mapping[str, Color | None]) -> None:
        """Put these colors under the shield, or nobody; other services stay as they are. Raises: CommitFailed."""
        if not shielding.shielded(self._config):
            return
        try:
            before = self.shielded()
            after = shielding.merged(self._config, before, services)
            if before != after or not self._path.exists():
                self._write(after)
            self._tell_or_return(before, after)
        except (OSError, Unanswered) as error:
            raise CommitFailed(f"the shield was not moved, routes are as they were: {error}") from error

    def _tell_or_return(self, before: Mapping[str, Color], after: Mapping[str, Color]) -> None:
        """Raises: OSError, Unanswered; then all is as it was, as far as that can be said to the workers."""
        try:
            self._tell(after)
        except Unanswered:
            self._write(before)
            with contextlib.suppress(Unanswered):
                self._tell(before)
            raise

    def _write(self, services: Mapping[str, Color]) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(self._path, (_HEAD + _lines(services)).encode())

    def _tell(self, services: Mapping[str, Color]) -> None:
        """Every worker, those that drain too. Raises: Unanswered."""
        for worker, is_old in self._workers().items():
            try:
                _tell(self._brief if is_old else self._runtime, worker, str(self._path), _lines(services))
            except Unanswered as error:
                # One that ended serves nobody, and one that drains and hangs must not stand in the way.
                if not (is_old and isinstance(error, Silent)) and worker in self._workers():
                    raise

    def _workers(self) -> dict[int, bool]:
        """By pid, whether it is one from before a reload. Raises: Unanswered."""
        if not self._is_running():
            return {}
        processes = self._runtime.processes()
        old: Collection[int] = processes.draining
        return {worker: worker in old for worker in processes.workers}


def _lines(services: Mapping[str, Color]) -> str:
    return "".join(f"{name} {color}\n" for name, color in sorted(services.items()))


def _tell(runtime: Runtime, worker: int, path: str, lines: str) -> None:
    """Replace the map of one worker in one instant. Raises: Unanswered."""
    answer = runtime.ask(worker, f"prepare map {path}").strip()
    if answer.startswith(_UNKNOWN_MAP):
        return  # its configuration has no shield
    label, _, version = answer.partition("New version created: ")
    if label or not version.isdigit():
        raise Unanswered(f"worker {worker} says: {answer[:200]}")
    for chunk in haproxy_maps.chunks(lines):
        runtime.feed(worker, f"add map @{version} {path}", chunk)
    runtime.tell(worker, [f"commit map @{version} {path}"])
