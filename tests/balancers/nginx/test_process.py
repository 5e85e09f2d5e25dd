"""Nginx as a process: it outlives the agent, is found again, and says why when it does not do what it should."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lbswitch.balancers.nginx import Nginx
from lbswitch.errors import ReloadFailed, StartFailed
from tests.balancers.nginx.site import GREEN, Site
from tests.balancers.nginx.test_configuration import _STOCK, _template
from tests.support.ports import free_port
from tests.support.wait import wait_until


def _master(shop: Site) -> psutil.Process:
    return psutil.Process(int((shop.prefix / "nginx.pid").read_text()))


def test_detached(directory, service, binary):
    """Started by a process that is killed with its whole group, nginx goes on; any other process finds and stops it."""
    program = (
        "import sys, os, signal, json; from pathlib import Path; from tests.balancers.nginx.site import Site\n"
        "Site(Path(sys.argv[1]), json.loads(sys.argv[3]), sys.argv[2]).start()\n"
        "print('up', flush=True); os.killpg(0, signal.SIGKILL)"
    )
    services = {"shop": service()}
    argv = [sys.executable, "-c", program, str(directory), binary, json.dumps(services)]
    done = subprocess.run(argv, capture_output=True, timeout=60, start_new_session=True, cwd=_STOCK.parents[2])
    shop = Site(directory, services, binary)
    try:
        assert done.stdout == b"up\n", done.stderr.decode()
        assert done.returncode == -signal.SIGKILL
        assert shop.nginx.is_running()
        assert shop.nginx.committed() == shop.intent
        shop.switch(shop=GREEN)
        assert shop.color() == "green"
        descriptors = {str(Path(f"/proc/{_master(shop).pid}/fd/{number}").readlink()) for number in range(3)}
        assert descriptors == {"/dev/null", str(shop.prefix / "error.log")}
    finally:
        shop.close()
    assert not shop.nginx.is_running()


def test_start_and_stop_twice(site):
    """Starting what runs and stopping what is down change nothing; who stopped it is remembered."""
    shop = site()
    master = _master(shop).pid
    shop.nginx.start()
    assert _master(shop).pid == master
    assert shop.nginx.why_not_started() is None
    shop.nginx.stop()
    shop.nginx.stop()
    assert "lbswitch balancer stop" in str(shop.nginx.why_not_started())
    assert shop.is_silent()
    shop.nginx.start()
    assert shop.nginx.why_not_started() is None
    assert shop.color() == "blue"


def test_stop_lets_requests_finish(site):
    """A request that is in flight when nginx is stopped gets its whole answer."""
    shop = site()
    client = shop.connect()
    try:
        client.request("GET", "/slow?ms=400")
        wait_until(shop.is_asking_blue, "the request reached nginx")
        shop.nginx.stop()
        assert client.getresponse().read() == b"blue v1\n"
    finally:
        client.close()


def test_stop_does_not_wait_for_ever(directory, service, binary):
    """A client that stays keeps nginx from stopping only for so long."""
    shop = Site(directory, {"shop": service()}, binary)
    shop.nginx._process._patience_s = 0.3
    with shop:
        client = shop.connect()
        try:
            client.request("GET", "/stream?n=1000&ms=50")
            assert client.getresponse().readline() == b"blue 0\n"
            shop.nginx.stop()
            assert not shop.nginx.is_running()
        finally:
            client.close()


def test_nothing_installed(directory, service, binary):
    """Without an installed configuration there is nothing to start."""
    with pytest.raises(StartFailed, match="nothing is installed"):
        Site(directory, {"shop": service()}, binary).nginx.start()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_taken(directory, service, binary, kind):
    """A listener that somebody else has is named, with the process that has it."""
    bind = f"unix:{directory}/shop.sock" if kind == "unix" else f"127.0.0.1:{free_port()}"
    family, address = (
        (socket.AF_UNIX, f"{directory}/shop.sock")
        if kind == "unix"
        else (socket.AF_INET, ("127.0.0.1", int(bind.split(":")[1])))
    )
    with socket.socket(family) as taken:
        taken.bind(address)
        taken.listen()
        shop = Site(directory, {"shop": service(bind=bind)}, binary)
        with pytest.raises(StartFailed, match=rf"shop: {bind} is taken by pid {os.getpid()} \(python"):
            shop.start()
    assert not shop.nginx.is_running()


@pytest.mark.parametrize(
    ("bind", "words"),
    [("192.0.2.1:8080", "is not an address of this machine"), ("unix:/nowhere/x.sock", "there is no /nowhere")],
)
def test_impossible_listener(directory, service, binary, bind, words):
    """An address that can't be listened on is told in plain words."""
    shop = Site(directory, {"shop": service()}, binary)
    shop.nginx.install(shop.nginx.render(shop.intent))
    shop.config.services["shop"] = shop.config.services["shop"].model_copy(update={"bind": bind})
    with pytest.raises(StartFailed, match=words):
        shop.nginx.start()


