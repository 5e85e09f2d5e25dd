"""Let the owner's HAProxy judge its whole configuration with our new file in it, which it has not loaded yet."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers.control import Control
from lbswitch.balancers.haproxy_guest_rendering import FILE
from lbswitch.balancers.haproxy_maps import MapFiles
from lbswitch.balancers.haproxy_owner import CommandLine, Loaded, Owner
from lbswitch.balancers.haproxy_program import alerts
from lbswitch.balancers.staging import staging
from lbswitch.core.config import BalancerConfig
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing, BalancerTooOld, CheckFailed, StateError
from lbswitch.ports import Rendered

_TIMEOUT_S = 60.0
_OLDEST = (2, 6)
_VERSION = re.compile(r"\b(\d+)\.(\d+)(?:\.(\d+))?")
_SEARCH = os.pathsep.join((os.defpath, "/usr/sbin", "/usr/local/sbin"))
_NOT_FOR_A_CHECK = re.compile(r"HAPROXY_|NOTIFY_SOCKET|LISTEN_|WATCHDOG_")  # the master's own conversation


class Whole:
    """The checker and the version of the program that runs, or that would run."""

    def __init__(self, control: Control, balancer: BalancerConfig, owner: Owner, files: MapFiles) -> None:
        """Nothing is run yet."""
        self._control = control
        self._binary = balancer.binary
        self._owner = owner
        self._files = files

    def version(self) -> str:
        """Of the program on disk. Raises: BalancerMissing, BalancerTooOld."""
        command = self._owner.command_line()
        output = self._run([self._program(command), "-v"]).output
        return readable_version(output.partition("version")[2] or output)

    def check(self, rendered: Rendered) -> None:
        """With our file in its place, or at the end if nothing leads to it yet. Raises: CheckFailed, StateError."""
        loaded = self._owner.look()
        command, base = loaded.command, loaded.base
        with self._staging() as directory:
            files = self._in_place(loaded, directory, rendered)
            argv = [self._program(command), "-c", *command.kept]
            if self._control.kind is not Kind.DOCKER or command.directory is not None:
                argv += ["-C", base]
            result = self._run([*argv, *(word for file in files for word in ("-f", file))])
        if not result.ok:
            words = alerts(result.output)
            for file, real in files.items():
                words = words.replace(file, real)
            words += self._rights(base, files)
            raise CheckFailed(f"HAProxy refuses the configuration as a whole, nothing was changed:\n{words}")

    def _in_place(self, loaded: Loaded, staging: Path, rendered: Rendered) -> dict[str, str]:
        """The files to check, in order, with the names that messages should give them."""
        stand_ins = self._stand_ins(staging)
        ours = str(self._control.seen(_write(staging / FILE, _replaced(rendered.files[0].content, stand_ins))))
        files: dict[str, str] = {}
        for number, file in enumerate(loaded.files):
            if file in loaded.ours:
                files[ours] = FILE
            else:
                files[self._without_missing(loaded.base, file, staging / f"{number}.cfg", stand_ins)] = file
        files.setdefault(ours, FILE)
        return files

    def _stand_ins(self, staging: Path) -> dict[bytes, bytes]:
        """Empty files instead of the maps that are not there yet, or not for this user."""
        found = {}
        for path in (self._files.live, self._files.weights):
            if not _readable(path):
                instead = self._control.seen(_write(staging / path.name, b""))
                found[os.fsencode(self._files.seen(path))] = os.fsencode(instead)
        return found

    def _without_missing(self, base: str, file: str, copy: Path, stand_ins: Mapping[bytes, bytes]) -> str:
        """The owner's file, or a copy if it looks into a map that is not there."""
        if not stand_ins:
            return file
        try:
            content = self._control.read(Path(base, file))
        except OSError:
            return file  # HAProxy will say what is wrong with it
        changed = _replaced(content, stand_ins)
        return file if changed == content else str(self._control.seen(_write(copy, changed)))

    def _rights(self, base: str, files: Mapping[str, str]) -> str:
        """That this user, and not HAProxy's, can't read what it needs to."""
        if self._control.kind is Kind.DOCKER or os.geteuid() == 0:
            return ""
        paths = ((Path(base, file), real) for file, real in files.items())
        closed = [real for path, real in paths if path.exists() and not _readable(path)]
        what = f": {', '.join(closed)}" if closed else ", such as TLS keys"
        return (
            f"\n(checked as user {os.geteuid()}, who may not be allowed to read all that HAProxy's master reads{what}; "
            "let it read them, by its groups or with AmbientCapabilities=CAP_DAC_READ_SEARCH in the agent's unit)"
        )

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A directory that HAProxy sees and does not load; gone afterwards. Raises: StateError, CheckFailed."""
        below = self._files.directory if self._control.kind is Kind.DOCKER else None
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(staging(below))
            except OSError as error:
                raise StateError(
                    f"nowhere to check: {error.filename}: {error.strerror}; nothing was changed"
                    + ("" if below is not None else " (TMPDIR names another directory)")
                ) from error
            yield directory

    def _program(self, command: CommandLine) -> str:
        """Raises: BalancerMissing."""
        program = self._binary or command.program
        if self._control.kind is Kind.DOCKER:
            return program
        found = shutil.which(program) or shutil.which(program, path=_SEARCH)
        if found is None:
            raise BalancerMissing(f"{program} is not a program that can be run; name it with balancer.binary")
        return found

    def _run(self, argv: Sequence[str]) -> procs.Result:
        """Where HAProxy runs, with the variables that it runs with: configurations may use them. Raises: as below."""
        try:
            if self._control.kind is Kind.DOCKER:
                return self._control.run(argv, timeout_s=_TIMEOUT_S)
            return procs.run(argv, timeout_s=_TIMEOUT_S, env=self._environment())
        except OSError as error:
            raise BalancerMissing(f"{argv[0]} can't be run: {error.strerror or error}") from error
        except procs.TimedOut as error:
            raise CheckFailed(f"{error}; nothing was changed") from error

    def _environment(self) -> dict[str, str]:
        """The running master's as far as this user may know it (proc(5), /proc/PID/environ)."""
        own = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        pid = self._control.pid()
        if pid is None:
            return own
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return own
        found = dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs if b"=" in pair)
        return own | {name: value for name, value in found.items() if not _NOT_FOR_A_CHECK.match(name)}


def readable_version(text: str) -> str:
    """Such as `2.6.12`, from `2.6.12-1+deb12u1`. Raises: BalancerMissing, BalancerTooOld."""
    match = _VERSION.search(text)
    if match is None:
        raise BalancerMissing(f"that does not answer like HAProxy: {text[:100]!r}")
    version = ".".join(part for part in match.groups() if part)
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise BalancerTooOld(
            f"HAProxy {version} is too old: committing maps to every worker through the master's socket, and seeing "
            "there that a reload failed, need 2.6 or newer"
        )
    return version


def _replaced(content: bytes, stand_ins: Mapping[bytes, bytes]) -> bytes:
    for path, instead in stand_ins.items():
        content = content.replace(path, instead)
    return content


def _write(path: Path, content: bytes) -> Path:
    """Raises: StateError."""
    try:
        path.write_bytes(content)
        path.chmod(0o644)  # the directory says who may look
    except OSError as error:
        raise StateError(f"nowhere to check: {path}: {error.strerror}; nothing was changed") from error
    return path


def _readable(path: Path) -> bool:
    """By trying: access(2) leaves capabilities out of account."""
    try:
        path.open("rb").close()
    except OSError:
        return False
    return True
