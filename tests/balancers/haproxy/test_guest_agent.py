"""A real agent beside a real HAProxy of somebody else's: attach, switch, roll back, crash, restart, leave."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.balancers.haproxy.guest import Guest
from tests.support.agent import Agent
from tests.support.load import Load
from tests.support.wait import wait_until


@pytest.fixture
def owner(visit: Callable[..., Guest], service: Callable[..., dict[str, Any]]) -> Guest:
    """An owner who has never heard of lbswitch: neither our file nor a line for it."""
    settings = service(
        health={"path": "/health", "interval": "100ms"}, failover={"enabled": False}, verify={"deadline": "2s"}
    )
    guest = visit({"shop": settings}, load="never", control="signal")
    guest.write_owner([])
    guest.start()
    return guest


@pytest.fixture
def agent(owner: Guest) -> Iterator[Agent]:
    """An agent as the owner's guest, started before the owner has written anything."""
    agent = Agent(owner.directory, {name: value for name, value in owner.document.items() if name != "agent"})
    agent.start()
    yield agent
    agent.stop()


def attach(owner: Guest, agent: Agent, load: str = "after") -> None:
    """What `lbswitch init` tells the owner to do: a second -f, one line, a restart."""
    owner.load = load
    owner.write_owner(owner.lines("shop"))
    owner.stop()
    owner.start()
    wait_until(lambda: agent.status("shop")["verified"], "the agent sees its service")


def test_the_agent_waits_for_the_owner(owner, agent):
    """Before the owner wrote anything it is ready, says what is missing, and changes nothing of theirs."""
    text = owner.owner.read_text()
    assert not agent.status("shop")["verified"]
    said = agent.lbswitch("check")
    assert said.code == 0
    assert 'EXTRAOPTS="-S' in str(said.output)
    assert "use_backend lbswitch_shop_%[str(shop),map(" in str(said.output)
    assert owner.app() == "theirs"
    attach(owner, agent)
    assert owner.app() == "blue"
    assert text == owner.owner.read_text().replace(f"        {owner.lines('shop')[0]}", "")


def test_switch_and_rollback_under_load(owner, agent):
    """Nothing is lost, no worker is replaced, and the owner's files stay byte for byte."""
    attach(owner, agent)
    text, workers = owner.owner.read_bytes(), owner.processes().current
    load = Load("127.0.0.1", owner.port, rate=200).start()
    try:
        assert agent.lbswitch("green").code == 0
        wait_until(lambda: load.report().answered_by("green") > 50, "green answers")
        assert agent.lbswitch("rollback").code == 0
        assert agent.lbswitch("green").code == 0
        report = load.stop()
    finally:
        load.close()
    assert report.lost == 0, str(report)
    assert owner.app() == "green"
    assert owner.processes().current == workers
    assert owner.owner.read_bytes() == text


def test_the_agent_is_killed_and_the_owner_restarts(owner, agent):
    """Without an agent the owner's restart comes back on the live color, and the next agent goes on from there."""
    attach(owner, agent)
    assert agent.lbswitch("green").code == 0
    agent.kill()
    assert owner.app() == "green"
    owner.stop()
    owner.start()
    assert owner.app() == "green"
    agent.start()
    wait_until(lambda: agent.status("shop")["verified"], "the agent sees its service")
    assert agent.status("shop")["live"] == "green"
    assert agent.lbswitch("rollback").code == 0
    assert owner.app() == "blue"


def test_a_weight_without_the_lines_for_it_is_refused(owner, agent):
    """Before anything changes, with the lines in the message; --force does not help."""
    attach(owner, agent)
    before = agent.status("shop")["generation"]
    for force in ([], ["--force"]):
        said = agent.lbswitch("green", "--weight", "10", *force)
        assert said.code == 3, said
        assert "use_backend lbswitch_shop_%[var(txn.lbswitch_shop)]" in str(said.output)
    assert agent.status("shop")["generation"] == before
    assert owner.app() == "blue"


def test_the_owner_stops_it_and_nobody_starts_it_again(owner, agent):
    """A switch is refused meanwhile, with how it is started; when it is back, it goes on."""
    attach(owner, agent)
    owner.stop()
    said = agent.lbswitch("green")
    assert said.code == 3, said
    assert "owner's to start" in str(said.output)
    owner.start()
    wait_until(lambda: agent.lbswitch("green").code == 0, "a switch works again")
    assert owner.app() == "green"


def test_start_and_stop_by_command_are_refused(owner, agent):
    """`lbswitch balancer stop` leaves the owner's HAProxy alone."""
    attach(owner, agent)
    for verb in ("stop", "restart"):
        said = agent.lbswitch("balancer", verb)
        assert said.code == 1, said
        assert "somebody else's" in str(said.output)
    assert owner.app() == "blue"


def test_a_changed_pool_is_checked_with_the_whole_and_reloaded(owner, agent, green):
    """A new server list is installed and runs; with the owner's file broken it is refused and blue goes on."""
    attach(owner, agent)
    healthy = owner.owner.read_text()
    document = {name: value for name, value in owner.document.items() if name != "agent"}
    owner.owner.write_text(healthy + "\nbackend broken\n        nonsense\n")
    document["services"]["shop"]["blue"] = {"servers": [green.address]}
    agent.write_config(document)
    wait_until(lambda: "nonsense" in str(agent.http("GET", "/v1/services")[1]) + agent.log(), "it is refused")
    assert str(owner.owner) in agent.log()
    assert owner.app() == "blue"
    owner.owner.write_text(healthy)
    wait_until(lambda: owner.app() == "green", "the changed pool serves", timeout_s=30)


def test_a_line_that_never_moves_is_found_by_the_switch(owner, agent):
    """The owner's line looks into a map of its own: the switch is not seen, so it is taken back and nothing moved."""
    attach(owner, agent)
    other = owner.directory / "other.map"
    other.write_text("shop blue\n")
    owner.write_owner([f"use_backend lbswitch_shop_%[str(shop),map({other})]"])
    owner.reload_by_owner()
    said = agent.lbswitch("green", "--json", timeout_s=120)
    assert said.code == 4, said
    assert said.output["state"] == "reverted"
    assert agent.status("shop")["live"] == "blue"
    assert "shop blue" in (owner.output / "live.map").read_text()


def test_weights_with_the_lines_for_them(visit, service):
    """A canary moves without a reload, and the listener's answer proves the share."""
    settings = service(health={"path": "/health", "interval": "100ms"}, weights={})
    owner = visit({"shop": settings}, control="signal").serve()
    document = {name: value for name, value in owner.document.items() if name != "agent"}
    agent = Agent(owner.directory, document).start()
    try:
        wait_until(lambda: agent.status("shop")["verified"], "the agent sees its service")
        assert agent.lbswitch("green", "--weight", "30").code == 0
        seen = [owner.app() for _ in range(200)]
        assert 20 < seen.count("green") < 110
        assert agent.lbswitch("green").code == 0
        assert owner.app() == "green"
    finally:
        agent.stop()
