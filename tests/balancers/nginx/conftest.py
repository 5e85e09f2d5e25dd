import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.balancers.nginx.owner import Guest, Owner
from tests.balancers.nginx.site import Site, binaries
from tests.support.agent import make_short_directory
from tests.support.app import App
from tests.support.ports import free_port


@pytest.fixture(scope="session", params=binaries() or [None])
def binary(request) -> str:
    """Every nginx that is on this machine."""
    if request.param is None:
        pytest.skip("no nginx on this machine")
    return request.param


@pytest.fixture(scope="session")
def blue() -> Iterator[App]:
    with App("blue") as app:
        yield app


@pytest.fixture(scope="session")
def green() -> Iterator[App]:
    with App("green") as app:
        yield app


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for unix sockets, and open to nginx's workers."""
    made = make_short_directory()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def service(blue: App, green: App) -> Callable[..., dict[str, Any]]:
    """Makes a service of the two applications, on a port of its own."""

    def make(**settings: Any) -> dict[str, Any]:
        return {
            "bind": f"127.0.0.1:{free_port()}",
            "blue": {"servers": [blue.address]},
            "green": {"servers": [green.address]},
            **settings,
        }

    return make


@pytest.fixture
def site(directory: Path, service: Callable[..., dict[str, Any]], binary: str) -> Iterator[Callable[..., Site]]:
    """Starts an nginx with these services, by default `shop` alone; it is stopped at the end."""
    with ExitStack() as stack:

        def make(services: dict[str, Any] | None = None, **balancer: Any) -> Site:
            services = {"shop": service()} if services is None else services
            return stack.enter_context(Site(directory, services, binary, **balancer))

        yield make


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return cert, key


@pytest.fixture
def owner(directory: Path, binary: str, certificate: tuple[Path, Path]) -> Iterator[Owner]:
    """Somebody's nginx with sites of his own; it does not run yet, and is stopped at the end."""
    made = Owner(directory, binary, certificate)
    yield made
    made.stop()


@pytest.fixture
def guest(owner: Owner, blue: App, green: App) -> Callable[..., Guest]:
    """Makes the guest with these services, by default `shop` behind the owner's listener without TLS."""

    def make(services: dict[str, Any] | None = None, **balancer: Any) -> Guest:
        return Guest(owner, services or {"shop": guest_service(owner, blue, green)}, **balancer)

    return make


def guest_service(owner: Owner, blue: App, green: App, **settings: Any) -> dict[str, Any]:
    """A service of the two applications behind the owner's listener."""
    return {
        "bind": f"127.0.0.1:{owner.port}",
        "blue": {"servers": [blue.address]},
        "green": {"servers": [green.address]},
        "verify": {"host": "shop.example"},
        **settings,
    }
