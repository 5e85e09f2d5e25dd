"""The `haproxy` program: where it is, which version, and what its checker says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from lbswitch import procs
from lbswitch.errors import BalancerMissing, BalancerTooOld, CheckFailed

_ELSEWHERE = ("/usr/sbin", "/usr/local/sbin")  # not on the PATH of ordinary users
_TIMEOUT_S = 60.0
_OLDEST = (2, 6)
_VERSION = re.compile(r"\bversion (\d+)\.(\d+)(?:\.(\d+))?")
_LABEL = re.compile(r"^\[(ALERT|WARNING|NOTICE)\]\s*(?:\d+/\d+\s*)?\(\d+\) : ")


class Program:
    """The program named in the configuration, or the one that is found."""

    def __init__(self, configured: str | None) -> None:
        """Nothing is looked up before it is needed."""
        self._configured = configured
        self._known: tuple[tuple[str, int], str] | None = None

    @property
    def path(self) -> str:
        """The program's file. Raises: BalancerMissing."""
        if self._configured is not None:
            if not os.access(self._configured, os.X_OK):
                raise BalancerMissing(f"balancer.binary: {self._configured} is not a program that can be run")
            return self._configured
        found = shutil.which("haproxy") or shutil.which("haproxy", path=os.pathsep.join(_ELSEWHERE))
        if found is None:
            raise BalancerMissing(
                "haproxy is not installed: `apt install haproxy` or `dnf install haproxy`, or name the program with "
                "balancer.binary"
            )
        return found

    def version(self) -> str:
        """Such as `2.6.12`. Raises: BalancerMissing, BalancerTooOld."""
        path = self.path
        state = (path, Path(path).stat().st_mtime_ns)
        if self._known is None or self._known[0] != state:
            self._known = (state, self._ask_version(path))
        return self._known[1]

    def _ask_version(self, path: str) -> str:
        output = self.run(["-v"])[1]
        match = _VERSION.search(output)
        if match is None:
            raise BalancerMissing(f"{path} -v does not answer like HAProxy: {output[:100]!r}")
        version = ".".join(part for part in match.groups() if part)
        if (int(match[1]), int(match[2])) < _OLDEST:
            raise BalancerTooOld(
                f"HAProxy {version} ({path}) is too old: committing maps to every worker through the master's socket, "
                "and seeing there that a reload failed, need 2.6 or newer"
            )
        return version

    def run(self, arguments: list[str]) -> tuple[bool, str]:
        """Whether it exited with 0, and what it wrote. Raises: BalancerMissing."""
        path = self.path
        # Its own small environment: the daemon keeps it, and the agent's may hold sockets and secrets of systemd.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        try:
            result = procs.run([path, *arguments], timeout_s=_TIMEOUT_S, env=environment)
        except OSError as error:
            raise BalancerMissing(f"{path} can't be run: {error.strerror}") from error
        except procs.TimedOut as error:
            return False, str(error)
        return result.ok, result.output

    def check(self, directory: Path) -> None:
        """Let HAProxy judge the configuration in this directory. Raises: CheckFailed with its alerts."""
        ok, output = self.run(["-c", "-C", str(directory), "-f", "haproxy.cfg"])
        if not ok:
            words = alerts(output).replace(f"{directory}/", "")
            raise CheckFailed(f"HAProxy refuses the configuration, nothing was changed:\n{words}")


def alerts(output: str) -> str:
    """The lines of HAProxy's output that say what is wrong, without labels and process ids."""
    kept, is_alert = [], False
    for line in output.splitlines():
        label = _LABEL.match(line)
        is_alert = label[1] == "ALERT" if label else is_alert
        if is_alert and line.strip():
            kept.append(line[label.end() :] if label else line)
    return "\n".join(kept) or output.strip()
