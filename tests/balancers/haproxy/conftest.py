"""Real HAProxy, two real applications."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.balancers.haproxy.guest import Guest
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


@pytest.fixture(scope="session")
def theirs() -> Iterator[App]:
    """The owner's own application, which lbswitch has nothing to do with."""
    with App("theirs") as app:
        yield app


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's certificate and key, as HAProxy wants them."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    directory = tmp_path_factory.mktemp("owner")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(directory / "key"), "-out", str(directory / "cert")]
    subprocess.run([*argv, *files, "-subj", "/CN=shop.example", "-days", "2"], check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_bytes((directory / "cert").read_bytes() + (directory / "key").read_bytes())
    return both


@pytest.fixture
def visit(binary: str, pem: Path, theirs: App) -> Iterator[Callable[..., Guest]]:
    """Make HAProxies of owners, with lbswitch as a guest, that are gone at the end."""
    made: list[Guest] = []

    def visit_one(services: dict[str, dict[str, Any]], **more: Any) -> Guest:
        made.append(Guest(binary, services, pem, theirs.address, **more))
        return made[-1]

    yield visit_one
    for guest in made:
        guest.close()


@pytest.fixture
def guest(visit: Callable[..., Guest], service: Callable[..., dict[str, Any]]) -> Guest:
    """One service in the owner's frontend, serving blue."""
    return visit({"shop": service()}).serve()
