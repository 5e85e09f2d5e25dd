"""A site: two applications, an agent, and a real balancer in front."""

import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.agent import Agent
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

KINDS = ("nginx", "haproxy")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
FAST = {"interval": "100ms", "timeout": "500ms"}


def other_binary(kind: str) -> str | None:
    """The first of `LBSWITCH_TEST_NGINX` or `LBSWITCH_TEST_HAPROXY`: run these tests with another version."""
    return os.environ.get(f"LBSWITCH_TEST_{kind.upper()}", "").partition(":")[0] or None


def has_balancer(kind: str) -> bool:
    return bool(other_binary(kind) or shutil.which(kind) or shutil.which(kind, path=_SBIN))


class Site:
    """One service `shop` with an application behind each color."""

    def __init__(self, kind: str, **service: Any) -> None:
        self.kind = kind
        self.blue, self.green = App("blue", "v1"), App("green", "v2")
        self.port = free_port()
        binary = other_binary(kind)
        self.config: dict[str, Any] = {
            "balancer": {"kind": kind, **({"binary": binary} if binary else {})},
            "services": {
                "shop": {
                    "bind": f"127.0.0.1:{self.port}",
                    "blue": {"servers": [self.blue.address]},
                    "green": {"servers": [self.green.address]},
                    "health": FAST,
                    **service,
                }
            },
        }
        self.agent = Agent(None, self.config)

    def front(self, path: str = "/") -> str:
        """What the service's own listener answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode().strip())

    def app(self) -> str:
        """Which application answers."""
        return self.front().split()[0]

    def status(self) -> dict[str, Any]:
        return self.agent.status("shop")

    def until_live(self, color: str) -> None:
        wait_until(lambda: self.status()["live"] == color, f"{color} is live")

    def until_known(self) -> None:
        """Both colors have a verdict."""
        wait_until(
            lambda: all(self.status()[color]["state"] != "unknown" for color in ("blue", "green")), "health is known"
        )

    def close(self) -> None:
        self.agent.close()
        self.blue.stop()
        self.green.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each balancer; one that is not on this machine is skipped, and pytest says so."""
    if not has_balancer(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Remember a failure, for the agents' logs to be shown."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def make_site(kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Site]]:
    """Make sites that are running, and that are gone after the test; of one that failed the agents' logs are shown."""
    with ExitStack() as stack:

        def close(site: Site) -> None:
            if request.node.stash.get(FAILED, False):
                print(f"--- log of the agent in {site.agent.directory}\n{site.agent.log()}")
            site.close()

        def make(*, start: bool = True, **service: Any) -> Site:
            site = Site(kind, **service)
            stack.callback(close, site)
            site.blue.start()
            site.green.start()
            if start:
                site.agent.start()
            return site

        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with the defaults, running."""
    return make_site()
