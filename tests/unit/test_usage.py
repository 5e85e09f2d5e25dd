"""Who counts as a client of a service."""

from collections.abc import Collection, Mapping

from lbswitch.core.guard import Clients
from lbswitch.usage import WINDOW_S, Usage


class Listener:
    """Connections, and the time, as the test sets them."""

    def __init__(self) -> None:
        self.connections: int | None = 0
        self.now = 100.0
        self.counted = 0
        self.usage = Usage(self.count, lambda: self.now)

    def count(self, services: Collection[str]) -> Mapping[str, int | None]:
        self.counted += 1
        return dict.fromkeys(services, self.connections)


def test_nobody_is_there() -> None:
    assert Listener().usage.clients("shop") is None


def test_clients_are_remembered_for_a_minute() -> None:
    """Seen by a sample, gone now: they count until a minute later."""
    listener = Listener()
    listener.connections = 3
    assert listener.usage.sample("shop")
    listener.connections = 0
    listener.now += WINDOW_S - 1
    assert listener.usage.clients("shop") == Clients(3, WINDOW_S - 1)
    listener.now += 2
    assert listener.usage.clients("shop") is None


def test_what_nobody_can_count_is_a_client() -> None:
    listener = Listener()
    listener.connections = None
    assert listener.usage.clients("shop") == Clients(None, 0.0)


def test_a_look_of_our_own_is_no_client() -> None:
    """What is counted while the agent itself is connected does not count."""
    listener = Listener()
    listener.connections = 1
    with listener.usage.own_look():
        assert not listener.usage.sample("shop")
        assert listener.usage.clients("shop") is None
    assert listener.counted == 0


def test_a_look_that_came_and_went_while_we_counted_is_no_client() -> None:
    listener = Listener()
    usage = Usage(lambda services: dict.fromkeys(services, look()), lambda: listener.now)

    def look() -> int:
        with usage.own_look():
            return 1

    assert not usage.sample("shop")
    assert usage.clients("shop") is None


def test_all_services_are_counted_at_once() -> None:
    """One reading of the kernel's tables serves a thousand services."""
    listener = Listener()
    listener.connections = 2
    listener.usage.count(["shop", "blog"])
    assert listener.counted == 1
    listener.connections = 0
    assert listener.usage.clients("shop") == listener.usage.clients("blog") == Clients(2, 0.0)


def test_services_that_are_gone_are_forgotten() -> None:
    """One that comes back under the name begins anew."""
    listener = Listener()
    listener.connections = 2
    listener.usage.sample("shop")
    listener.usage.keep(["blog"])
    listener.connections = 0
    assert listener.usage.clients("shop") is None
