"""The agent is away: killed, frozen, upgraded, or without a disk to write to. Traffic does not notice."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Site
from tests.support.agent import Agent
from tests.support.load import Load
from tests.support.wait import wait_until
from tests.support.written import growth, sizes

MakeSite = Callable[..., Site]
UNIT = Path(__file__).resolve().parents[1] / "unit"
ROUTES = {"green": [("green",)], "split": [("green",), ("blue", "--weight", "30")]}


@contextlib.contextmanager
def traffic(site: Site) -> Iterator[Load]:
    """Requests all along, of which none may be lost."""
    with Load("127.0.0.1", site.port, rate=100, connections=4, new_connections=0.5, timeout_s=20) as load:
        wait_until(lambda: load.report().answered > 20, "the load is under way")
        yield load
        report = load.stop()
    assert report.lost == 0, str(report)


def more(load: Load, name: str, count: int = 60) -> None:
    """Until so many more requests were answered."""
    load.mark(name)
    wait_until(lambda: load.report().phase(name).answered > count, f"{count} answers: {name}", 60)


def go(site: Site, route: str) -> dict[str, Any]:
    """Take the service there, and give what its status says then."""
    site.until_known()
    for arguments in ROUTES[route]:
        assert site.agent.lbswitch(*arguments).code == 0
    status = site.status()
    return {name: status[name] for name in ("live", "weight", "generation")}


def serves(site: Site, route: str) -> None:
    """What clients get: one color, or both in about these shares."""
    found = Counter(site.app() for _ in range(60))
    assert set(found) == ({"green"} if route == "green" else {"green", "blue"}), found


# -- killed and frozen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_killed_and_away_for_a_while(site: Site, route: str) -> None:
    """Requests go on to where they went; the next agent finds all as it was and takes the next switch."""
    was = go(site, route)
    with traffic(site) as load:
        site.agent.kill()
        more(load, "away")
        serves(site, route)
        site.agent.start()
        more(load, "back")
        assert {name: site.status()[name] for name in was} == was
        wait_until(lambda: site.status()["verified"], "verified")
        site.until_known()
        assert site.agent.lbswitch("blue").code == 0
        more(load, "switched")
    assert site.app() == "blue"


def test_frozen_while_switches_are_asked_for(site: Site) -> None:
    """SIGSTOP: who waits gets an answer after SIGCONT, and it is true; who gave up is in the history, one way or
    the other."""
    go(site, "green")
    answers: list[tuple[int, Any]] = []
    with traffic(site) as load:
        os.kill(site.agent.pid, signal.SIGSTOP)
        try:
            impatient = http.client.HTTPConnection("localhost", timeout=1)
            impatient.sock = _connected(site.agent)
            impatient.request("POST", "/v1/services/shop/switch", '{"to": "blue", "reason": "impatient"}')
            with pytest.raises(TimeoutError):
                impatient.getresponse()
            impatient.close()
            status = site.agent.lbswitch("status")
            assert (status.code, site.app()) == (6, "green"), status.output
            asking = threading.Thread(
                target=lambda: answers.append(site.agent.http("POST", "/v1/services/shop/switch", {"to": "blue"}))
            )
            asking.start()
            more(load, "frozen")
            assert site.app() == "green"
        finally:
            os.kill(site.agent.pid, signal.SIGCONT)
        asking.join(30)
        more(load, "awake")
    code, operation = answers[0]
    if code == 200:
        assert operation["state"] in ("done", "already")
    else:
        assert code == 423, operation  # the one that nobody waited for was under way
    wait_until(lambda: site.status()["live"] == "blue" and site.status()["verified"], "blue")
    assert site.app() == "blue"
    done = [one for one in history(site) if one["state"] == "done"]
    assert len(done) == 2  # to green, and to blue once


def _connected(agent: Agent) -> Any:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(1)
    connection.connect(str(agent.socket))
    return connection


def history(site: Site) -> list[dict[str, Any]]:
    return list(site.agent.lbswitch("history", "--json").output["operations"])


# -- upgraded ----------------------------------------------------------------------------------------------------------


def test_stopped_and_started_under_load(site: Site) -> None:
    """As a package upgrade does it, three times, with a switch after each."""
    go(site, "green")
    with traffic(site) as load:
        for color in ("blue", "green", "blue"):
            site.agent.stop()
            more(load, f"without, before {color}", 60)
            site.agent.start()
            site.until_known()
            assert site.agent.lbswitch(color).code == 0
    assert site.app() == "blue"


@pytest.mark.parametrize("dump", sorted(path.name for path in UNIT.glob("store_v*.sql")))
def test_upgraded_from_an_older_format(site: Site, dump: str) -> None:
    """What an older agent wrote is taken over under load: route, generation, freeze, history and what it left open."""
    was = go(site, "green")
    assert was["generation"] == 2, "what the dump says"
    with traffic(site) as load:
        site.agent.stop()
        _write_database(site, (UNIT / dump).read_text())
        site.agent.start()
        more(load, "upgraded")
        status = site.status()
        assert {name: status[name] for name in was} == was
        assert "inventory" in status["frozen"]
        left_open = next(one for one in history(site) if one["id"] == 3)
        assert left_open["state"] == "reverted"
        assert site.agent.lbswitch("release").code == 0
        site.until_known()
        assert site.agent.lbswitch("blue").code == 0
        more(load, "switched")
    assert site.app() == "blue"


def test_an_older_agent_refuses_a_newer_format(site: Site) -> None:
    """A downgrade: it says so and ends, and requests go on."""
    go(site, "green")
    with traffic(site) as load:
        site.agent.stop()
        with contextlib.closing(sqlite3.connect(site.agent.state_dir / "lbswitch.db")) as database:
            database.execute("PRAGMA user_version = 99")
        code, said = run_agent(site.agent)
        assert (code, "newer lbswitch" in said) == (1, True), said
        more(load, "refused")
    serves(site, "green")


def _write_database(site: Site, dump: str) -> None:
    for path in site.agent.state_dir.glob("lbswitch.db*"):
        path.unlink()
    with contextlib.closing(sqlite3.connect(site.agent.state_dir / "lbswitch.db")) as database:
        database.executescript(dump)


def run_agent(agent: Agent, *prefix: str) -> tuple[int, str]:
    """Start another `lbswitch agent` that is expected to end by itself."""
    done = subprocess.run(
        [*prefix, *agent.argv, "agent"], capture_output=True, text=True, env=agent.env, timeout=60, check=False
    )
    return done.returncode, done.stderr


# -- nowhere to write --------------------------------------------------------------------------------------------------

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def need_mounts() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount something")
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody mount anything: {done.stderr.decode().strip()}")


def test_an_agent_that_starts_on_a_read_only_directory(site: Site) -> None:
    """It says which directory, and ends; requests go on, and with a directory to write to so does the agent."""
    need_mounts()
    go(site, "green")
    with traffic(site) as load:
        site.agent.stop()
        code, said = run_agent(site.agent, "unshare", "-m", "sh", "-c", READ_ONLY, str(site.agent.state_dir))
        assert code == 1, said
        assert str(site.agent.state_dir) in said
        assert "read-only" in said.lower()
        assert "Traceback" not in said
        more(load, "read-only")
        serves(site, "green")
        site.agent.start()
    assert site.status()["live"] == "green"


def test_a_directory_that_becomes_read_only(make_site: MakeSite) -> None:
    """A switch, a rollback and a failover say so and leave all as it was; later they work again."""
    need_mounts()
    site = make_site(start=False)
    site.agent.state_dir.mkdir()
    inside = Inside(site.agent)
    inside.start()
    go(site, "green")
    with traffic(site) as load:
        inside.mount("--bind", str(site.agent.state_dir), str(site.agent.state_dir))
        inside.mount("-o", "remount,bind,ro", str(site.agent.state_dir))
        for arguments in (("blue",), ("rollback",), ("blue", "--weight", "10")):
            said = site.agent.lbswitch(*arguments, "--json")
            assert said.code == 4, said.output
            assert said.output["state"] == "reverted"
            assert "read-only" in said.output["error"].lower()
            assert "still serving: shop on green" in said.output["error"]
        more(load, "refused")
        serves(site, "green")
        status = site.status()
        assert (status["live"], status["generation"]) == ("green", 2)
        inside.umount(str(site.agent.state_dir))
        wait_until(lambda: site.agent.lbswitch("blue").code == 0, "with a disk to write to it switches")
        more(load, "switched")
    assert site.app() == "blue"
    assert "open" not in {one["state"] for one in history(site)}


def test_a_failover_on_a_read_only_directory(make_site: MakeSite) -> None:
    """It is tried, said, and made as soon as the disk can be written to."""
    need_mounts()
    site = make_site(start=False, failover={"cooldown": "0s", "max_per_hour": 1000})
    site.agent.state_dir.mkdir()
    inside = Inside(site.agent)
    inside.start()
    go(site, "green")
    inside.mount("--bind", str(site.agent.state_dir), str(site.agent.state_dir))
    inside.mount("-o", "remount,bind,ro", str(site.agent.state_dir))
    site.green.stop()
    wait_until(lambda: "failover green -> blue reverted: " in site.agent.log(), "the log says so", 30)
    assert site.status()["live"] == "green"
    inside.umount(str(site.agent.state_dir))
    wait_until(lambda: site.status()["live"] == "blue", "blue is live", 30)
    assert site.app() == "blue"


class Inside:
    """An agent in a mount namespace of its own, and what is mounted there."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def start(self) -> None:
        plain = self.agent.argv

        class Apart(Agent):
            @property
            def argv(self) -> list[str]:
                return ["unshare", "-m", *plain]

        self.agent.__class__ = Apart
        try:
            self.agent.start()
        finally:
            self.agent.__class__ = Agent

    def mount(self, *arguments: str) -> None:
        self._enter("mount", *arguments)

    def umount(self, path: str) -> None:
        self._enter("umount", path)

    def _enter(self, *argv: str) -> None:
        subprocess.run(["nsenter", "-m", "-t", str(self.agent.pid), *argv], check=True, timeout=20)


