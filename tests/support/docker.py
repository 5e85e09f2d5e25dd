"""A real Docker Engine for tests: the one that answers, or one of their own, with a Debian 13 image for containers.

`open_engine` gives it or raises `Unavailable` with the reason. An engine of our own lives in a directory of its own,
with its own socket, and is ended, unmounted and removed at the end.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import docker
import docker.errors
import psutil
from docker.models.containers import Container

from tests.support.wait import wait_until

SUITE, PACKAGES = "trixie", "nginx,haproxy"
_DEBOOTSTRAP_S = 600
_ENGINE_S = 30.0
_NOT_IN_THE_IMAGE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")


class Unavailable(Exception):
    """Why there can be no Docker Engine or no image here."""


class Engine:
    """A Docker Engine and the image; `run` starts containers, all of which `close` removes with the image."""

    def __init__(self, host: str, base: Path) -> None:
        """`host` is its DOCKER_HOST; `base` the image's root as a tar archive."""
        self.host = host
        self.client = docker.DockerClient(host, timeout=60)
        self._mark = f"lbswitch-test-{uuid.uuid4().hex[:8]}"
        self.client.api.import_image(str(base), repository=self._mark, tag="1")

    @property
    def env(self) -> dict[str, str]:
        """What programs need in their environment to reach it."""
        return {"DOCKER_HOST": self.host}

    def run(self, argv: Sequence[str], mounts: Mapping[Path, str], name: str | None = None) -> Container:
        """Start a container on this host's network; `mounts` says where it has directories and files of ours.

        Those that it writes to are below a directory named `rw`.
        """
        volumes = {
            str(here): {"bind": there, "mode": "rw" if "rw" in here.parts else "ro"} for here, there in mounts.items()
        }
        return self.client.containers.run(
            f"{self._mark}:1",
            list(argv),
            name=name or f"{self._mark}-{uuid.uuid4().hex[:6]}",
            labels={"lbswitch-test": self._mark},
            network_mode="host",
            volumes=volumes,
            detach=True,
        )

    def remove_containers(self) -> None:
        """End and remove all containers that were run."""
        for container in self.client.containers.list(all=True, filters={"label": f"lbswitch-test={self._mark}"}):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)

    def close(self) -> None:
        """Leave nothing in the engine."""
        self.remove_containers()
        self.client.images.remove(f"{self._mark}:1", force=True)
        self.client.close()


@contextlib.contextmanager
def open_engine() -> Iterator[Engine]:
    """An engine with the image. Raises: Unavailable."""
    base = _base()
    with contextlib.ExitStack() as stack:
        engine = Engine(_answering() or stack.enter_context(_own_engine()), base)
        stack.callback(engine.close)
        yield engine


# -- the engine --------------------------------------------------------------------------------------------------------


def _answering() -> str | None:
    """The DOCKER_HOST of an engine that is there already."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not _listens(host):
        return None
    try:
        with contextlib.closing(docker.DockerClient(host, timeout=5)) as client:
            client.ping()
    except (docker.errors.DockerException, OSError):
        return None
    return host


def _listens(host: str) -> bool:
    """Whether a client may try: docker's own leaves sockets open when nobody is there."""
    if not host.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(host.removeprefix("unix://"))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _own_engine() -> Iterator[str]:
    """Start dockerd by hand. Raises: Unavailable."""
    program = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Unavailable("no Docker Engine answers and there is no dockerd: apt-get install docker.io")
    if os.geteuid() != 0:
        raise Unavailable("no Docker Engine answers, and only root can start one")
    directory = Path(tempfile.mkdtemp(prefix="lbsdk", dir="/tmp"))
    log = directory / "dockerd.log"
    host = f"unix://{directory}/docker.sock"
    (directory / "dockerd.json").write_text("{}")  # not the host's own
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                _dockerd(program, directory, host), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            _await(process, host, log)
            yield host
        finally:
            _end(process)
    finally:
        _remove(directory)


def _dockerd(program: str, directory: Path, host: str) -> list[str]:
    return [
        *(program, "-H", host),
        *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
        *("--pidfile", str(directory / "dockerd.pid"), "--config-file", str(directory / "dockerd.json")),
        *("--bridge=none", "--iptables=false", "--ip6tables=false"),  # containers use this host's network
    ]


def _await(process: "subprocess.Popen[bytes]", host: str, log: Path) -> None:
    with contextlib.suppress(AssertionError):
        wait_until(lambda: process.poll() is not None or _listens(host), "dockerd listens", _ENGINE_S)
    if process.poll() is not None or not _listens(host):
        raise Unavailable(f"dockerd does not work here: {_tail(log)}")


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It ends its containerd; if it had to be killed, that is ended by us."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    for left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def _remove(directory: Path) -> None:
    """Without its mounts, innermost first: dockerd leaves some of its own."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if Path(p).is_relative_to(directory)), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


# -- the image ---------------------------------------------------------------------------------------------------------


def _base() -> Path:
    """The root of a small Debian with both balancers, made once. Raises: Unavailable."""
    directory = Path(
        os.environ.get("LBSWITCH_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "lbswitch-test")
    )
    identity = hashlib.sha256(f"{SUITE} {PACKAGES} {_NOT_IN_THE_IMAGE}".encode()).hexdigest()[:8]
    path = directory / f"{SUITE}-{platform.machine()}-{identity}.tar"
    if path.exists():
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a")
    except OSError as error:
        raise Unavailable(f"no cache for the image: {error}; LBSWITCH_TEST_CACHE names another directory") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make_base(path)
    return path


def _make_base(path: Path) -> None:
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Unavailable("there is no debootstrap to make the image with: apt-get install debootstrap")
    if os.geteuid() != 0:
        raise Unavailable("only root can make the image with debootstrap")
    with tempfile.TemporaryDirectory(prefix="lbsdk") as work:
        root, archive = Path(work, "root"), path.with_suffix(".new")
        try:
            _run([program, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)])
            for unneeded in _NOT_IN_THE_IMAGE:
                shutil.rmtree(root / unneeded, ignore_errors=True)
            _run(["tar", "--numeric-owner", "--exclude=./dev/*", "-C", str(root), "-cf", str(archive), "."])
            archive.rename(path)
        finally:
            archive.unlink(missing_ok=True)


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=_DEBOOTSTRAP_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        said = " | ".join((done.stdout + done.stderr).splitlines()[-3:])
        raise Unavailable(f"{Path(argv[0]).name} failed: {said}")
