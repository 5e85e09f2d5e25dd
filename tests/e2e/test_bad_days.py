"""Bad input and bad days: each is a clear message, and traffic is untouched."""

import contextlib
import http.client
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Site
from tests.support.agent import Agent
from tests.support.ports import free_port
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]


def run_agent(agent: Agent, *more: str) -> tuple[int, str]:
    """Start another `lbswitch agent` that is expected to end by itself."""
    done = subprocess.run(
        [*agent.argv, "agent", *more], capture_output=True, text=True, env=agent.env, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_bad_commands(site: Site) -> None:
    """Unknown service, color, weight: exit 2, with what is known."""
    unknown = site.agent.lbswitch("green", "--service", "shp")
    assert (unknown.code, "shop" in unknown.output) == (2, True)
    for arguments in (("red",), ("green", "--weight", "101"), ("green", "--expect", "red"), ("show", "x")):
        assert site.agent.lbswitch(*arguments).code == 2
    assert site.agent.lbswitch("show", "99").code == 2
    conflict = site.agent.lbswitch("green", "--expect", "green", "--json")
    assert (conflict.code, conflict.output["exit_code"]) == (7, 7)
    assert site.app() == "blue"


def test_a_second_agent_is_refused(site: Site) -> None:
    """It names the pid of the first, which goes on."""
    code, said = run_agent(site.agent)
    assert code == 1
    assert f"pid {site.agent.pid}" in said
    assert site.agent.lbswitch("green").code == 0


def test_no_agent(make_site: MakeSite) -> None:
    """Exit 6, and how to start it."""
    site = make_site(start=False)
    said = site.agent.lbswitch("status")
    assert said.code == 6
    assert "lbswitch agent" in said.output


def test_a_port_that_is_taken(make_site: MakeSite) -> None:
    """The agent names port and holder, and ends; nothing of it is left running."""
    site = make_site(start=False)
    with socket.create_server(("127.0.0.1", site.port)):
        code, said = run_agent(site.agent)
    assert code != 0
    assert str(site.port) in said
    assert f"pid {os.getpid()}" in said
    assert site.agent.balancer_processes() == []


def test_a_missing_balancer(make_site: MakeSite, kind: str) -> None:
    """Named, with how to install it."""
    site = make_site(start=False)
    site.config["balancer"]["binary"] = "/nonexistent/balancer"
    site.agent.write_config(site.config)
    for command in ("check", "agent"):
        said = site.agent.lbswitch(command)
        assert said.code != 0
        assert "/nonexistent/balancer" in said.output


def test_a_balancer_that_is_too_old(make_site: MakeSite, kind: str) -> None:
    """It says which version is needed, and for what."""
    site = make_site(start=False)
    old = site.agent.directory / "old"
    words = {"nginx": "nginx version: nginx/1.14.2", "haproxy": "HAProxy version 2.2.9-2 2021/01/15"}[kind]
    old.write_text(f'#!/bin/sh\necho "{words}" >&2\necho "{words}"\n')
    old.chmod(0o755)
    site.config["balancer"]["binary"] = str(old)
    site.agent.write_config(site.config)
    said = site.agent.lbswitch("check")
    assert said.code != 0
    assert {"nginx": "1.22", "haproxy": "2.6"}[kind] in said.output


def test_a_state_directory_from_a_newer_version(make_site: MakeSite) -> None:
    """Refused, untouched, and the balancer goes on serving."""
    site = make_site()
    site.agent.stop()
    database = site.agent.state_dir / "lbswitch.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, said = run_agent(site.agent)
    assert code == 1
    assert "newer lbswitch" in said
    assert site.app() == "blue"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file system that is full")
def test_a_full_disk(make_site: MakeSite) -> None:
    """No switch, the old color serves; with room again the same command works."""
    site = make_site(start=False)
    state = site.agent.directory / "small"
    state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(state)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        site.config["agent"] = {"state_dir": str(state)}
        site.agent.write_config(site.config)
        site.agent.start()
        site.until_known()
        filler = state / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        said = site.agent.lbswitch("green", "--json")
        assert said.code != 0, said.output
        assert site.app() == "blue"
        filler.unlink()
        wait_until(lambda: site.agent.lbswitch("green").code == 0, "with room again it switches")
        assert site.app() == "green"
        assert site.status()["verified"]
    finally:
        site.agent.close()
        subprocess.run(["umount", "-l", str(state)], check=True)
        shutil.rmtree(site.agent.directory, ignore_errors=True)


def test_a_state_directory_that_can_not_be_made(make_site: MakeSite) -> None:
    """Named, with what to do; exit 1."""
    site = make_site(start=False)
    blocked = site.agent.directory / "file"
    blocked.write_text("")
    site.config["agent"] = {"state_dir": str(blocked / "state")}
    site.agent.write_config(site.config)
    code, said = run_agent(site.agent)
    assert code == 1
    assert str(blocked / "state") in said


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
def test_an_agent_killed_while_it_switches_ends_in_one_color(site: Site, delay_s: float) -> None:
    """SIGKILL some ms after the request was sent: the next agent closes the journal and all three facts agree."""
    site.until_known()
    asking = threading.Thread(target=_ask_and_be_cut_off, args=(site,))
    asking.start()
    time.sleep(delay_s)  # the moment of death is what varies here, nothing is awaited
    site.agent.kill()
    asking.join(timeout=30)
    site.agent.start()
    site.until_known()
    wait_until(lambda: site.status()["verified"], "verified")
    live = site.status()["live"]
    assert {site.app() for _ in range(10)} == {live}
    states = {entry["state"] for entry in site.agent.lbswitch("history", "--json").output["operations"]}
    assert "open" not in states


def _ask_and_be_cut_off(site: Site) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        site.agent.http("POST", "/v1/services/shop/switch", {"to": "green"})


def test_a_state_directory_that_is_gone_is_read_from_the_pointer(site: Site) -> None:
    """The database is lost: the next agent trusts the pointer, not `initial`."""
    assert site.agent.lbswitch("green").code == 0
    site.agent.kill()
    for path in Path(site.agent.state_dir).glob("lbswitch.db*"):
        path.unlink()
    site.agent.start()
    assert site.status()["live"] == "green"
    assert site.app() == "green"


def test_a_file_where_the_socket_should_be_is_left_alone(make_site: MakeSite) -> None:
    """Whatever `agent.socket` names, only a socket is ever replaced or removed."""
    site = make_site(start=False)
    precious = site.agent.directory / "precious"
    precious.write_text("keep me")
    site.config["agent"] = {"socket": str(precious)}
    site.agent.write_config(site.config)
    code, said = run_agent(site.agent)
    assert code == 1
    assert "is no socket" in said
    assert precious.read_text() == "keep me"


def test_a_balancer_stopped_on_purpose_stays_stopped(site: Site) -> None:
    """Also when the agent is killed and started; a switch is refused at once; `balancer start` ends that."""
    assert site.agent.lbswitch("balancer", "stop").code == 0
    refused = site.agent.lbswitch("green", "--json")
    assert (refused.code, refused.output["gate"]["name"]) == (3, "balancer")
    site.agent.kill()
    site.agent.start()
    assert site.agent.balancer_processes() == []
    assert not site.status()["verified"]
    assert site.agent.lbswitch("balancer", "start").code == 0
    wait_until(lambda: site.status()["verified"], "verified again")
    assert site.agent.lbswitch("green").code == 0


def test_a_configuration_is_tried_again_when_its_port_is_free(site: Site) -> None:
    """A bind that somebody else holds is refused, and taken up by itself when it is free."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        site.config["services"]["shop"]["bind"] = f"127.0.0.1:{port}"
        site.agent.write_config(site.config)
        wait_until(
            lambda: str(port) in (site.agent.http("GET", "/v1/services")[1]["agent"]["config"]["error"] or ""), "said"
        )
        assert site.app() == "blue"
    site.port = port
    wait_until(lambda: site.app() == "blue", "the new port serves")
    wait_until(lambda: site.agent.http("GET", "/v1/services")[1]["agent"]["config"]["valid"], "and all is well")
