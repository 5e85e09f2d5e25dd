"""One Docker Engine for all tests here; where there can be none they are skipped, and say so.

LBSWITCH_TEST_DOCKER=require fails them instead. LBSWITCH_TEST_CACHE is where the image is kept between runs.
Every module here names the group "docker" of pytest-xdist: a worker with a test of it starts an engine of its own.
"""

import os
from collections.abc import Iterator

import pytest

from tests.docker.site import Site
from tests.support.docker import Engine, Unavailable, open_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A real engine with the image."""
    try:
        opened = open_engine()
        found = opened.__enter__()
    except Unavailable as error:
        reason = f"NOT TESTED with Docker: {error}"
        if os.environ.get("LBSWITCH_TEST_DOCKER") == "require":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield found
    finally:
        opened.__exit__(None, None, None)


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def running(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Site]:
    """An owner's balancer in a container, in front of two applications, with lbswitch as its guest."""
    made = Site(request.param, engine)
    try:
        yield made.start()
    except BaseException:
        made.show()
        raise
    finally:
        made.close()


@pytest.fixture
def site(request: pytest.FixtureRequest, running: Site) -> Iterator[Site]:
    """It with blue live and nothing edited."""
    try:
        running.begin()
        yield running
    finally:
        if request.node.stash.get(FAILED, False):
            running.show()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember a failure, for the logs to be shown."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report
