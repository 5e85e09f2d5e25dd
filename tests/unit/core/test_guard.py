"""What a change would take away from clients."""

from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.guard import Clients, lost_listeners, lost_pools


def config_of(managed: bool = True, **binds: str) -> Config:
    """Services by name with their `bind`."""
    guest = (
        {} if managed else {"managed": False, "config": "/etc/nginx/nginx.conf", "output_dir": "/etc/nginx/lbswitch"}
    )
    pools = {"blue": {"servers": ["127.0.0.1:9101"]}, "green": {"servers": ["127.0.0.1:9102"]}}
    services = {name.replace("_", "-"): {"bind": bind, **pools} for name, bind in binds.items()}
    return Config.model_validate({"balancer": {"kind": "nginx", **guest}, "services": services})


SHOP = config_of(shop="127.0.0.1:8080")


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ({"shop_blue": 2}, {"shop_blue": 1}, []),
        ({"shop_blue": 2}, {"shop_blue": 0}, ["pool shop_blue has 2 servers and would have none"]),
        ({"shop_blue": 1}, {}, ["pool shop_blue has 1 server and would be gone"]),
        ({"lbswitch_shop_blue": 1}, {}, ["pool lbswitch_shop_blue has 1 server and would be gone"]),
        ({"shop_blue": 0}, {"shop_blue": 0}, []),
        ({"blog_blue": 3}, {}, []),  # its service is gone, too: that is judged by its clients
        ({"theirs": 3}, {"theirs": 0}, ["pool theirs has 3 servers and would have none"]),
    ],
)
def test_pools(before: dict[str, int], after: dict[str, int], lost: list[str]) -> None:
    """Fewer servers are fine; none, or no pool for a service that stays, is not."""
    assert lost_pools(before, after, SHOP) == lost


TWO = config_of(shop="127.0.0.1:8080", blog="127.0.0.1:8081")
USED = Clients(8)


def ask(**clients: Clients) -> Any:
    return clients.get


def test_a_service_that_nobody_uses_may_go() -> None:
    assert lost_listeners(TWO, SHOP, ask(shop=USED)) == []


def test_a_service_with_clients_may_not_go() -> None:
    """From two services to one."""
    assert lost_listeners(TWO, SHOP, ask(blog=USED)) == [
        "blog would be removed, and its listener 127.0.0.1:8081 has 8 client connections now"
    ]


def test_a_renamed_service_is_removed_even_if_another_listens_there() -> None:
    """Its clients would get a service that begins on its initial color."""
    assert lost_listeners(SHOP, config_of(store="127.0.0.1:8080"), ask(shop=Clients(1, 12.3))) == [
        "shop would be removed, and its listener 127.0.0.1:8080 had 1 client connection 12 s ago "
        "(store would take it over, beginning on blue)"
    ]


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8081", True),
        ("127.0.0.1:8080", "127.0.0.2:8080", True),
        ("127.0.0.1:8080", "*:8080", False),
        ("127.0.0.1:8080", "[::]:8080", True),
        ("[::1]:8080", "[::]:8080", False),
        ("*:8080", "127.0.0.1:8080", True),
        ("unix:/run/shop.sock", "*:8080", True),
    ],
)
def test_a_moved_bind(old: str, new: str, moves: bool) -> None:
    """Clients of the old address must reach the new one; if they don't, nobody may be there."""
    before, after = config_of(shop=old), config_of(shop=new)
    assert bool(lost_listeners(before, after, ask(shop=USED))) is moves
    assert lost_listeners(before, after, ask()) == []


def test_the_listener_of_a_guest_is_not_moved_by_our_configuration() -> None:
    """`bind` only says where the owner listens."""
    before, after = config_of(managed=False, shop="127.0.0.1:80"), config_of(managed=False, shop="127.0.0.1:81")
    assert lost_listeners(before, after, ask(shop=USED)) == []


def test_clients_that_nobody_can_count_are_clients() -> None:
    (lost,) = lost_listeners(TWO, SHOP, ask(blog=Clients(None)))
    assert lost.endswith("127.0.0.1:8081 has clients that can't be counted from here")
