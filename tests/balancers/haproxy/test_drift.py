"""What others do to maps, servers and listeners of any worker is seen and put right; what is theirs is left."""

import os
import re
import signal
import socket
import threading
from dataclasses import replace

import pytest

from lbswitch.balancers.haproxy_runtime import Runtime
from lbswitch.core.model import Color, Route
from tests.balancers.haproxy.guest import Guest
from tests.balancers.haproxy.managed import Managed, ask, key
from tests.support.wait import wait_until

GREEN = Route(Color.GREEN)


def say(balancer: Managed | Guest, command: str, worker: int | None = None) -> str:
    """A command at the Runtime API, to the current worker or to this one."""
    master = balancer.haproxy._runtime.path
    return Runtime(master).ask(worker or balancer.processes().current[0], command).strip()


def sentences(balancer: Managed | Guest) -> list[str]:
    return [each.what for each in balancer.haproxy.differences(balancer.intent)]


def repair(balancer: Managed | Guest) -> None:
    balancer.haproxy.repair(balancer.intent, None)
    assert sentences(balancer) == []


def test_nothing_differs_after_whatever_lbswitch_does(shop: Managed, blue, green):
    """Moves, weights, ejected servers, reloads with connections that stay."""
    held = shop.connection()
    ask(held, "/", {})
    for route in (GREEN, Route(Color.GREEN, 30), Route(Color.BLUE)):
        shop.move(shop=route)
        assert sentences(shop) == []
        shop.haproxy.reload()
        assert sentences(shop) == []
    assert len(shop.processes().workers) > 1
    held.close()


def test_a_worker_that_drains_is_looked_at_and_put_right_too(shop: Managed):
    """Its kept connections would go on to the wrong color."""
    shop.move(shop=GREEN)
    held = shop.connection()
    ask(held, "/", {})
    shop.haproxy.reload()
    draining = shop.processes().draining[0]
    assert say(shop, f"set map {shop.directory}/live.map shop blue", draining) == ""
    (sentence,) = sentences(shop)
    assert f"worker {draining}, which drains since a reload, has changed live.map" in sentence
    repair(shop)
    assert ask(held, "/", {}).getheader("X-App") == "green"
    held.close()


def test_what_a_worker_would_serve_is_told_of_each(shop: Managed):
    shop.move(shop=GREEN)
    (worker,) = shop.processes().workers
    say(shop, f"set map {shop.directory}/live.map shop blue")
    assert shop.haproxy.routes()[worker].services["shop"].route == Route(Color.BLUE)


def test_ejected_servers_are_intended_and_a_reload_by_hand_loses_them(make, service, blue, green):
    """A new worker of somebody's reload knows nothing of what was left out: that is noticed, and done again."""
    two = service(blue={"servers": [blue.address, green.address]})
    shop = make({"shop": two}).serve()
    shop.intent = replace(shop.intent, ejected=frozenset({key("shop", "blue", green.address)}))
    shop.haproxy.eject(shop.intent.ejected)
    assert sentences(shop) == []
    before = shop.processes()
    os.kill(before.master, signal.SIGUSR2)
    wait_until(lambda: sentences(shop), "it is noticed")
    assert re.search(rf"blue {green.address} is in state ready in worker \d+, intended is maint", sentences(shop)[0])
    repair(shop)
    assert {shop.app() for _ in range(8)} == {"blue"}


def test_a_stopped_haproxy_is_compared_on_disk_alone(shop: Managed):
    shop.stop()
    assert sentences(shop) == []
    (shop.directory / "live.map").write_text("shop green\n")
    (sentence,) = sentences(shop)
    assert "live.map says `shop green`, intended is `shop blue`, `shop.generation 1`" in sentence
    repair(shop)


def test_a_master_that_does_not_answer_is_no_drift(shop: Managed):
    """Nobody can say what runs; other parts of lbswitch tell that."""
    master = shop.directory / "master.sock"
    master.rename(shop.directory / "hidden.sock")
    assert sentences(shop) == []
    (shop.directory / "hidden.sock").rename(master)


def test_a_hung_worker_is_no_drift(shop: Managed):
    worker = shop.processes().current[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert sentences(shop) == []
    finally:
        os.kill(worker, signal.SIGCONT)


def test_keys_and_certificates_never_show(shop: Managed):
    """A file with mode 600 is told, not shown."""
    assert sentences(shop) == []
    secret = shop.directory / "current" / "shop.pem"
    secret.write_text("-----BEGIN PRIVATE KEY-----\n")
    secret.chmod(0o600)
    (difference,) = shop.haproxy.differences(shop.intent)
    assert "shop.pem is not from lbswitch; it is secret" in difference.what
    assert difference.diff == ""
    repair(shop)
    assert not secret.exists()


@pytest.mark.parametrize(
    "command", ["set map {maps}/live.map shop blue", "set server lbswitch_shop_green/s1 state maint"]
)
def test_in_an_owners_haproxy_ours_is_put_right(guest: Guest, command: str):
    guest.move(shop=GREEN)
    assert sentences(guest) == []
    say(guest, command.format(maps=guest.output))
    (sentence,) = sentences(guest)
    assert sentence.startswith("shop: ")
    workers = guest.processes().workers
    repair(guest)
    assert guest.processes().workers == workers
    assert guest.app() == "green"


def test_in_an_owners_haproxy_theirs_is_not_looked_at(guest: Guest):
    """Their servers, and frontends in which our service is one of many."""
    say(guest, "set server theirs/a weight 50")
    say(guest, "disable frontend web")
    assert sentences(guest) == []
    say(guest, "enable frontend web")


def test_in_an_owners_haproxy_an_edited_file_that_they_reloaded(guest: Guest):
    """It is written again and read again; all of the owner's stays."""
    text = guest.ours.read_text()
    theirs = guest.owner.read_text()
    assert sentences(guest) == []
    guest.ours.write_text(text + "# a hand\n")
    assert len(sentences(guest)) == 1
    guest.reload_by_owner()
    assert [each.where for each in guest.haproxy.differences(guest.intent)] == ["disk", "running"]
    workers = guest.processes().current
    repair(guest)
    assert guest.ours.read_text() == text
    assert guest.owner.read_text() == theirs
    assert guest.processes().current != workers


def test_half_an_answer_is_no_drift(shop: Managed, tmp_path):
    """A worker that ends while it tells its map has not lost half of it."""
    real = shop.directory / "master.sock"
    real.rename(shop.directory / "real.sock")

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as behind:
                behind.connect(str(shop.directory / "real.sock"))
                behind.sendall(client.recv(65536))
                behind.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: behind.recv(65536), b""))
                client.sendall(answer if b"master" in answer else answer[: len(answer) // 2])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(real))
        listener.listen(16)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        assert sentences(shop) == []
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    (shop.directory / "real.sock").rename(real)
    assert sentences(shop) == []
