"""Single servers are left out at once, in every worker, without rendering anything."""

import pytest

from lbswitch.core.model import Color, Route
from lbswitch.errors import CommitFailed
from tests.balancers.haproxy.managed import ask, key
from tests.support.ports import free_port
from tests.support.wait import wait_until


@pytest.fixture
def pool(make, blue, green):
    """One service whose blue pool is both applications, so that an answer tells the server."""
    pool = {"servers": [blue.address, green.address]}
    managed = make({"shop": {"blue": pool, "green": {"servers": [green.address]}}}).serve()
    assert servers(managed) == {"blue", "green"}
    return managed


def servers(managed):
    """The servers that answer on six connections; round robin reaches all."""
    return {managed.app() for _ in range(6)}


def test_an_ejected_server_gets_no_request_until_it_is_back(pool, blue):
    """From the next request on; again and again the same is the same."""
    out = frozenset([key("shop", "blue", blue.address)])
    for _ in range(2):
        assert pool.haproxy.eject(out)
        assert servers(pool) == {"green"}
    assert pool.haproxy.eject(frozenset())
    assert servers(pool) == {"blue", "green"}


def test_a_pool_is_never_emptied(pool, blue, green):
    """Asked to leave out all servers of a color, all of them stay."""
    assert pool.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    assert pool.haproxy.eject(frozenset(key("shop", "blue", app.address) for app in (blue, green)))
    assert servers(pool) == {"blue", "green"}


def test_it_survives_a_reload_and_a_restart(pool, blue):
    """The new worker leaves out what the old one did; a draining worker still does, too."""
    held = pool.connection()
    ask(held, "/", {})
    pool.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    pool.haproxy.reload()
    assert len(pool.processes().draining) == 1
    assert ask(held, "/", {}).getheader("X-App") == "green"
    held.close()
    assert servers(pool) == {"green"}
    pool.haproxy.stop()
    pool.haproxy.start()
    assert servers(pool) == {"green"}


def test_an_adapter_that_was_not_there_leaves_out_exactly_these(pool, blue):
    """A restarted agent does not know what was left out before; the workers do."""
    pool.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    later = pool.adapter()
    assert later.eject(frozenset())
    assert servers(pool) == {"blue", "green"}


def test_a_draining_worker_with_other_servers_is_not_confused(pool, blue, green):
    """Server s1 of an old configuration is another address: it stays in."""
    held = pool.connection()
    ask(held, "/", {})
    pool.document["services"]["shop"]["blue"] = {"servers": [f"127.0.0.1:{free_port()}", blue.address, green.address]}
    later = pool.adapter()
    later.install(later.render(pool.intent))
    later.reload()
    first = later._config.services["shop"].blue.servers[0]
    later.eject(frozenset([key("shop", "blue", first)]))
    states = pool.haproxy._runtime.ask(pool.processes().draining[0], "show servers state shop_blue")
    admin = [line.split()[6] for line in states.splitlines()[2:] if line.strip()]
    assert admin == ["0", "0"]
    wait_until(lambda: servers(pool) == {"blue", "green"}, "the new worker answers")
    held.close()


def test_it_works_with_haproxy_stopped(pool, blue):
    """Then it holds from the next start on."""
    pool.haproxy.stop()
    assert pool.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    pool.haproxy.start()
    assert servers(pool) == {"green"}


def test_unknown_servers_are_ignored(pool):
    """A server that the configuration no longer has can't be left out."""
    assert pool.haproxy.eject(frozenset([key("shop", "blue", "192.0.2.1:80"), key("gone", "blue", "192.0.2.1:80")]))
    assert servers(pool) == {"blue", "green"}


def test_a_runtime_api_that_is_gone_is_an_error(pool, blue):
    """The agent must know that the server still gets requests."""
    (pool.directory / "master.sock").rename(pool.directory / "hidden.sock")
    with pytest.raises(CommitFailed, match="could not be taken out"):
        pool.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    (pool.directory / "hidden.sock").rename(pool.directory / "master.sock")


def test_switches_do_not_bring_servers_back(pool, blue):
    """A commit with the same ejected servers leaves them out."""
    out = frozenset([key("shop", "blue", blue.address)])
    pool.intent = pool.intent.with_ejected(out)
    pool.haproxy.eject(out)
    pool.move(shop=Route(Color.GREEN))
    pool.move(shop=Route(Color.BLUE))
    assert servers(pool) == {"green"}
