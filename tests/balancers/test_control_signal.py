"""`control: signal`: the owner's master is found among all processes, and told to reload."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from lbswitch.balancers import control
from lbswitch.balancers.control import Control
from lbswitch.core.config import BalancerConfig
from lbswitch.errors import ReloadFailed
from tests.support.agent import short_directory
from tests.support.ports import free_port
from tests.support.wait import wait_until

KINDS = ("nginx", "haproxy")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_NGINX = """daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 204; }} }}
"""
_HAPROXY = """defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend web
    bind 127.0.0.1:{port}
    http-request return status 204
"""


class Owner:
    """A balancer that somebody started, with its configuration in a directory."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.config = directory / ("nginx.conf" if kind == "nginx" else "haproxy.cfg")
        text = _NGINX if kind == "nginx" else _HAPROXY
        self.config.write_text(text.format(directory=directory, port=free_port()))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> int:
        """Start it in the foreground; its pid."""
        named = str(self.config)
        argv = {
            "nginx": ["nginx", "-e", f"{self.directory}/error.log", "-c", named],
            "haproxy": ["haproxy", "-W", "-db", "-f", named],
        }[self.kind]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{_SBIN}"}
        with (self.directory / "output").open("ab") as output:
            process = subprocess.Popen([*argv, *options], env=environment, stdout=output, stderr=output)
        self.processes.append(process)
        wait_until(lambda: self.workers(process.pid), f"{self.kind} has workers")
        return process.pid

    def workers(self, master: int) -> set[int]:
        return {child.pid for child in psutil.Process(master).children()}

    def document(self, **settings: object) -> dict[str, object]:
        master_socket = {"master_socket": "/run/nowhere.sock"} if self.kind == "haproxy" else {}
        ours = {"config": [str(self.config)], "output_dir": str(self.directory)}
        return {"kind": self.kind, "managed": False, **ours, **master_socket, **settings}

    def control(self, **settings: object) -> Control:
        return control.make(BalancerConfig.model_validate(self.document(**settings)))

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait(20)


@pytest.fixture
def make_owner() -> Iterator[Callable[[str], Owner]]:
    with ExitStack() as stack:

        def make(kind: str) -> Owner:
            owner = Owner(kind, stack.enter_context(short_directory()))
            stack.callback(owner.close)
            return owner

        yield make


@pytest.fixture(params=KINDS)
def owner(request: pytest.FixtureRequest, make_owner: Callable[[str], Owner]) -> Owner:
    return make_owner(request.param)


def test_the_master_is_found_by_its_configuration(owner: Owner, make_owner: Callable[[str], Owner]):
    """Among several of its kind it is the one with our file, and the master, not a worker."""
    make_owner(owner.kind).start()
    pid = owner.start()
    found = owner.control()
    assert (found.pid(), found.is_running(), found.trouble()) == (pid, True, None)
    assert found.arguments()[0] == owner.kind
    assert str(owner.config) in found.arguments()


def test_it_is_found_by_a_link_to_its_configuration_as_well(owner: Owner):
    """What counts is the file, not how its path is written."""
    pid = owner.start()
    link = owner.directory / "link.conf"
    link.symlink_to(owner.config)
    assert owner.control(config=[str(link)]).pid() == pid


def test_a_reload_gives_new_workers_below_the_same_master(owner: Owner):
    """SIGHUP for nginx, SIGUSR2 for HAProxy, whose master also keeps being found after it ran itself anew."""
    pid = owner.start()
    before = owner.workers(pid)
    found = owner.control()
    found.reload()
    wait_until(lambda: owner.workers(pid) - before, "there are new workers")
    wait_until(lambda: found.pid() == pid, "the master is still known")


def test_one_that_is_down_is_said_to_be_down(owner: Owner):
    """With what would start it."""
    found = owner.control()
    assert (found.pid(), found.is_running(), found.arguments()) == (None, False, [])
    assert found.how_to("start") in str(found.trouble())
    with pytest.raises(ReloadFailed, match=f"no {owner.kind} master runs with {owner.config}"):
        found.reload()


