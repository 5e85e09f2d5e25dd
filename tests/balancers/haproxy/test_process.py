"""Starting, stopping and reloading a HAProxy that outlives the agent."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lbswitch.core.model import Color, Route
from lbswitch.errors import BalancerMissing, BalancerTooOld, ReloadFailed, StartFailed
from tests.balancers.haproxy.managed import ask, wait_until_gone
from tests.support.ports import free_port
from tests.support.wait import wait_until

GREEN = Route(Color.GREEN)


def test_it_outlives_the_process_that_started_it(make, service):
    """HAProxy is no child of the agent, holds none of its pipes, and serves when the agent is gone."""
    managed = make({"shop": service()})
    managed.install()
    program = (
        "import json, sys; from lbswitch.core.config import Config; from lbswitch.balancers.haproxy import HAProxy;"
        "HAProxy(Config.model_validate(json.loads(sys.argv[1]))).start(); print('started')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(managed.document)], capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stdout) == (0, "started\n"), result.stderr
    assert managed.haproxy.is_running()
    assert managed.app() == "blue"
    master = managed.processes().master
    assert os.getsid(master) != os.getsid(0)


def test_start_and_stop_may_be_repeated(shop):
    """Starting what runs and stopping what does not run changes nothing; a stop is remembered as meant."""
    master = shop.processes().master
    shop.haproxy.start()
    assert shop.processes().master == master
    assert shop.haproxy.why_not_started() is None
    shop.haproxy.stop()
    shop.haproxy.stop()
    assert "lbswitch balancer stop" in str(shop.haproxy.why_not_started())
    assert not shop.haproxy.is_running()
    shop.haproxy.start()
    assert shop.haproxy.is_running()
    assert shop.adapter().why_not_started() is None


def test_nothing_installed_can_not_be_started(make, service):
    """The message says so, and what to do."""
    with pytest.raises(StartFailed, match="nothing is installed"):
        make({"shop": service()}).haproxy.start()


def test_without_maps_it_is_not_started_on_a_guess(shop):
    """A lost map would mean the initial color; the agent knows better."""
    shop.stop()
    (shop.directory / "live.map").unlink()
    with pytest.raises(StartFailed, match=r"live\.map .* which color is live"):
        shop.haproxy.start()


def test_a_taken_port_is_named_with_its_holder(make, service):
    """Start tells the service, the address and the process that has it."""
    managed = make({"cart": service(), "shop": service()})
    managed.install()
    with socket.create_server(("127.0.0.1", managed.ports["shop"])), pytest.raises(StartFailed) as failed:
        managed.haproxy.start()
    assert f"shop: 127.0.0.1:{managed.ports['shop']} is taken by" in str(failed.value)
    assert f"(pid {os.getpid()})" in str(failed.value)
    assert "cart" not in str(failed.value)
    assert not managed.haproxy.is_running()


def test_an_address_of_another_machine_is_named(make, service):
    """Binding what this machine does not have fails with the address."""
    managed = make({"shop": service(bind="192.0.2.1:8080")})
    managed.install()
    with pytest.raises(StartFailed, match=r"shop: 192\.0\.2\.1:8080 is not an address of this machine"):
        managed.haproxy.start()


def test_a_file_where_the_socket_should_be_is_kept(make, service, tmp_path):
    """HAProxy would rename its socket over any file."""
    precious = tmp_path / "precious"
    precious.write_text("data")
    managed = make({"shop": service(bind=f"unix:{precious}")})
    managed.install()
    with pytest.raises(StartFailed, match="not a socket"):
        managed.haproxy.start()
    assert precious.read_text() == "data"


def test_a_stop_lets_requests_in_flight_finish(shop):
    """The listener is gone at once, a slow answer still comes complete, and idle connections hold nothing up."""
    idle = shop.connection()
    ask(idle, "/", {})
    answers = []
    slow = threading.Thread(target=lambda: answers.append(shop.get("/slow?ms=700").status))
    slow.start()
    worker = shop.processes().current[0]
    wait_until(lambda: shop.haproxy._runtime.requests(worker)["shop_blue"] == 1, "the request is in flight")
    shop.haproxy.stop()
    slow.join()
    assert answers == [200]
    idle.close()


def test_a_reload_that_haproxy_refuses_leaves_the_old_worker(shop):
    """ReloadFailed carries the reason; the old worker serves and still takes commits; a good reload follows."""
    good = shop.haproxy.installed()
    bad = shop.haproxy.read(good)
    configuration = shop.directory / "rendered" / good / "haproxy.cfg"
    text = configuration.read_text()
    configuration.write_text(text + "\n    nonsense here\n")
    with pytest.raises(ReloadFailed, match=r"old worker still serves(.|\n)*nonsense"):
        shop.haproxy.reload()
    assert shop.app() == "blue"
    shop.move(shop=GREEN)
    assert shop.app() == "green"
    configuration.write_text(text)
    shop.haproxy.reload()
    assert shop.app() == "green"
    assert shop.haproxy.read(good) == bad


def test_a_reload_names_a_port_that_is_taken_before_it_begins(make, service):
    """A new service on a port of somebody else: nothing is reloaded, and the holder is named."""
    managed = make({"shop": service()}).serve()
    port = free_port()
    managed.document["services"]["cart"] = service(bind=f"127.0.0.1:{port}")
    later = managed.adapter()
    intent = managed.intent.with_services({"cart": managed.intent.services["shop"]})
    later.install(later.render(intent))
    before = managed.processes()
    message = rf"cart: 127.0.0.1:{port} is taken by .*pid {os.getpid()}"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ReloadFailed, match=message):
        later.reload()
    assert managed.processes() == before
    later.commit(intent, ["cart"])
    later.reload()
    assert later.observe("cart").generation == 1


def test_a_hung_master_is_a_failed_reload(shop):
    """A master that does not answer is reported, and traffic goes on."""
    master = shop.processes().master
    os.kill(master, signal.SIGSTOP)
    try:
        with pytest.raises(ReloadFailed, match="no answer"):
            shop.haproxy.reload()
        assert shop.app() == "blue"
    finally:
        os.kill(master, signal.SIGCONT)
    shop.haproxy.reload()


def test_reload_without_a_running_haproxy_says_so(shop):
    """Nothing is signaled."""
    shop.stop()
    with pytest.raises(ReloadFailed, match="does not run"):
        shop.haproxy.reload()


def test_the_revision_that_answers_is_the_installed_one(make, service):
    """After a reload, the listener names the new revision."""
    managed = make({"shop": service()}).serve()
    before = managed.haproxy.observe("shop").revision
    managed.document["services"]["shop"]["timeouts"] = {"read": "5s"}
    later = managed.adapter()
    later.install(later.render(managed.intent))
    later.reload()
    wait_until(lambda: later.observe("shop").revision == later.installed(), "the new revision answers")
    assert later.installed() != before
    later.reinstall(before)
    later.reload()
    wait_until(lambda: later.observe("shop").revision == before, "the old revision answers")


def test_it_starts_again_after_its_master_was_killed(shop):
    """is_running is false at once, and workers without a master don't stand in the way."""
    processes = shop.processes()
    os.kill(processes.master, signal.SIGKILL)
    wait_until_gone(processes.master)
    assert not shop.haproxy.is_running()
    shop.haproxy.start()
    assert shop.app() == "blue"
    wait_until_gone(processes.current[0])


