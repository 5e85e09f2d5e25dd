"""`control: docker` on a real engine: programs, files and signals of a container in all its states."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from docker.models.containers import Container

from lbswitch import procs
from lbswitch.balancers import control
from lbswitch.balancers.control import Control
from lbswitch.core.config import BalancerConfig
from lbswitch.errors import BalancerMissing, CheckFailed, ReloadFailed
from tests.support.docker import Engine
from tests.support.wait import wait_until

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.timeout(300)]
IDLE = ["sleep", "300"]
RunContainer = Callable[..., Container]
NGINX_CONF = "events {}\nhttp { access_log off; server { listen unix:/run/nginx.sock; } }\n"
HAPROXY_CFG = """defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend web
    bind /run/web.sock
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What is mounted as /etc/ours."""
    directory = tmp_path / "ours"
    (directory / "rendered").mkdir(parents=True)
    (directory / "rendered" / "http.conf").write_text("rendered")
    (directory / "current").symlink_to("rendered")
    (directory / "link.conf").symlink_to("current/http.conf")
    (directory / "nginx.conf").write_text(NGINX_CONF)
    (directory / "haproxy.cfg").write_text(HAPROXY_CFG)
    return directory


@pytest.fixture
def run(engine: Engine, files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunContainer]:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    with contextlib.ExitStack() as stack:

        def make(argv: list[str]) -> Container:
            container = engine.run(argv, {files: "/etc/ours"})
            stack.callback(container.remove, force=True)
            return container

        yield make


def controlled(container: Container, kind: str = "nginx") -> Control:
    master_socket = {"master_socket": "/run/nowhere.sock"} if kind == "haproxy" else {}
    document = {"kind": kind, "managed": False, "config": ["/etc/ours/nginx.conf"], "output_dir": "/x", **master_socket}
    return control.make(
        BalancerConfig.model_validate({**document, "control": "docker", "container": str(container.name)})
    )


def test_programs_run_in_the_container(run: RunContainer):
    """With the output of both streams and their exit code; one that is not there is named.

    The engine copies each stream by itself, so which of two lines that come together is first is not known.
    """
    inside = controlled(run(IDLE))
    said = inside.run(["sh", "-c", "echo one; echo err >&2; echo two; exit 3"], timeout_s=20)
    assert (said.returncode, sorted(said.output.splitlines())) == (3, ["err", "one", "two"])
    assert said.output.index("one") < said.output.index("two")
    assert "nginx version: nginx/1.26" in inside.run(["nginx", "-v"], timeout_s=20).output
    assert len(inside.run(["head", "-c", "300000", "/dev/zero"], timeout_s=20).output) == 300000
    with pytest.raises(BalancerMissing, match="has no program no-such-program"):
        inside.run(["no-such-program"], timeout_s=20)


@pytest.mark.parametrize("has_timeout", [True, False])
def test_a_program_that_does_not_end_is_ended(run: RunContainer, has_timeout: bool):
    """By `timeout` in the container, or from here where it has none; nothing of it goes on."""
    container = run(IDLE)
    if not has_timeout:
        assert container.exec_run(["rm", "/usr/bin/timeout"]).exit_code == 0
    began = time.monotonic()
    with pytest.raises(procs.TimedOut, match="sleep did not finish within 1 s"):
        controlled(container).run(["sleep", "4711"], timeout_s=1)
    assert time.monotonic() - began < 15
    wait_until(lambda: not any("4711" in line for line in commands(container)), "it is gone")


def commands(container: Container) -> list[str]:
    return [row[-1] for row in container.top(ps_args="-eo pid,args")["Processes"]]


def test_files_are_read_as_the_container_has_them(run: RunContainer, files: Path):
    """Links are followed in there; a stopped container can still be read."""
    container = run(IDLE)
    inside = controlled(container)
    assert inside.seen(files / "current" / "http.conf") == Path("/etc/ours/current/http.conf")
    assert inside.read(Path("/etc/ours/current/http.conf")) == b"rendered"
    assert inside.read(Path("/etc/ours/link.conf")) == b"rendered"
    assert inside.read(Path("/etc/debian_version")).startswith(b"13")
    assert inside.names(Path("/etc/ours/current")) == ["http.conf"]
    with pytest.raises(FileNotFoundError):
        inside.read(Path("/etc/ours/none"))
    with pytest.raises(OSError, match="No such file or directory"):
        inside.names(Path("/etc/none"))
    with pytest.raises(CheckFailed, match="does not have /opt"):
        inside.seen(Path("/opt"))
    container.kill()
    assert inside.read(Path("/etc/ours/link.conf")) == b"rendered"
    assert inside.seen(files / "current") == Path("/etc/ours/current")


@pytest.mark.parametrize(
    "argv",
    [
        ["nginx", "-c", "/etc/ours/nginx.conf", "-g", "daemon off;"],
        ["sh", "-c", "nginx -c /etc/ours/nginx.conf; exec sleep 300"],
    ],
    ids=["first", "below-a-shell"],
)
def test_nginx_is_told_to_reload(run: RunContainer, argv: list[str]):
    """Whether it is the container's first process or not: new workers, the same master."""
    container = run(argv)
    inside = controlled(container)
    pid = wait_until(inside.pid, "the master runs")
    before = wait_until(lambda: children(pid), "it has workers")
    assert inside.trouble() is None
    assert "-c" in inside.arguments()
    inside.reload()
    wait_until(lambda: children(pid) - before, "there are new workers")
    assert inside.pid() == pid


def test_haproxy_is_told_to_reload(run: RunContainer):
    """SIGUSR2 for its master."""
    container = run(["haproxy", "-W", "-db", "-f", "/etc/ours/haproxy.cfg"])
    inside = controlled(container, "haproxy")
    pid = wait_until(inside.pid, "the master runs")
    before = wait_until(lambda: children(pid), "it has workers")
    inside.reload()
    wait_until(lambda: children(pid) - before, "there are new workers")
    wait_until(lambda: inside.pid() == pid, "the master is still known")


def children(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def test_each_state_of_a_container_has_its_words(run: RunContainer, engine: Engine):
    """Without a balancer, paused, stopped, gone."""
    container = run(IDLE)
    inside = controlled(container)
    assert "no nginx master runs in container" in str(inside.trouble())
    container.pause()
    assert f"docker unpause {container.name}" in str(inside.trouble())
    container.unpause()
    container.kill()
    with pytest.raises(ReloadFailed, match=f"is stopped .*docker start {container.name}"):
        inside.reload()
    with pytest.raises(BalancerMissing, match="is stopped"):
        inside.run(["true"], timeout_s=5)
    assert (inside.pid(), inside.is_running()) == (None, False)
    other = run(IDLE)
    container.rename(f"{container.name}-renamed")
    assert "there is no container" in str(inside.trouble())
    assert str(other.name) in str(inside.trouble())


def test_a_container_that_restarts_all_the_time_is_said_to(run: RunContainer):
    """With its exit code, and where to look."""
    container = run(["sh", "-c", "sleep 1; exit 1"])
    container.update(restart_policy={"Name": "always"})
    inside = controlled(container)
    wait_until(
        lambda: f"restarting again and again (exit code 1): docker logs {container.name}" in str(inside.trouble()), "so"
    )
