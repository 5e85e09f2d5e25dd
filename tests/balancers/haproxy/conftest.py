"""Real HAProxy, two real applications."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.balancers.haproxy.managed import Managed, binaries
from tests.support.app import App

Make = Callable[..., Managed]


@pytest.fixture(scope="session", params=binaries() or ["haproxy is not installed"])
def binary(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def blue() -> Iterator[App]:
    with App("blue") as app:
        yield app


@pytest.fixture(scope="session")
def green() -> Iterator[App]:
    with App("green", "v2") as app:
        yield app


@pytest.fixture
def service(blue: App, green: App) -> Callable[..., dict[str, Any]]:
    """The settings of a service between the two applications."""
    return lambda **more: {"blue": {"servers": [blue.address]}, "green": {"servers": [green.address]}, **more}


@pytest.fixture
def make(binary: str) -> Iterator[Make]:
    """Make HAProxies that are stopped and removed at the end."""
    made: list[Managed] = []

    def make_one(services: dict[str, dict[str, Any]], **balancer: Any) -> Managed:
        made.append(Managed(binary, services, **balancer))
        return made[-1]

    yield make_one
    for managed in made:
        managed.close()


@pytest.fixture
def shop(make: Make, service: Callable[..., dict[str, Any]]) -> Managed:
    """One service, serving blue."""
    return make({"shop": service()}).serve()
