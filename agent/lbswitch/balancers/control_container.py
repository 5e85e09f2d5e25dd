"""One container of a Docker Engine: reached for a moment, with errors that say what to do."""

from __future__ import annotations

import contextlib
import getpass
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbswitch.balancers import control_host
from lbswitch.balancers.control_masters import Process
from lbswitch.errors import BalancerMissing

if TYPE_CHECKING:
    from docker.models.containers import Container

_ANSWER_S = 30
_SOCKET = "unix:///var/run/docker.sock"
_SHOWN = 8


@contextlib.contextmanager
def container(name: str) -> Iterator[Container]:
    """The container as it is now; the connection ends with the block. Raises: BalancerMissing, also for the block."""
    import docker
    import requests
    from docker.errors import APIError, DockerException, NotFound

    try:
        client = docker.from_env(timeout=_ANSWER_S)
    except DockerException as error:
        raise BalancerMissing(_no_engine(error)) from error
    try:
        try:
            found = client.containers.get(name)
        except NotFound as error:
            names = sorted(str(other.name) for other in client.containers.list(all=True, ignore_removed=True))
            raise BalancerMissing(_no_container(name, names)) from error
        yield found
    except APIError as error:
        raise BalancerMissing(f"container {name}: the Docker Engine says: {error.explanation or error}") from error
    except (DockerException, requests.RequestException) as error:
        raise BalancerMissing(_no_engine(error)) from error
    finally:
        client.close()


def require_running(container: Container) -> None:
    """Raises: BalancerMissing for one that is stopped, paused or restarting."""
    state: dict[str, Any] = container.attrs["State"]
    status, name, code = state.get("Status", ""), container.name, state.get("ExitCode", 0)
    if state.get("Restarting"):
        raise BalancerMissing(f"container {name} is restarting again and again (exit code {code}): docker logs {name}")
    if state.get("Paused"):
        raise BalancerMissing(f"container {name} is paused: docker unpause {name}")
    if not state.get("Running"):
        how = "never started" if status == "created" else f"exit code {code}"
        why = f", {state['Error']}" if state.get("Error") else ""
        raise BalancerMissing(f"container {name} is stopped ({how}{why}); start it: docker start {name}")


def first_pid(container: Container) -> int:
    """The container's first process, as the engine's host counts; 0 when it is stopped."""
    return int(container.attrs["State"].get("Pid") or 0)


def is_here(container: Container) -> bool:
    """Whether the container's processes are seen from here: the engine may be on another host or outside of ours."""
    try:
        return str(container.id) in Path(f"/proc/{first_pid(container)}/cgroup").read_text()
    except OSError:
        return False


def processes(container: Container) -> list[Process]:
    """What runs in the container, with the pids of the engine's host; empty when it is stopped."""
    if first_pid(container) == 0:
        return []
    if is_here(container):
        return _family(first_pid(container))
    listed = container.top(ps_args="-eo pid,ppid,args")["Processes"] or []
    return [Process(int(pid), int(parent), tuple(" ".join(words).split())) for pid, parent, *words in listed]


def _family(first: int) -> list[Process]:
    """A process and all below it; orphans in a container become children of its first process."""
    import psutil

    try:
        pids = [first, *(child.pid for child in psutil.Process(first).children(recursive=True))]
    except psutil.Error:
        return []
    return [found for pid in pids if (found := control_host.process(pid)) is not None]


def pid_inside(container: Container, pid: int) -> int | None:
    """A process's number inside the container (proc_pid_status(5), NSpid); None when it can't be seen from here."""
    if not is_here(container):
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)


def mounts(container: Container) -> list[tuple[Path, Path]]:
    """Directories and files of the host, each with where the container has it."""
    listed = container.attrs.get("Mounts") or []
    return [(Path(mount["Source"]), Path(mount["Destination"])) for mount in listed if mount.get("Source")]


def archive(container: Container, path: Path) -> bytes:
    """A tar archive of a path of the container, its last link followed. Raises: FileNotFoundError."""
    from docker.errors import NotFound

    try:
        chunks, status = container.get_archive(str(path))
        if status is not None and _is_link(status):
            b"".join(chunks)  # read to the end, or the connection stays open
            chunks, _ = container.get_archive(status["linkTarget"])
    except NotFound as error:
        raise FileNotFoundError(f"container {container.name} has no {path}") from error
    return b"".join(chunks)


def _is_link(status: dict[str, Any]) -> bool:
    return bool(status.get("linkTarget")) and not stat.S_ISREG(int(status.get("mode", 0)) & 0o170000)


# -- words -----------------------------------------------------------------------------------------------------


def _no_engine(error: BaseException) -> str:
    where = os.environ.get("DOCKER_HOST") or _SOCKET
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return (
            f"the user {_me()} may not use the Docker Engine at {where}: add it to the socket's group, usually docker, "
            "which is as good as root (docs/service-files.md)"
        )
    if any(isinstance(cause, FileNotFoundError | ConnectionError) for cause in causes):
        return f"no Docker Engine answers at {where}: systemctl start docker, or set DOCKER_HOST for the agent"
    return f"the Docker Engine at {where} can't be used: {error}"


def _causes(error: object) -> Iterator[object]:
    """The error and what is inside it: docker, requests and urllib3 each wrap the one that says what happened."""
    yield error
    if isinstance(error, BaseException):
        for inner in (*error.args, error.__cause__ or error.__context__):
            if isinstance(inner, BaseException):
                yield from _causes(inner)


def _no_container(name: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = f"there are {', '.join(names[:_SHOWN])}{more}" if names else "there are none at all"
    return f"there is no container {name} ({listed}); name the right one with balancer.container"


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())
