"""What HAProxy's workers still carry to the servers of a color, and how it is ended: managed and as a guest."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lbswitch.balancers.haproxy_draining import HAProxyDraining, _age_s
from lbswitch.core.model import Color, PoolKey, Route
from lbswitch.errors import BalancerError
from lbswitch.ports import Held
from tests.balancers.haproxy.guest import Guest
from tests.balancers.haproxy.managed import Managed, connect
from tests.balancers.streams import Idle, Stream, WebSocket
from tests.support.ports import free_port
from tests.support.wait import wait_until

SHOP_BLUE, SHOP_GREEN = PoolKey("shop", Color.BLUE), PoolKey("shop", Color.GREEN)


class Scene:
    """A HAProxy with the service `shop`, ours or somebody else's."""

    def __init__(self, made: Managed | Guest) -> None:
        self._made = made
        self.is_ours = isinstance(made, Managed)
        self.haproxy = made.haproxy
        self.port = made.ports["shop"] if isinstance(made, Managed) else made.port

    @property
    def draining(self) -> HAProxyDraining:
        return self.haproxy.draining

    def switch(self, color: Color) -> None:
        self._made.move(shop=Route(color))

    def reload(self) -> None:
        self.haproxy.reload()

    def current(self) -> int:
        return self._made.processes().current[0]

    def held(self, pool: PoolKey) -> tuple[Held, ...] | None:
        return self.draining.held([pool])[pool]

    def has(self, pool: PoolKey, count: int) -> None:
        """A client's last bytes may still be on their way."""
        wait_until(lambda: self.count(pool) == count, f"{count} connections to {pool}")

    def count(self, pool: PoolKey) -> int:
        held = self.held(pool)
        assert held is not None
        return sum(one.count for one in held)


@pytest.fixture(params=["managed", "guest"])
def shop(request, make, visit, service) -> Scene:
    """Either kind, serving blue."""
    made = make if request.param == "managed" else visit
    return Scene(made({"shop": service()}).serve())


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_connections_by_worker(shop, clients):
    """Each pool's count for the worker that has them; idle clients carry nothing, so they do not count."""
    assert shop.draining.held([SHOP_BLUE, SHOP_GREEN]) == {SHOP_BLUE: (), SHOP_GREEN: ()}
    clients.enter_context(Idle(shop.port))
    clients.enter_context(Stream(shop.port))
    clients.enter_context(WebSocket(shop.port))
    shop.switch(Color.GREEN)
    clients.enter_context(Stream(shop.port))
    worker = shop.current()
    shop.has(SHOP_GREEN, 1)
    shop.has(SHOP_BLUE, 2)
    assert shop.held(SHOP_BLUE) == (Held(worker, is_old=False, count=2),)
    clients.close()
    shop.has(SHOP_BLUE, 0)
    shop.has(SHOP_GREEN, 0)


def test_workers_from_before_a_reload(shop, clients):
    """What they hold is told apart; they are listed with what they still carry, until they end."""
    assert shop.draining.old_workers() == ()
    before, worker = clients.enter_context(Stream(shop.port)), shop.current()
    shop.reload()
    clients.enter_context(Stream(shop.port))
    shop.has(SHOP_BLUE, 2)
    assert set(shop.held(SHOP_BLUE)) == {Held(worker, is_old=True, count=1), Held(shop.current(), False, 1)}
    (old,) = shop.draining.old_workers()
    assert (old.pid, old.connections) == (worker, 1)
    assert old.age_s >= 0
    wait_until(lambda: shop.draining.old_workers()[0].age_s > old.age_s, "it grows older")
    before.close()
    wait_until(lambda: not shop.draining.old_workers(), "the old worker ends")
    shop.has(SHOP_BLUE, 1)


def test_exactly_the_bad_color_is_closed(shop, clients):
    """At most so many at a time, old workers' first; the good color and idle clients notice nothing."""
    assert shop.draining.why_not_closed() is None
    old = clients.enter_context(Stream(shop.port))
    shop.reload()
    new = [clients.enter_context(Stream(shop.port)), clients.enter_context(WebSocket(shop.port))]
    shop.switch(Color.GREEN)
    good, idle = clients.enter_context(Stream(shop.port)), clients.enter_context(Idle(shop.port))
    assert (good.color, idle.color()) == ("green", "green")
    shop.has(SHOP_BLUE, 3)

    assert shop.draining.close(SHOP_BLUE, 0) == 0
    assert shop.draining.close(SHOP_BLUE, 1) == 1
    assert old.has_ended()
    assert all(client.goes_on() for client in new)
    assert shop.draining.close(SHOP_BLUE, 10) == 2
    assert all(client.has_ended() for client in new)
    shop.has(SHOP_BLUE, 0)
    assert shop.draining.close(SHOP_BLUE, 10) == 0

    assert good.goes_on()
    assert idle.color() == "green"
    assert clients.enter_context(Idle(shop.port)).color() == "green"


