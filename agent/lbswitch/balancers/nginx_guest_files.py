"""Which files of an owner's nginx are ours, and what he has beside them."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from lbswitch.balancers.control import Control
from lbswitch.core.config import Control as Kind
from lbswitch.ports import Rendered

HTTP_FILE = "http.conf"
TRAFFIC_FILE = "traffic.conf"
_MOST_LINKS = 40  # as the kernel (path_resolution(7))


def server_file(service: str) -> str:
    """The file with the choice of color of a service."""
    return f"{service}.server.conf"


class GuestFiles:
    """Files by the paths of nginx, as `nginx_config.gather` wants them; ours are empty. For one look at them.

    With a candidate `output/current` holds its files, whatever is installed.
    """

    def __init__(self, control: Control, output: Path, candidate: Rendered | None = None) -> None:
        """`output` as this host has it. Raises: CheckFailed when nginx does not see it."""
        self._control = control
        self._is_here = control.kind is not Kind.DOCKER
        self.output = str(control.seen(output))
        self._real = os.path.realpath(output) if self._is_here else posixpath.normpath(self.output)
        self._candidate = None if candidate is None else sorted(file.name for file in candidate.files)
        self._listed: dict[str, list[str]] = {}
        self._names: dict[str, str | None] = {}
        self._currents: dict[str, bool] = {}

    def name_of(self, path: str) -> str | None:
        """Which of our files that is, there or not: `http.conf`; None for a file that is not ours."""
        if path not in self._names:
            self._names[path] = self._find_name(path)
        return self._names[path]

    def _find_name(self, path: str) -> str | None:
        for _ in range(_MOST_LINKS):
            directory, name = posixpath.split(path)
            if self._is_current(directory):
                return name
            link = self._link(path)
            if link is None:
                return None
            path = posixpath.join(directory, link)
        return None

    def read(self, path: str) -> bytes:
        """A file; ours hold nothing that leads further. Raises: OSError."""
        return b"" if self.name_of(path) is not None else self._control.read(Path(path))

    def names(self, directory: str) -> list[str]:
        """What is in a directory. Raises: OSError."""
        if self._candidate is not None and self._is_current(directory.rstrip("/")):
            return self._candidate
        if directory not in self._listed:
            self._listed[directory] = self._control.names(Path(directory))
        return self._listed[directory]

    def _is_current(self, directory: str) -> bool:
        if directory not in self._currents:
            self._currents[directory] = self._leads_to_current(directory)
        return self._currents[directory]

    def _leads_to_current(self, directory: str) -> bool:
        for _ in range(_MOST_LINKS):
            above, name = posixpath.split(directory)
            if name == "current" and self._resolved(above) == self._real:
                return True
            link = self._link(directory)
            if link is None:
                return False
            directory = posixpath.normpath(posixpath.join(above, link))
        return False

    def _resolved(self, path: str) -> str:
        return os.path.realpath(path) if self._is_here else posixpath.normpath(path)

    def _link(self, path: str) -> str | None:
        """Where a symlink points; in a container nobody looks."""
        try:
            return str(Path(path).readlink()) if self._is_here else None
        except OSError:
            return None