def test_a_stranger_with_the_pid_of_the_pid_file_is_left_alone(shop):
    """After a reboot the pid may belong to another program."""
    shop.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (shop.directory / "haproxy.pid").write_text(f"{stranger.pid}\n")
        assert not shop.haproxy.is_running()
        shop.haproxy.stop()
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_a_lost_pid_file_is_no_lost_haproxy(shop):
    """The master's socket tells the pid as well."""
    (shop.directory / "haproxy.pid").unlink()
    assert shop.haproxy.is_running()
    shop.haproxy.stop()


def test_its_sockets_are_private(shop):
    """Whoever may write to them may do anything to HAProxy."""
    for name in ("master.sock", "worker.sock"):
        assert stat.S_IMODE((shop.directory / name).stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts workers as somebody else")
def test_workers_are_not_root_also_after_a_reload(shop):
    """The master stays root; workers run as haproxy or nobody, and a reload reads everything again."""
    for _ in range(2):
        assert Path(f"/proc/{shop.processes().current[0]}").stat().st_uid != 0
        shop.haproxy.reload()
    shop.move(shop=GREEN)


def test_a_program_that_is_not_there_is_named(make, service):
    """balancer.binary is believed, not silently replaced."""
    managed = make({"shop": service()})
    managed.document["balancer"]["binary"] = "/nonexistent/haproxy"
    with pytest.raises(BalancerMissing, match="/nonexistent/haproxy"):
        managed.adapter().version()


def test_an_old_haproxy_is_refused_with_the_reason(make, service, tmp_path):
    """Below 2.6 the message names what is missing."""
    old = tmp_path / "haproxy"
    old.write_text("#!/bin/sh\necho 'HA-Proxy version 2.4.22-f8e3218 2023/02/14 - https://haproxy.org/'\n")
    old.chmod(0o755)
    managed = make({"shop": service()})
    managed.document["balancer"]["binary"] = str(old)
    with pytest.raises(BalancerTooOld, match=r"2\.4\.22 .* need 2\.6"):
        managed.adapter().version()


def test_the_version_is_read(shop):
    """Three numbers of the running program."""
    assert [int(part) for part in shop.haproxy.version().split(".")] >= [2, 6]
    assert shop.haproxy.reload_is_free


def test_reloads_in_a_row_leave_no_workers_behind(shop):
    """Without long connections, old workers end; memory does not grow with the number of reloads."""
    for _ in range(5):
        shop.haproxy.reload()
    wait_until(lambda: not shop.processes().draining, "old workers end")
    assert len(shop.processes().current) == 1
