"""Weights: which share of the requests goes to a color, and who sticks to it."""

import pytest

from lbswitch.core.model import Color, Route
from tests.balancers.nginx.site import BLUE, GREEN


def _share(shop, requests=400, **options):
    return sum(shop.color(**options) == "green" for _ in range(requests)) / requests


def test_random(site, service):
    """Every request draws: 30 percent is about 30 percent, and it moves without a reload."""
    shop = site({"shop": service(weights={})})
    revision = shop.nginx.installed()
    assert _share(shop, 50) == 0
    shop.switch(shop=Route(BLUE, 70))
    assert 0.15 < _share(shop) < 0.45  # six standard deviations
    assert shop.observe().share_green == 30
    shop.switch(shop=GREEN)
    assert _share(shop, 100) == 1
    assert shop.nginx.render(shop.intent).revision == revision


def test_listener_shows_both_colors(site, service):
    """The state tells the color that was drawn for this very request."""
    shop = site({"shop": service(weights={})})
    shop.switch(shop=Route(GREEN, 50))
    seen = [shop.observe() for _ in range(60)]
    assert {one.color for one in seen} == {BLUE, GREEN}
    assert all(one.shows(shop.intent.services["shop"], shop.nginx.installed()) for one in seen)


@pytest.mark.parametrize(
    ("sticky", "sent"),
    [
        ("cookie:my-id", {"Cookie": "a=1; my-id={}; MY-ID=0"}),
        ("header:X-User", {"X-User": "{}"}),
        ("header:X_User", {"X_User": "{}"}),
    ],
)
def test_sticky(site, service, sticky, sent):
    """Who sends the same cookie or header stays on a color; the colors' shares are those of the weights."""
    shop = site({"shop": service(weights={"sticky": sticky})})
    shop.switch(shop=Route(BLUE, 50))

    def color(user: object) -> Color:
        connection = shop.connect()
        try:
            connection.request("GET", "/", headers={name: value.format(user) for name, value in sent.items()})
            return Color(connection.getresponse().read().decode().split()[0])
        finally:
            connection.close()

    first = {user: color(user) for user in range(60)}
    assert set(first.values()) == {BLUE, GREEN}
    assert {user: color(user) for user in first} == first
    shop.switch(shop=Route(BLUE, 40))
    assert all(color(user) is GREEN for user, was in first.items() if was is GREEN)


@pytest.mark.parametrize("sticky", ["cookie:id", "header:X-User"])
def test_absent(site, service, sticky):
    """Without the cookie or header every request draws for itself."""
    shop = site({"shop": service(weights={"sticky": sticky})})
    shop.switch(shop=Route(BLUE, 50))
    assert {shop.color() for _ in range(60)} == {"blue", "green"}


def test_address(site, service):
    """A client address stays on its color, others may have the other."""
    shop = site({"shop": service(weights={"sticky": "address"})})
    shop.switch(shop=Route(BLUE, 50))
    colors = {n: {shop.color(source=f"127.0.0.{n}") for _ in range(3)} for n in range(1, 41)}
    assert all(len(seen) == 1 for seen in colors.values())
    assert set().union(*colors.values()) == {"blue", "green"}


def test_sharing_keys(site, service):
    """Services that draw by the same cookie agree, those that draw by others are independent of them."""
    by_cookie = {"weights": {"sticky": "cookie:id"}}
    shop = site({"shop": service(**by_cookie), "api": service(**by_cookie), "web": service(weights={})})
    shop.switch(shop=Route(BLUE, 50), api=Route(BLUE, 50))
    for user in range(20):
        assert shop.color("shop", Cookie=f"id={user}") == shop.color("api", Cookie=f"id={user}")
    assert shop.color("web") == "blue"


def test_first_weight(site):
    """A service without weights gets them with one reload; before and after it the pointer holds for both."""
    shop = site()
    shop.switch(shop=GREEN)
    split = shop.after(shop=Route(GREEN, 50))
    assert shop.nginx.render(split).revision != shop.nginx.installed()
    shop.commit(split)
    assert shop.color() == "green"  # the old files know no buckets and stay with the live color
    shop.apply(split)
    assert {shop.color() for _ in range(60)} == {"blue", "green"}


def test_reload_switching_by_cookie(site, service):
    """A rendered split is as sticky as one by buckets."""
    shop = site({"shop": service(switching="reload", weights={"sticky": "cookie:id"})})
    shop.apply(shop.after(shop=Route(BLUE, 50)))
    colors = {n: {shop.color(Cookie=f"id={n}") for _ in range(3)} for n in range(30)}
    assert all(len(seen) == 1 for seen in colors.values())
    assert set().union(*colors.values()) == {"blue", "green"}