def test_a_disk_that_is_full(make_site: MakeSite) -> None:
    """Requests go on, whatever is asked for; with room again the same works, and the journal is closed."""
    need_mounts()
    site = make_site(start=False)
    state = site.agent.directory / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(state)], check=True)
    try:
        site.config["agent"] = {"state_dir": str(state)}
        site.agent.write_config(site.config)
        site.agent.start()
        go(site, "green")
        with traffic(site) as load:
            filler = state / "filler"
            _fill(filler)
            live = "green"
            for arguments in (("rollback",), ("green",), ("blue",)):
                said = site.agent.lbswitch(*arguments, "--json")
                outcome = (said.code, said.output["state"])
                if outcome in ((0, "done"), (0, "already")):  # there was room for what was written ahead
                    live = said.output["to"]
                else:
                    assert outcome == (4, "reverted"), said.output
                    assert f"still serving: shop on {live}" in said.output["error"]
                assert site.app() == site.status()["live"] == live
            more(load, "full")
            site.agent.kill()
            more(load, "away")
            assert {site.app() for _ in range(20)} == {site_of(site)}
            filler.unlink()
            site.agent.start()
            site.until_known()
            for color in ("blue", "green"):
                assert site.agent.lbswitch(color).code == 0
            more(load, "room")
        serves(site, "green")
        assert "open" not in {one["state"] for one in history(site)}
    finally:
        site.agent.close()
        subprocess.run(["umount", "-l", str(state)], check=True)
        shutil.rmtree(site.agent.directory, ignore_errors=True)


