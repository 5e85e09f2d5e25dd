"""Split traffic: random, or sticking to a cookie, a header or an address."""

from collections import Counter

import pytest

from lbswitch.core.model import Color, Route
from tests.balancers.haproxy.managed import ask, connect
from tests.support.wait import wait_until

GREEN = Route(Color.GREEN)


def shares(managed, requests=400, **headers):
    """How many of these requests each application answered, on one connection."""
    connection = managed.connection()
    try:
        apps = (ask(connection, "/", headers).getheader("X-App") for _ in range(requests))
        return Counter(apps)
    finally:
        connection.close()


def test_every_request_draws(shop):
    """Without stickiness the requests of one connection go to both colors, in about the share that was asked for."""
    shop.move(shop=Route(Color.BLUE, 70))
    assert 60 <= shares(shop)["green"] <= 180  # 120 expected, standard deviation 9


def test_weights_move_without_a_reload(shop):
    """0, any split and 100 are commits, in any order, and the rendered configuration stays the same."""
    revision = shop.haproxy.render(shop.intent).revision
    for route in (Route(Color.BLUE, 99), Route(Color.BLUE, 50), GREEN, Route(Color.GREEN, 1), Route(Color.BLUE)):
        shop.move(shop=route)
        assert shop.haproxy.render(shop.intent).revision == revision
    assert shares(shop, 50) == {"blue": 50}
    shop.move(shop=GREEN)
    assert shares(shop, 50) == {"green": 50}


def test_the_color_that_is_told_is_the_one_that_was_drawn(shop):
    """While split, both colors answer the question, with the same share."""
    shop.move(shop=Route(Color.BLUE, 50))
    seen = [shop.haproxy.observe("shop") for _ in range(60)]
    assert {observation.color for observation in seen} == {Color.BLUE, Color.GREEN}
    assert {observation.share_green for observation in seen} == {50}


def test_a_split_survives_a_restart(shop):
    """The share is on disk as well."""
    shop.move(shop=Route(Color.GREEN, 50))
    shop.stop()
    shop.haproxy.start()
    assert shop.shows(shop.haproxy.observe("shop"), "shop")
    assert set(shares(shop, 60)) == {"blue", "green"}


@pytest.mark.parametrize(("sticky", "header"), [("cookie:user", "Cookie"), ("header:X-User", "X-User")])
def test_a_client_sticks_to_a_color(make, service, sticky, header):
    """The same cookie or header gives the same color, different ones spread, and who is on green stays on green."""
    managed = make({"shop": service(weights={"sticky": sticky})}).serve()
    value = (lambda user: f"a=b; user=u{user}; c=d") if header == "Cookie" else (lambda user: f"u{user}")

    def colors() -> list[str]:
        connection = managed.connection()
        found = [ask(connection, "/", {header: value(user)}).getheader("X-App") for user in range(100)]
        connection.close()
        return found

    managed.move(shop=Route(Color.BLUE, 70))
    at_30 = colors()
    assert colors() == at_30
    assert 15 <= at_30.count("green") <= 45
    managed.move(shop=Route(Color.BLUE, 40))
    at_60 = colors()
    assert all(later == "green" for early, later in zip(at_30, at_60, strict=True) if early == "green")
    assert at_60.count("green") > at_30.count("green")


def test_a_client_without_the_cookie_draws(make, service):
    """Nobody who lacks the cookie is bound to a color."""
    managed = make({"shop": service(weights={"sticky": "cookie:user"})}).serve()
    managed.move(shop=Route(Color.BLUE, 50))
    assert set(shares(managed, 60)) == {"blue", "green"}
    assert set(shares(managed, 60, Cookie="user=")) == {"blue", "green"}


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_an_address_sticks_to_a_color(make, service, mode):
    """Connections from one address get one color; addresses spread."""
    managed = make({"shop": service(mode=mode, weights={"sticky": "address"})}).serve()
    managed.move(shop=Route(Color.BLUE, 50))

    def app(source: str) -> str:
        with connect(managed.ports["shop"], source) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b""))
        return text.split(b"\r\n\r\n")[1].split()[0].decode()

    sources = [f"127.0.1.{number}" for number in range(1, 31)]
    first = [app(source) for source in sources]
    assert [app(source) for source in sources] == first
    assert set(first) == {"blue", "green"}


def test_connections_in_tcp_mode_are_split(make, service):
    """In `mode: tcp` every connection draws."""
    managed = make({"shop": service(mode="tcp")}).serve()
    managed.move(shop=Route(Color.BLUE, 50))
    assert {managed.app() for _ in range(40)} == {"blue", "green"}
    managed.move(shop=GREEN)
    wait_until(lambda: managed.app() == "green", "green answers")
    assert {managed.app() for _ in range(20)} == {"green"}