def test_a_pid_file_says_which_one(owner: Owner):
    """Also when its configuration is known by another name; a stale one is passed over."""
    pid = owner.start()
    pid_file = owner.directory / "some.pid"
    pid_file.write_text(f"{pid}\n")
    assert owner.control(pid_file=str(pid_file), config=["/etc/elsewhere.conf"]).pid() == pid
    pid_file.write_text(f"{os.getpid()}\n")
    assert owner.control(pid_file=str(pid_file), config=["/etc/elsewhere.conf"]).pid() is None
    assert owner.control(pid_file=str(pid_file)).pid() == pid


def test_several_that_could_be_meant_are_named(make_owner: Callable[[str], Owner]):
    """Two masters with one file: nothing is signaled, and the error says how to choose."""
    owner = make_owner("nginx")
    pids = [owner.start()]
    owner.config.write_text(_NGINX.format(directory=owner.directory, port=free_port()))
    pids.append(owner.start())
    found = owner.control()
    assert (found.pid(), found.is_running()) == (None, True)
    with pytest.raises(ReloadFailed, match=r"several could be meant .*balancer\.pid_file") as caught:
        found.reload()
    assert all(f"pid {pid}" in str(caught.value) for pid in pids)


def test_an_haproxy_without_a_master_can_not_reload(make_owner: Callable[[str], Owner]):
    """The error says with what to start it."""
    if shutil.which("haproxy", path=f"{os.environ['PATH']}:{_SBIN}") is None:
        pytest.skip("HAProxy is not installed: apt-get install haproxy")
    owner = make_owner("haproxy")
    argv = ["haproxy", "-db", "-f", str(owner.config)]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{_SBIN}"}
    owner.processes.append(subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL))
    found = owner.control()
    wait_until(found.is_running, "it runs")
    with pytest.raises(ReloadFailed, match="runs without -W or -Ws"):
        found.reload()


_AS_NOBODY = """
import os, pwd, sys
from lbswitch.balancers import control
from lbswitch.core.config import BalancerConfig
made = control.make(BalancerConfig.model_validate_json(sys.argv[1]))
assert made.trouble() is None  # imports all that root alone may read
user = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
try:
    made.reload()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_who_may_not_signal_is_told_what_to_do(owner: Owner):
    """The message names the user and the ways out; the master goes on with its workers."""
    pid = owner.start()
    before = owner.workers(pid)
    document = owner.document(config=[str(owner.config)])
    argv = [sys.executable, "-c", _AS_NOBODY, json.dumps(document)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("ReloadFailed"), done
    assert "the user nobody may not send" in done.stdout
    assert "docs/service-files.md" in done.stdout
    assert owner.workers(pid) == before


def test_what_another_user_calls_a_master_is_none(owner: Owner):
    """Anybody may name a process as they like; lbswitch runs no program and signals no process because of that."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    program, ran = owner.directory / owner.kind, owner.directory / "ran"
    program.write_text(f"#!/bin/sh\necho $(id -u) >> {ran}\n")
    program.chmod(0o755)
    pid_file = owner.directory / "stale.pid"
    title = {
        "nginx": [f"nginx: master process {program}"],
        "haproxy": [str(program), "-W", "-f", str(owner.config)],
    }[owner.kind]
    shell = 'exec -a "$0" bash -s -- "$@"'
    with subprocess.Popen(
        ["bash", "-c", shell, *title], user=65534, group=65534, extra_groups=(), stdin=-1, stdout=-1
    ) as fake:
        assert fake.stdin is not None
        assert fake.stdout is not None
        fake.stdin.write(b"echo\n")
        fake.stdin.flush()
        fake.stdout.readline()
        pid_file.write_text(str(fake.pid))
        try:
            for settings in ({}, {"pid_file": str(pid_file)}):
                found = owner.control(**settings)
                assert (found.pid(), found.is_running(), found.arguments()) == (None, False, [])
                with pytest.raises(ReloadFailed, match="master runs"):
                    found.reload()
            assert not ran.exists()
            pid = owner.start()
            assert owner.control(pid_file=str(pid_file)).pid() == pid
        finally:
            fake.kill()