def site_of(site: Site) -> str:
    """The color that the disk says is live."""
    found = site.agent.lbswitch("balancer", "status", "--json").output
    return str(found["services"]["shop"]["live"])


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


# -- balancer and machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_balancer_comes_back_without_an_agent(site: Site, route: str, end: str) -> None:
    """`balancer start` serves what was live, also after `kill -9`; the next agent agrees."""
    was = go(site, route)
    site.agent.kill()
    if end == "stop":
        assert site.agent.lbswitch("balancer", "stop").code == 0
    else:
        assert site.agent.balancer_kill() > 0
    with pytest.raises(OSError, match="refused"):
        site.front()
    started = site.agent.lbswitch("balancer", "start")
    assert started.code == 0, started.output
    serves(site, route)
    with traffic(site) as load:
        site.agent.start()
        more(load, "with an agent")
    wait_until(lambda: site.status()["verified"], "verified")
    assert {name: site.status()[name] for name in was} == was


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("unit", ["lbswitch-balancer.service", "lbswitch.service"])
def test_a_reboot(site: Site, route: str, unit: str) -> None:
    """All processes and all below /run are gone, and a pid file names somebody else: it comes back on what was live.

    Once with the balancer's own unit (ExecStart=lbswitch balancer start, then the agent), once with the agent's alone.
    """
    was = go(site, route)
    site.agent.kill()
    assert site.agent.balancer_kill() > 0
    _forget_what_was_running(site)
    if unit == "lbswitch-balancer.service":
        started = site.agent.lbswitch("balancer", "start")
        assert started.code == 0, started.output
        serves(site, route)
    site.agent.start(timeout_s=40)
    serves(site, route)
    wait_until(lambda: site.status()["verified"], "verified")
    assert {name: site.status()[name] for name in was} == was
    assert site.blue.get("/version"), "the process that a stale pid file named lives"
    site.until_known()
    with traffic(site):
        assert site.agent.lbswitch("blue").code == 0
    assert site.app() == "blue"


