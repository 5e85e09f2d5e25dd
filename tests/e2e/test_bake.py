"""The watch after a switch, with real requests through real balancers."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.conftest import Site
from tests.support.load import Load
from tests.support.wait import wait_until

WATCH = {"duration": "60s"}
Begin = Callable[[Site], Load]


@pytest.fixture
def traffic() -> Iterator[Begin]:
    """Some requests a second, until the end of the test."""
    with ExitStack() as stack:

        def begin(site: Site) -> Load:
            site.until_known()
            load = Load("127.0.0.1", site.port, rate=60, connections=4, timeout_s=5).start()
            stack.callback(load.stop)
            return load

        yield begin


def monitoring(site: Site, *arguments: str) -> "subprocess.Popen[str]":
    """`monitor` beside everything else."""
    return subprocess.Popen(
        [*site.agent.argv, "monitor", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=site.agent.env,
    )


def bake(site: Site) -> dict[str, Any]:
    found = site.status()["bake"]
    assert found is not None
    return dict(found)


def has_judged(site: Site) -> bool:
    return any(verdict["outcome"] == "pass" for verdict in bake(site)["verdicts"])


def test_a_color_that_fails_is_rolled_back(make_site: Callable[..., Site], traffic: Begin) -> None:
    """By itself, with the reason in history, monitor and status, and no idempotent request lost at the clients.

    The color stays quarantined until a person releases it.
    """
    site = make_site(bake=WATCH)
    load = traffic(site)
    assert site.agent.lbswitch("green").code == 0
    watching = monitoring(site, "--duration", "50")
    wait_until(lambda: bake(site)["duration_s"] == 50.0 and has_judged(site), "green was judged", 30)
    wait_until(lambda: site.status()["shield"] == "green", "green is under the shield")
    load.mark("bad")
    site.green.fail(traffic=500)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 5, out
    site.until_live("blue")
    assert load.stop().phase("bad").lost == 0
    last = site.agent.http("GET", "/v1/history?limit=1")[1]["operations"][0]
    assert (last["kind"], last["actor"], last["state"]) == ("rollback", "lbswitch", "done")
    assert "failed on green" in last["reason"] or "error_ratio of green" in last["reason"]
    assert f"shop: green was rolled back: {last['reason']}" in out
    wait_until(lambda: site.status()["quarantined"], "green is quarantined")
    assert f"green is quarantined: {last['reason']}" in site.agent.lbswitch("status").output
    assert site.agent.lbswitch("green").code == 3
    assert site.agent.lbswitch("release").code == 0
    assert site.agent.lbswitch("green").code == 0


def test_a_watch_goes_on_in_the_next_agent(make_site: Callable[..., Site], traffic: Begin) -> None:
    """Killed in the middle of a watch: the next agent finds the breach, and `monitor` sees it."""
    site = make_site(bake=WATCH)
    traffic(site)
    assert site.agent.lbswitch("green").code == 0
    watching = monitoring(site, "--duration", "50")
    wait_until(lambda: bake(site)["duration_s"] == 50.0 and has_judged(site), "green was judged", 30)
    site.agent.kill()
    site.agent.start()
    assert bake(site)["state"] == "baking"
    site.until_known()
    site.green.fail(traffic=500)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 5, out
    assert site.status()["live"] == "blue"


def test_a_breach_without_a_rollback(make_site: Callable[..., Site], traffic: Begin) -> None:
    """Exit code 10 as soon as it is found, and the color keeps the traffic; 0 when all is well."""
    site = make_site(bake={**WATCH, "on_breach": "alert"})
    traffic(site)
    assert site.agent.lbswitch("green").code == 0
    passed = site.agent.lbswitch("monitor", "--duration", "2", "--json")
    assert (passed.code, passed.output["state"]) == (0, "passed")
    watching = monitoring(site, "--duration", "60")
    wait_until(lambda: bake(site)["state"] == "baking", "it is watched again")
    site.green.fail(traffic=500)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 10, out
    assert site.status()["live"] == "green"
    assert bake(site)["state"] == "baking"


def test_a_canary_goes_on_and_back(make_site: Callable[..., Site], traffic: Begin) -> None:
    """It takes the next step when the criteria pass; a breach at any step gives all traffic back."""
    site = make_site(
        bake=WATCH, weights={"sticky": "none"}, criteria={"error_ratio": {"threshold": 0.05, "window": "5s"}}
    )
    traffic(site)
    assert site.agent.lbswitch("green", "--steps", "30,60,100", "--every", "1s").code == 0
    assert site.status()["weights"]["green"] == 30
    wait_until(lambda: site.status()["weights"]["green"] >= 60, "the second step", 30)
    steps = site.agent.http("GET", "/v1/history")[1]["operations"]
    assert steps[-2]["reason"] == f"step of the canary that began with operation {steps[-1]['id']}"
    site.green.fail(traffic=500)
    wait_until(lambda: bake(site)["state"] == "rolled-back", "it is rolled back", 30)
    shop = site.status()
    assert (shop["live"], shop["weights"]) == ("blue", {"blue": 100, "green": 0})
