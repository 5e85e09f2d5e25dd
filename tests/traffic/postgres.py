"""A PostgreSQL server of a test's own: in a private directory, on a unix socket, as another user than root."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from tests.support.wait import wait_until

_START_S = 60.0


def programs() -> Path | None:
    """Where the newest one is; Debian has them beside the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    path = shutil.which("postgres")
    return Path(path).resolve().parent if path else None


class Postgres:
    """One server; `superuser` is its owner and is let in without a password, everybody else needs one."""

    superuser = "owner"

    def __init__(self, directory: Path, **settings: object) -> None:
        bin_directory = programs()
        assert bin_directory is not None
        self._bin = bin_directory
        self.directory = directory
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._as:
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
        self._make(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def _make(self, settings: dict[str, object]) -> None:
        argv = [str(self._bin / "initdb"), "-D", str(self.directory / "data"), "-U", self.superuser, "--no-sync"]
        done = subprocess.run(
            [*self._as, *argv, "-A", "trust", "-E", "UTF8", "--no-locale"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.directory,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (self.directory / "data" / "pg_hba.conf").write_text(
            f"local all {self.superuser} trust\nlocal all all scram-sha-256\n"
        )
        lines = {
            **{"listen_addresses": "''", "unix_socket_directories": f"'{self.directory}'", "fsync": "off"},
            **{"max_connections": 10, "superuser_reserved_connections": 2, "shared_buffers": "1MB"},
            **{"max_wal_senders": 0, "autovacuum": "off", **settings},
        }
        with (self.directory / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())

    @property
    def dsn(self) -> str:
        """For the superuser."""
        return f"host={self.directory} user={self.superuser} dbname=postgres"

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._bin / "postgres"), "-D", str(self.directory / "data")],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._answers, f"PostgreSQL answers:\n{(self.directory / 'log').read_text()}", _START_S)

    def _answers(self) -> bool:
        argv = [str(self._bin / "pg_isready"), "-q", "-h", str(self.directory)]
        return subprocess.run(argv, timeout=30).returncode == 0

    def stop(self) -> None:
        """At once, cutting all connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def backends(self) -> list[int]:
        """The server's processes, the first one first."""
        assert self._process is not None
        return [self._process.pid, *(child.pid for child in psutil.Process(self._process.pid).children())]

    def clients(self) -> int:
        """How many processes serve one, by the titles that they give themselves."""
        found = 0
        for pid in self.backends():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += "[local]" in " ".join(psutil.Process(pid).cmdline())
        return found

    def freeze(self) -> None:
        """Connections are taken and nobody answers."""
        for pid in self.backends():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in reversed(self.backends()):
            os.kill(pid, signal.SIGCONT)