def _forget_what_was_running(site: Site) -> None:
    """Sockets go, and pid files name a process of somebody else."""
    foreign = next(process.pid for process in psutil.Process().children() if site.blue.address in process.cmdline())
    found = 0
    for path in [site.agent.socket, *site.agent.state_dir.rglob("*")]:
        if path.is_socket():
            path.unlink()
        elif path.suffix == ".pid":
            path.write_text(f"{foreign}\n")
            found += 1
    assert found > 0


# -- what a balancer writes meanwhile ----------------------------------------------------------------------------------


def test_logs_stay_as_they_are(site: Site) -> None:
    """With the agent dead nothing is written: not for good answers, dead servers, clients that go away, or garbage.

    Requests are logged for the agent alone, 30 s longer than it lives at most: nginx looks for files named after the
    time, and there is none for later.
    """
    go(site, "green")
    site.agent.kill()
    before = sizes(site.agent.state_dir)
    assert {_ask(site) for _ in range(10)} == {200}
    assert set(growth(before, sizes(site.agent.state_dir))) <= {"nginx/traffic.log"}
    _let_time_pass(site)
    before = sizes(site.agent.state_dir)
    assert {_ask(site) for _ in range(1000)} == {200}
    assert growth(before, sizes(site.agent.state_dir)) == {}
    site.blue.stop()
    site.green.stop()
    codes = Counter(_all_at_once(lambda: _ask(site), 200))
    assert set(codes) <= {502, 503}, codes
    _all_at_once(lambda: _say(site, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", is_rude=True), 200)
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\x00/ \r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\n" * 99,
    ):
        _all_at_once(lambda said=garbage: _say(site, said, is_rude=False), 50)
    assert growth(before, sizes(site.agent.state_dir)) == {}
    for process in site.agent.balancer_processes():
        _tells_nobody(process, site)


def _let_time_pass(site: Site) -> None:
    """As if the agent was killed half a minute ago, and what nginx keeps for some milliseconds was written."""
    for path in (site.agent.state_dir / "traffic" / "lease").glob("*"):
        assert int(path.name) * 10 - time.time() <= 20
        path.unlink()
    time.sleep(0.3)  # nginx keeps lines for 50 ms


def _all_at_once(do: Callable[[], Any], count: int) -> list[Any]:
    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(lambda _: do(), range(count)))


def _ask(site: Site) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{site.port}/", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _say(site: Site, text: bytes, *, is_rude: bool) -> None:
    """Send something, and wait for whatever comes, or go away at once with a reset."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        connection.sendall(text)
        if is_rude:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)


def _tells_nobody(process: psutil.Process, site: Site) -> None:
    """Its output goes nowhere, or into a file that was counted; it has no connection to a system log."""
    for descriptor in (1, 2):
        with contextlib.suppress(FileNotFoundError):
            target = Path(f"/proc/{process.pid}/fd/{descriptor}").readlink()
            assert target == Path("/dev/null") or target.is_relative_to(site.agent.state_dir), target
    datagrams = [each for each in process.net_connections("unix") if each.type == socket.SOCK_DGRAM]
    if site.kind == "nginx":
        assert datagrams == []
    else:  # HAProxy tells the agent of its requests, and nobody else
        written = (site.agent.state_dir / "haproxy" / "current" / "haproxy.cfg").read_text()
        targets = {line.split()[1] for line in written.splitlines() if line.strip().startswith("log ")}
        assert all(target.startswith(f"{site.agent.state_dir}/") for target in targets), targets
