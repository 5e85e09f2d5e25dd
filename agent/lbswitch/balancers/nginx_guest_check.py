"""`nginx -t` of the owner's whole configuration with a candidate in it, of which nothing is installed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers import nginx_view
from lbswitch.balancers.control import Control
from lbswitch.balancers.nginx_binary import Program
from lbswitch.balancers.nginx_guest_files import HTTP_FILE, TRAFFIC_FILE
from lbswitch.balancers.nginx_guest_shadow import Shadow
from lbswitch.balancers.nginx_pointer import make_directory
from lbswitch.balancers.staging import staging
from lbswitch.balancers.tls_files import user_name
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing, CheckFailed
from lbswitch.ports import Rendered

_CHECK_S = 60.0  # a thousand services with host names to resolve
_LONGEST_SOCKET = 107  # unix(7)
# What nginx opens once all files are read has no line; what may be opened here says nothing about the configuration.
_RIGHTS = re.compile(r"\[emerg\] .*\((?:1: Operation not permitted|13: Permission denied)\)$")
_READ_ONLY = re.compile(r"\[emerg\] .*\(30: Read-only file system\)$")  # of the agent's unit, or of the container


class Checker:
    """Judges shadows with the program that runs, where it runs."""

    def __init__(self, control: Control, program: Program, options: Sequence[str], output: Path) -> None:
        """`options` are those of the running master; `output` is where a container can see what is staged."""
        self._control, self._program, self._options, self._output = control, program, options, output

    def check(self, shadow: Shadow, candidate: Rendered) -> None:
        """Nothing is left behind. Raises: CheckFailed with nginx's words."""
        with self._staging() as directory:
            seen = str(self._control.seen(directory))
            try:
                shadow.write(directory, seen)
                self._judge(shadow, [*self._options, "-c", shadow.main])
                apart = self._apart(shadow, candidate, seen)
                if apart is not None:
                    (directory / "apart.conf").write_text(apart)
                    (directory / "apart.conf").chmod(0o644)
                    make_directory(directory / "tmp")
                    self._judge(shadow, ["-p", seen, "-c", f"{seen}/apart.conf"])
            except (OSError, procs.TimedOut, BalancerMissing) as error:
                raise CheckFailed(f"nginx -t could not judge the configuration: {error}") from error

    def _judge(self, shadow: Shadow, arguments: Sequence[str]) -> None:
        argv = [self._program.path, "-t", "-q", *arguments, "-e", "stderr"]
        result = self._control.run(argv, timeout_s=_CHECK_S)
        if result.ok or self._is_about_rights(result.output):
            return
        said = shadow.explain(result.output)
        if "ermission denied" in said and os.geteuid() != 0:
            said += f"; lbswitch checks as {user_name()}: let this user read it (docs/service-files.md)"
        raise CheckFailed(f"nginx refused the configuration: {said}")

    def _is_about_rights(self, output: str) -> bool:
        """Whether all was read and found good, and only then something could not be opened from here."""
        is_restricted = os.geteuid() != 0 or self._control.kind is Kind.DOCKER
        complaints = [line for line in output.splitlines() if "[emerg]" in line]
        return bool(complaints) and all(
            _READ_ONLY.search(line) or (is_restricted and _RIGHTS.search(line)) for line in complaints
        )

    def _apart(self, shadow: Shadow, candidate: Rendered, seen: str) -> str | None:
        """A small configuration with those of our files that the owner does not include yet."""
        included = shadow.included
        # The check would open the log, whose directory the agent makes only when it reads.
        missing = [file.name for file in candidate.files if file.name not in {*included, TRAFFIC_FILE}]
        if not missing or len(f"{seen}/s") > _LONGEST_SOCKET:
            return None
        temp = nginx_view.temp_paths(self._program)
        lines = [
            "pid pid;",
            "error_log stderr;",
            "events {}",
            "http {",
            "access_log off;",
            "variables_hash_max_size 8192;",
        ]
        lines += [f"{name}_temp_path tmp/{name};" for name in temp]
        lines += [f"include {seen}/ours/{HTTP_FILE};", "server {", f"listen unix:{seen}/s;"]
        lines += [f"include {seen}/ours/{name};" for name in missing if name != HTTP_FILE]
        return "\n".join([*lines, "}", "}", ""])

    # -- a place for it ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """An empty directory that nginx can see, for nobody else to look into. Raises: CheckFailed."""
        below = self._output if self._control.kind is Kind.DOCKER else None
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(staging(below))
            except OSError as error:
                raise CheckFailed(
                    f"nowhere to check: {error.strerror}: {error.filename}; nothing was changed"
                ) from error
            yield directory