def test_refused_at_start(directory, service, binary):
    """What nginx says when it refuses to start reaches the caller."""
    shop = Site(directory, {"shop": service()}, binary, templates=_template(directory, "nonsense on;\n"))
    shop.nginx.install(shop.nginx.render(shop.intent))
    with pytest.raises(StartFailed, match='unknown directive "nonsense"'):
        shop.nginx.start()
    assert not shop.nginx.is_running()


def test_stale_socket(site, service, directory):
    """A socket file that a power cut or a kill left does not keep nginx from starting."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(f"{directory}/shop.sock")
    shop = site({"shop": service(bind=f"unix:{directory}/shop.sock")})
    assert shop.color() == "blue"


def test_somebody_elses_pid(site):
    """A pid file that names another process is not believed: nothing is signalled."""
    shop = site()
    pid_file = shop.prefix / "nginx.pid"
    own = pid_file.read_text()
    try:
        for text in (str(os.getpid()), "999999999", "-1", "0", "", "x"):
            pid_file.write_text(text)
            newcomer = Nginx(shop.config)  # who knows nothing else
            assert not newcomer.is_running()
            newcomer.stop()
            with pytest.raises(ReloadFailed, match="not running"):
                newcomer.reload()
    finally:
        pid_file.write_text(own)
    assert shop.color() == "blue"


def test_killed_master(site):
    """Workers that outlived a killed master serve on, and make room when nginx is started again."""
    shop = site()
    master = _master(shop)
    wait_until(lambda: len(master.children()) == 2, "both workers are there")
    workers = master.children()
    master.kill()
    wait_until(lambda: not shop.nginx.is_running(), "the master is gone")
    assert shop.color() == "blue"
    shop.nginx.start()
    assert shop.nginx.is_running()
    assert shop.color() == "blue"
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the old workers are gone")


def test_reload_that_nginx_refuses(site, directory):
    """A refused reload says what nginx said, and the old configuration serves on."""
    shop = site(templates=_template(directory, _STOCK.read_text()))
    before = shop.nginx.installed()
    _template(directory, "nonsense on;\n")
    shop.nginx.install(shop.nginx.render(shop.intent))
    with pytest.raises(ReloadFailed, match=r'unknown directive "nonsense".*still serving'):
        shop.nginx.reload()
    assert shop.observe().revision == before
    shop.nginx.reinstall(before)
    shop.nginx.reload()


def test_reload_with_a_taken_listener(site, service, directory, binary):
    """A new listener that is taken is found before nginx is asked; those that stay are no obstacle."""
    shop = site()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        more = {
            "shop": shop.config.services["shop"].model_dump(mode="json"),
            "api": service(bind=f"127.0.0.1:{taken.getsockname()[1]}"),
        }
        wider = Site(directory, more, binary)
        wider.nginx.install(wider.nginx.render(wider.intent))
        with pytest.raises(ReloadFailed, match=rf"api: .* is taken by pid {os.getpid()}"):
            wider.nginx.reload()
        assert shop.color() == "blue"
    wider.commit(wider.intent)
    wider.nginx.reload()
    wait_until(lambda: wider.color("api") == "blue", "the new service is up")


def test_reload_gives_new_workers(site):
    """A reload that returned has been taken: there are workers that were not there before."""
    shop = site()
    before = {child.pid for child in _master(shop).children()}
    shop.nginx.reload()
    assert {child.pid for child in _master(shop).children()} - before
    assert Path(shop.prefix / "error.log").read_text() == ""