def test_lingering_workers_are_ended(shop, clients):
    """The oldest beyond those that are kept, with all they carry; an owner's are left alone."""
    streams, workers = [], []
    for _ in range(3):
        streams.append(clients.enter_context(Stream(shop.port)))
        workers.append(shop.current())
        shop.reload()
    assert sorted(worker.pid for worker in shop.draining.old_workers()) == sorted(workers)
    assert shop.draining.end_old_workers(3) == ()
    ended = shop.draining.end_old_workers(1)
    assert [worker.pid for worker in ended] == (workers[:2] if shop.is_ours else [])
    assert all(stream.has_ended() for stream in streams[: len(ended)])
    assert all(stream.goes_on() for stream in streams[len(ended) :])
    wait_until(lambda: len(shop.draining.old_workers()) == 3 - len(ended), "the others are left")


def test_a_worker_that_hangs(shop, clients):
    """While an old worker does not answer nobody knows what it carries; the others' connections can be closed."""
    clients.enter_context(Stream(shop.port))
    worker = shop.current()
    shop.reload()
    new = clients.enter_context(Stream(shop.port))
    os.kill(worker, signal.SIGSTOP)
    try:
        unknown = {SHOP_BLUE: None, SHOP_GREEN: None}
        wait_until(lambda: shop.draining.held([SHOP_BLUE, SHOP_GREEN]) == unknown, "all its threads have stopped")
        assert [old.connections for old in shop.draining.old_workers()] == [None]
        assert shop.draining.close(SHOP_BLUE, 5) == 1
        assert new.has_ended()
        with pytest.raises(BalancerError, match="shop's blue servers were not closed: no answer"):
            shop.draining.close(SHOP_BLUE, 5)
    finally:
        os.kill(worker, signal.SIGCONT)
    shop.has(SHOP_BLUE, 1)


def test_a_balancer_that_is_down(shop):
    """Nothing is held, there are no old workers, and a close says why it did nothing."""
    shop._made.stop()
    assert shop.draining.held([SHOP_BLUE]) == {SHOP_BLUE: ()}
    assert shop.draining.old_workers() == shop.draining.end_old_workers(0) == ()
    assert "HAProxy's workers can't be asked" in shop.draining.why_not_closed()
    with pytest.raises(BalancerError, match="were not closed"):
        shop.draining.close(SHOP_BLUE, 1)


def test_plain_tcp(make: Callable[..., Managed], service: Callable[..., dict[str, Any]], clients):
    """Connections of a service in `mode: tcp` are counted and closed like requests."""
    managed = make({"shop": service(mode="tcp")}).serve()
    shop = Scene(managed)
    opened = clients.enter_context(connect(shop.port))
    shop.has(SHOP_BLUE, 1)
    shop.switch(Color.GREEN)
    other = clients.enter_context(connect(shop.port))
    shop.has(SHOP_GREEN, 1)
    assert shop.draining.close(SHOP_BLUE, 5) == 1
    assert opened.recv(1) == b""
    other.sendall(b"GET /version HTTP/1.1\r\nHost: shop\r\n\r\n")
    assert other.recv(12) == b"HTTP/1.1 200"


def test_services_that_share_servers(make: Callable[..., Managed], service: Callable[..., dict[str, Any]], clients):
    """HAProxy knows which service a connection is of, so just that one's are closed."""
    managed = make({"shop": service(bind=f"127.0.0.1:{free_port()}"), "blog": service()}).serve()
    port = int(managed.document["services"]["shop"]["bind"].rpartition(":")[2])
    shop, blog = (clients.enter_context(Stream(p)) for p in (port, managed.ports["blog"]))
    draining = managed.haproxy.draining
    wait_until(lambda: draining.held([SHOP_BLUE])[SHOP_BLUE] != (), "the stream is counted")
    assert draining.close(SHOP_BLUE, 5) == 1
    assert shop.has_ended()
    assert blog.goes_on()


@pytest.mark.parametrize(("text", "seconds"), [("7s", 7), ("2m5s", 125), ("1h2m", 3720), ("3d4h", 273600)])
def test_ages_of_sessions(text, seconds):
    """As HAProxy writes them."""
    assert _age_s(text) == seconds
