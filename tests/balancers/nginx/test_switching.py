"""What a switch of the pointer promises to clients."""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lbswitch.core.model import Route
from lbswitch.errors import NotSeen
from tests.balancers.nginx.servers import Server
from tests.balancers.nginx.site import BLUE, GREEN
from tests.support.ports import free_port
from tests.support.wait import wait_until


def test_next_request(site):
    """The request after the switch goes to the new color, and the listener says so."""
    shop = site()
    assert shop.color() == "blue"
    for color in (GREEN, BLUE, GREEN):
        shop.switch(shop=color)
        assert shop.color() == color
        seen = shop.observe()
        assert seen.shows(shop.intent.services["shop"], shop.nginx.installed())


def test_keep_alive(site):
    """A connection that was open before the switch follows it with its next request."""
    shop = site()
    client = shop.connect()
    try:
        for color in (BLUE, GREEN, BLUE):
            shop.switch(shop=color)
            client.request("GET", "/")
            assert client.getresponse().read().decode().startswith(color)
            opened = client.sock
        assert client.sock is opened
    finally:
        client.close()


def test_old_workers(site):
    """A keep-alive connection that a worker from before a reload holds follows the switch too."""
    shop = site()
    stream = shop.connect()
    try:
        stream.request("GET", "/stream?n=40&ms=50")
        answer = stream.getresponse()
        assert answer.readline() == b"blue 0\n"
        shop.apply(shop.ejected())  # the same files: only to have draining workers
        shop.nginx.reload()
        shop.switch(shop=GREEN)
        assert shop.color() == "green"
        assert answer.read().count(b"blue") == 39
    finally:
        stream.close()


def test_no_request_is_lost(site):
    """Switches as fast as they go cost not one of the requests on kept and on new connections."""
    shop = site()
    over, failures, counts = threading.Event(), [], []

    def ask(keep: bool) -> None:
        client, count = shop.connect(), 0
        try:
            while not over.is_set():
                client.request("GET", "/")
                answer = client.getresponse()
                if answer.status != 200 or not answer.read():
                    failures.append(answer.status)
                count += 1
                if not keep:
                    client.close()
        except OSError as error:
            failures.append(error)
        finally:
            client.close()
        counts.append(count)

    clients = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
    for client in clients:
        client.start()
    for number in range(300):
        shop.switch(shop=GREEN if number % 2 == 0 else BLUE)
    over.set()
    for client in clients:
        client.join()
    assert failures == []
    assert min(counts) > 0


def test_together(site, service):
    """One rename moves several services; a service that is not named stays."""
    shop = site({"shop": service(), "api": service(), "other": service()})
    shop.switch(shop=GREEN, api=GREEN)
    assert [shop.color(name) for name in ("shop", "api", "other")] == ["green", "green", "blue"]
    assert shop.observe("other").generation == 1


@pytest.mark.parametrize("host", ["[::1]", "*", "[::]"])
def test_listeners(site, service, host):
    """IPv6 and wildcard listeners switch and tell their state like any other."""
    shop = site({"shop": service(bind=f"{host}:{free_port()}")})
    shop.switch(shop=GREEN)
    assert shop.color() == "green"
    assert shop.observe().color is GREEN


def test_unix_and_ipv6_servers(site, service, directory):
    """Services listen on unix sockets, and servers may be unix sockets or IPv6."""
    with Server("blue", directory / "blue.sock") as blue, Server("green", ("::1", 0)) as green:
        pools = {"blue": {"servers": [blue.address]}, "green": {"servers": [green.address]}}
        shop = site({"shop": service(bind=f"unix:{directory}/shop.sock", **pools)})
        assert (shop.color(), shop.observe().color) == ("blue", BLUE)
        shop.switch(shop=GREEN)
        assert (shop.color(), shop.observe().color) == ("green", GREEN)
        shop.close()


def test_state_is_for_this_machine(site):
    """Only a client whose address is the listener's own gets the state; others get 404."""
    shop = site()
    assert shop.get("/.lbswitch/state")[:2] == (200, "shop 1 0\n")
    status, body, headers = shop.get("/.lbswitch/state", source="127.0.0.2")
    assert status == 404
    assert "lbswitch" not in body + " ".join(headers)
    assert shop.color(source="127.0.0.2") == "blue"


def test_state_of_a_stranger(site, service):
    """A service does not take another one's listener for its own."""
    shop = site({"shop": service(), "api": service()})
    there = shop.config.services["api"].bind
    moved = shop.config.services["shop"].model_copy(update={"bind": there})
    shop.config.services["shop"] = moved
    with pytest.raises(NotSeen, match="the listener of api"):
        shop.observe("shop")


def test_restart_without_an_agent(site, binary):
    """Nginx alone, started by hand or at boot, comes back on the color that was live."""
    shop = site()
    shop.switch(shop=GREEN)
    shop.nginx.stop()
    assert shop.is_silent()
    configuration = shop.prefix / "current" / "nginx.conf"
    argv = [binary, "-p", str(shop.prefix), "-c", str(configuration), "-e", str(shop.prefix / "error.log")]
    subprocess.run(argv, check=True, timeout=10, stdin=subprocess.DEVNULL)
    wait_until(shop.nginx.is_running, "nginx is up")
    assert shop.color() == "green"
    assert shop.observe().generation == 2


def test_moved_state_directory(site):
    """The pointer is relative, so a copy of the state directory means the same."""
    shop = site()
    assert not Path(shop.state_dir / "live").readlink().is_absolute()


def test_reload_switching(site, service):
    """`switching: reload` renders the color: no test per request, and the listener shows it after the reload."""
    shop = site({"shop": service(switching="reload")})
    assert str(shop.state_dir / "live") not in (shop.prefix / "current" / "nginx.conf").read_text()
    shop.apply(shop.after(shop=GREEN))
    assert shop.color() == "green"
    assert shop.observe().shows(shop.intent.services["shop"], shop.nginx.installed())
    shop.apply(shop.after(shop=Route(GREEN, 50)))
    assert {shop.color() for _ in range(100)} == {"blue", "green"}
    assert shop.observe().share_green == 50
    shop.apply(shop.after(shop=BLUE))
    assert {shop.color() for _ in range(10)} == {"blue"}


def test_clients_leave_workers_that_a_reload_replaces(site, service):
    """On an nginx that cuts idle connections, the answers before the reload close them; bodies pass as ever."""
    shop = site({"shop": service(switching="reload")})
    closed, is_over = [], threading.Event()

    def use() -> None:
        client = shop.connect()
        while not is_over.is_set():
            client.request("POST", "/", b"x" * 40_000)
            answer = client.getresponse()
            body = answer.read()
            closed.append((answer.getheader("Connection"), answer.status, len(body) > 0))
        client.close()

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        wait_until(lambda: closed, "the client has an answer")
        shop.apply(shop.after(shop=GREEN))
        is_over.set()
        using.result()
    assert all((status, is_whole) == (200, True) for _, status, is_whole in closed)
    said = [connection for connection, _, _ in closed]
    assert shop.nginx.reload_is_free or said.count("close") > 10  # else the one in flight at the most


def test_who_died_before_the_reload_leaves_connections_open(site, service):
    """The old configuration that is put back keeps connections open again."""
    shop = site({"shop": service(switching="reload")})
    before = shop.nginx.installed()
    shop.nginx.install(shop.nginx.render(shop.after(shop=GREEN)))
    flag = shop.prefix / "closing" / before
    flag.parent.mkdir()
    flag.touch()
    shop.nginx.reinstall(before)
    assert not flag.exists()
