"""`control: docker`: the balancer runs in a container; it is asked through the Docker Engine."""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbswitch import procs
from lbswitch.balancers import control_container as engine
from lbswitch.balancers.control_exec import execute
from lbswitch.balancers.control_host import takes
from lbswitch.balancers.control_masters import Process, command_line, is_master_worker, masters
from lbswitch.balancers.control_mounts import Mounts
from lbswitch.core.config import BalancerConfig, BalancerKind
from lbswitch.core.config import Control as Kind
from lbswitch.errors import BalancerMissing, CheckFailed, ReloadFailed

if TYPE_CHECKING:
    from docker.models.containers import Container

_RELOAD = {BalancerKind.NGINX: "HUP", BalancerKind.HAPROXY: "USR2"}
_KILL_S = 10.0
_LIST_S = 10.0


class ControlDocker:
    """The balancer in a container of the Docker Engine that DOCKER_HOST names, by default this host's."""

    kind = Kind.DOCKER

    def __init__(self, balancer: BalancerConfig) -> None:
        """The engine is not asked before it is needed, and no connection to it is kept."""
        self._balancer = balancer.kind
        self._config = tuple(map(str, balancer.config or ()))
        self._name = str(balancer.container)
        self._paths = {Path(here): Path(there) for here, there in (balancer.container_paths or {}).items()}

    def run(self, argv: Sequence[str], *, timeout_s: float) -> procs.Result:
        """`docker exec`, as the container's user. Raises: BalancerMissing, procs.TimedOut."""
        with engine.container(self._name) as container:
            engine.require_running(container)
            return execute(container, argv, timeout_s)

    def reload(self) -> None:
        """Send SIGHUP (nginx) or SIGUSR2 (HAProxy) to the master in the container. Raises: ReloadFailed."""
        try:
            with engine.container(self._name) as container:
                engine.require_running(container)
                self._signal(container)
        except (BalancerMissing, procs.TimedOut) as error:
            raise ReloadFailed(f"{self._balancer} was not reloaded: {error}") from error

    def _signal(self, container: Container) -> None:
        found = self._masters(container)
        problem = self._problem(found)
        if problem is not None:
            raise ReloadFailed(f"{self._balancer} was not reloaded: {problem}")
        number = signal.Signals[f"SIG{_RELOAD[self._balancer]}"]
        if engine.is_here(container) and not takes(found[0].pid, number):
            raise ReloadFailed(
                f"{self._balancer} was not reloaded: it does not take {number.name} in container {self._name}; is it "
                "still starting?"
            )
        if found[0].pid == engine.first_pid(container):
            container.kill(signal=number.name)
            return
        inside = engine.pid_inside(container, found[0].pid)
        if inside is None:
            raise ReloadFailed(
                f"{self._balancer} was not reloaded: it is not the first process of container {self._name}, and its "
                "number in there can't be seen from here; let the container's command be the balancer itself"
            )
        done = execute(container, ["sh", "-c", f"kill -s {_RELOAD[self._balancer]} {inside}"], _KILL_S)
        if not done.ok:
            raise ReloadFailed(f"{self._balancer} was not reloaded: kill in container {self._name}: {done.output}")

    def pid(self) -> int | None:
        """The master; None, too, when the container's processes are not among those that are seen from here."""
        try:
            with engine.container(self._name) as container:
                found = self._masters(container) if engine.is_here(container) else []
        except BalancerMissing:
            return None
        return found[0].pid if len(found) == 1 else None

    def is_running(self) -> bool:
        """Whether a master runs in the container."""
        try:
            with engine.container(self._name) as container:
                return bool(self._masters(container))
        except BalancerMissing:
            return False

    def trouble(self) -> str | None:
        """That engine or container can't be used, or that no master, or more than one, runs in it."""
        try:
            with engine.container(self._name) as container:
                engine.require_running(container)
                return self._problem(self._masters(container))
        except BalancerMissing as error:
            return str(error)

    def arguments(self) -> list[str]:
        """The command line of the master."""
        try:
            with engine.container(self._name) as container:
                found = self._masters(container)
        except BalancerMissing:
            return []
        return command_line(found[0].argv) if len(found) == 1 else []

    def seen(self, path: Path) -> Path:
        """Where the container has this path. Raises: CheckFailed."""
        try:
            with engine.container(self._name) as container:
                mounts = Mounts(self._name, self._paths, engine.mounts(container))
        except BalancerMissing as error:
            if not self._paths:
                raise CheckFailed(f"where the container has {path} can't be known: {error}") from error
            mounts = Mounts(self._name, self._paths, ())
        return mounts.seen(path)

    def read(self, path: Path) -> bytes:
        """A file of the container, which may be stopped. Raises: OSError."""
        try:
            with engine.container(self._name) as container:
                return _member(engine.archive(container, path), path)
        except BalancerMissing as error:
            raise OSError(str(error)) from error

    def names(self, directory: Path) -> list[str]:
        """The entries of a directory of the container, which must run and have `ls`. Raises: OSError."""
        try:
            done = self.run(["ls", "-1A", str(directory)], timeout_s=_LIST_S)
        except (BalancerMissing, procs.TimedOut) as error:
            raise OSError(str(error)) from error
        if not done.ok:
            raise OSError(f"container {self._name}: {done.output.strip()}")
        return sorted(done.output.splitlines())

    def how_to(self, verb: str) -> str:
        """With docker."""
        if verb == "reload":
            return f"docker kill --signal {_RELOAD[self._balancer]} {self._name}"
        return f"docker {verb} {self._name}"

    def _masters(self, container: Container) -> list[Process]:
        found = masters(self._balancer, engine.processes(container))
        with_ours = [master for master in found if set(self._config) & set(command_line(master.argv))]
        return with_ours if len(found) > 1 and with_ours else found

    def _problem(self, found: list[Process]) -> str | None:
        if not found:
            return f"no {self._balancer} master runs in container {self._name}: docker logs {self._name}"
        if len(found) > 1:
            listed = "; ".join(" ".join(master.argv) for master in found)
            return f"several masters run in container {self._name} ({listed}), and which one is meant is not clear"
        if self._balancer is BalancerKind.HAPROXY and not is_master_worker(found[0]):
            return (
                f"HAProxy in container {self._name} runs without -W or -Ws, so there is no master that could reload; "
                "make its command: haproxy -W -db -S SOCKET -f FILE"
            )
        return None


def _member(archive: bytes, path: Path) -> bytes:
    """The only file of a tar archive. Raises: OSError."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        first = tar.next()
        content = tar.extractfile(first) if first is not None and first.isfile() else None
        if content is None:
            raise IsADirectoryError(f"{path} is no regular file")
        return content.read()
