from collections.abc import Callable, Iterator

import pytest

from tests.setup.owner import PACKAGED_HAPROXY, PACKAGED_NGINX, HAProxyOwner, NginxOwner
from tests.support.app import App

Haproxies = Callable[..., HAProxyOwner]


@pytest.fixture(scope="module")
def apps() -> Iterator[tuple[App, App]]:
    """The applications behind blue and green; nobody breaks them."""
    with App("blue") as blue, App("green") as green:
        yield blue, green


@pytest.fixture
def nginx(apps: tuple[App, App]) -> Iterator[NginxOwner]:
    """A packaged nginx with the operator's site, running."""
    if not PACKAGED_NGINX.is_dir():
        pytest.skip("the distribution's nginx is not installed: apt-get install nginx-light")
    owner = NginxOwner(apps[0].address, apps[1].address)
    try:
        yield owner.start()
    finally:
        owner.close()


@pytest.fixture
def haproxies(apps: tuple[App, App]) -> Iterator[Haproxies]:
    """Makes packaged HAProxies with the operator's frontend; not running yet."""
    if not PACKAGED_HAPROXY.is_dir():
        pytest.skip("the distribution's HAProxy is not installed: apt-get install haproxy")
    made: list[HAProxyOwner] = []

    def make(**how: object) -> HAProxyOwner:
        made.append(HAProxyOwner(apps[0].address, apps[1].address, **how))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield make
    finally:
        for owner in made:
            owner.close()
