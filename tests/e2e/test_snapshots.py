"""Snapshots and restore with real agents and balancers: what comes back, what is refused, and that nothing is lost."""

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Site
from tests.support.agent import Agent
from tests.support.app import App
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]
_DIES = """
import os, signal, sys
from pathlib import Path
from lbswitch.wiring import run_agent

config = Path(sys.argv[2])
order = config.with_name("die-at")

def on_step(name):
    if order.exists() and order.read_text() == name:
        os.kill(os.getpid(), signal.SIGKILL)

run_agent(config, on_step=on_step)
"""


class Mortal(Agent):
    """An agent that is gone (SIGKILL) when it comes to the step that `die_at` names."""

    _starts = False

    def start(self, timeout_s: float = 20.0) -> "Mortal":
        self._starts = True
        try:
            return super().start(timeout_s)
        finally:
            self._starts = False

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-c", _DIES, "--config", str(self.config_path)] if self._starts else super().argv

    def die_at(self, step: str | None) -> None:
        order = self.config_path.with_name("die-at")
        if step is None:
            order.unlink()
        else:
            order.write_text(step)


@pytest.fixture
def cart() -> Iterator[App]:
    """An application of another service."""
    with App("cart", "v1") as app:
        yield app


def add_service(site: Site, name: str, app: App, **settings: Any) -> int:
    """Into the configuration, not yet into the file; gives its port."""
    port = free_port()
    servers = {"servers": [app.address]}
    site.config["services"][name] = {
        "bind": f"127.0.0.1:{port}",
        "blue": servers,
        "green": servers,
        "health": {"interval": "100ms", "timeout": "500ms"},
        **settings,
    }
    return port


def applied(site: Site) -> None:
    """The file as it is now, served."""
    site.agent.write_config(site.config)
    code, answer = site.agent.http("POST", "/v1/apply", {"force": True})
    assert (code, answer["configuration"]) in ((200, "applied"), (200, "unchanged")), answer  # it may have been noticed


def switch(site: Site, service: str, color: str) -> None:
    code, operation = site.agent.http("POST", f"/v1/services/{service}/switch", {"to": color})
    assert (code, operation["state"]) == (200, "done"), operation


def newest(site: Site) -> int:
    return int(site.agent.http("GET", "/v1/snapshots")[1]["snapshots"][0]["id"])


def live(site: Site) -> dict[str, str]:
    services = site.agent.http("GET", "/v1/services")[1]["services"]
    assert all(service["verified"] for service in services.values()), services
    return {name: service["live"] for name, service in services.items()}


def answers_at(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ten_back(site: Site, cart: App) -> int:
    """`shop` on green and `cart` on an old port; then ten operations, with edits and without `cart` in between."""
    add_service(site, "cart", cart)
    for service in site.config["services"].values():
        service["failover"] = {"enabled": False}  # a host that is busy may miss checks, and this is not about that
    applied(site)
    site.until_known()
    for name in ("shop", "cart"):
        switch(site, name, "green")
    number = newest(site) + 1
    for color in ("blue", "green", "blue"):
        switch(site, "shop", color)
    del site.config["services"]["cart"]
    add_service(site, "news", cart, failover={"enabled": False})
    site.config["services"]["shop"]["timeouts"] = {"read": "7s"}
    applied(site)
    for color in ("green", "blue") * 3:
        switch(site, "shop", color)
    switch(site, "news", "green")
    return number


def test_ten_operations_back_with_load_running(make_site: MakeSite, cart: App) -> None:
    """An edit, a service removed, one added, colors moved: all back as it was then, and no request lost."""
    site = make_site()
    number = ten_back(site, cart)
    then = site.agent.lbswitch("snapshots", "show", str(number), "--file", "lbswitch.yaml").output
    news = int(site.config["services"]["news"]["bind"].rpartition(":")[2])
    # without keep-alive: nginx before 1.27.4 closes idle connections when it reloads, whoever asks for it
    with Load("127.0.0.1", site.port, rate=100, new_connections=1.0) as load:
        wait_until(lambda: load.report().answered_by("blue") > 20, "the load is under way")
        said = site.agent.lbswitch("restore", str(number), "--reason", "back", "--json")
        assert said.code == 0, said.output
        load.mark("restored")
        wait_until(lambda: load.report().phase("restored").answered_by("green") > 50, "green answers")
        report = load.stop()
    assert report.lost == 0, report.lost_by_kind
    assert {each["state"] for each in said.output["operations"]} == {"done"}
    assert live(site) == {"shop": "green", "cart": "green"}
    assert site.agent.config_path.read_text() == then
    assert not answers_at(news)
    assert "news was removed" in str(said.output["operations"][0]["notes"])


@pytest.mark.parametrize("step", ["intent", "prepare", "install", "reload", "commit", "file", "done"])
def test_an_agent_killed_while_it_restores(make_site: MakeSite, cart: App, step: str) -> None:
    """SIGKILL at each step, with load running: the next agent has all of the old or all of the new, file included.

    No request waits for 2 s, the load's limit. It is a load that an application bears on a machine that is busy.
    """
    site = make_site(start=False)
    site.agent.close()
    site.agent = agent = Mortal(None, site.config)
    agent.start()
    number = ten_back(site, cart)
    before = agent.config_path.read_text(), live(site)
    then = agent.lbswitch("snapshots", "show", str(number), "--file", "lbswitch.yaml").output
    with Load("127.0.0.1", site.port, rate=50, new_connections=1.0) as load:
        agent.die_at(step)
        assert agent.lbswitch("restore", str(number)).code == 6
        agent.kill()
        agent.die_at(None)
        agent.start()
        site.until_known()
        wait_until(lambda: live(site), "all is verified")
        report = load.stop()
    assert report.lost == 0, report.lost_by_kind
    wanted = (then, {"shop": "green", "cart": "green"}) if step == "done" else before
    assert (agent.config_path.read_text(), live(site)) == wanted
    assert site.app() == wanted[1]["shop"]
    ended = [each for each in agent.lbswitch("history", "--json").output["operations"] if each["kind"] == "restore"]
    states = {"intent": set(), "done": {"done"}}.get(step, {"reverted"})  # before INTENT there is nothing to end
    assert {each["state"] for each in ended} == states
    assert sorted(path.name for path in agent.directory.glob(".lbswitch*")) == []


def test_templates_of_today_are_refused_with_what_differs(make_site: MakeSite, kind: str) -> None:
    """Exit 3 with a diff and nothing changed; --force restores with today's."""
    site = make_site(start=False)
    name = {"nginx": "nginx.conf.j2", "haproxy": "haproxy.cfg.j2"}[kind]
    template = site.agent.directory / "templates" / kind / name
    template.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).resolve().parents[2] / "templates" / kind / name, template)
    site.config["balancer"]["templates"] = str(site.agent.directory / "templates")
    site.agent.write_config(site.config)
    site.agent.start()
    site.until_known()
    assert site.agent.lbswitch("green").code == 0
    edit = {
        "nginx": ("http {", "http {\n    proxy_headers_hash_max_size 1024;"),
        "haproxy": ("\nglobal\n", "\nglobal\n    quiet\n"),
    }
    template.write_text(template.read_text().replace(*edit[kind], 1))
    assert site.agent.lbswitch("apply").code == 0
    said = site.agent.lbswitch("restore", "1", "--json")
    assert (said.code, said.output["operations"][0]["gate"]["name"]) == (3, "rendering")
    added = {"nginx": "+    proxy_headers_hash_max_size 1024;", "haproxy": "+    quiet"}[kind]
    assert added in said.output["operations"][0]["gate"]["message"]
    assert live(site) == {"shop": "green"}
    assert site.agent.lbswitch("restore", "1", "--force").code == 0
    assert (site.app(), live(site)) == ("blue", {"shop": "blue"})
    assert site.agent.lbswitch("snapshots", "show", "1", "--diff").code == 0


def make_certificate(cert: Path, key: Path) -> None:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)


def test_a_renewed_certificate_is_no_difference(make_site: MakeSite, tmp_path: Path) -> None:
    """It stays renewed, and the rest comes back; also where the color is rendered and a switch is a reload."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    tmp_path.chmod(0o755)
    site = make_site(switching="reload", tls={"cert": str(cert), "key": str(key)})
    site.until_known()
    switch(site, "shop", "green")
    make_certificate(cert, key)
    site.config["services"]["shop"]["timeouts"] = {"read": "9s"}
    applied(site)
    code, answer = site.agent.http("POST", "/v1/snapshots/1/restore", {})
    assert (code, answer.get("detail")) == (200, None)
    assert live(site) == {"shop": "blue"}
    trusting = ssl.create_default_context(cafile=str(cert))
    with socket.create_connection(("127.0.0.1", site.port)) as plain:
        trusting.check_hostname = False
        trusting.wrap_socket(plain).close()


def test_what_is_gone_is_named_and_nothing_changes(make_site: MakeSite, cart: App, tmp_path: Path) -> None:
    """A certificate that was removed since, a port that somebody took, servers that are dead."""
    site = make_site()
    site.until_known()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    tmp_path.chmod(0o755)
    port = add_service(site, "cart", cart, tls={"cert": str(cert), "key": str(key)})
    applied(site)
    del site.config["services"]["cart"]
    applied(site)
    number = newest(site)
    before = site.agent.config_path.read_text()

    def refused(words: str) -> None:
        said = site.agent.lbswitch("restore", str(number), "--json")
        assert said.code in (3, 4), said.output
        assert words in str(said.output), said.output
        assert site.agent.config_path.read_text() == before
        assert live(site) == {"shop": "blue"}
        assert site.app() == "blue"

    cert.rename(tmp_path / "away.pem")
    refused(f"{cert} does not exist")
    (tmp_path / "away.pem").rename(cert)
    with socket.create_server(("127.0.0.1", port)):
        refused(str(port))
    cart.stop()
    refused("connect refused")
    cart.start()
    assert site.agent.lbswitch("restore", str(number)).code == 0
    assert live(site) == {"shop": "blue", "cart": "blue"}


def test_clients_of_a_listener_are_not_cut_off(make_site: MakeSite) -> None:
    """A bind that would move away from clients needs --force, and says how many there are."""
    site = make_site()
    site.until_known()
    assert site.agent.lbswitch("green").code == 0
    old, site.port = site.port, free_port()
    site.config["services"]["shop"]["bind"] = f"127.0.0.1:{site.port}"
    applied(site)
    with socket.create_connection(("127.0.0.1", site.port)):
        said = site.agent.lbswitch("restore", "1", "--json")
        assert (said.code, said.output["operations"][0]["gate"]["name"]) == (3, "clients")
        assert "client connection" in said.output["operations"][0]["gate"]["message"]
        assert site.app() == "green"
        assert site.agent.lbswitch("restore", "1", "--force").code == 0
    site.port = old
    assert site.app() == "blue"


def test_the_same_over_http(site: Site) -> None:
    """Lists, documents, files, diffs and the restore itself, which counts once under one Idempotency-Key."""
    site.until_known()
    site.agent.lbswitch("green")
    http = site.agent.http
    code, listed = http("GET", "/v1/snapshots?limit=5")
    assert (code, [each["purpose"] for each in listed["snapshots"]]) == (200, ["switch"])
    code, document = http("GET", "/v1/snapshots/1")
    assert (code, document["services"]["shop"]["live"]) == (200, "blue")
    names = [each["name"] for each in document["files"]]
    assert names[0] == "lbswitch.yaml"
    assert http("GET", "/v1/snapshots/1/file?name=lbswitch.yaml")[1]["text"] == site.agent.config_path.read_text()
    assert "+shop: green" in http("GET", "/v1/snapshots/1/diff")[1]["diff"]
    for path in ("/v1/snapshots/9", "/v1/snapshots/1/file?name=none"):
        code, problem = http("GET", path)
        assert (code, problem["type"], problem["exit_code"]) == (404, "urn:lbswitch:problem:unknown-snapshot", 2)
    key = {"Idempotency-Key": "restore-1"}
    first = http("POST", "/v1/snapshots/1/restore", {"reason": "back", "expect": "green"}, key)
    assert (first[0], first[1]["snapshot"], first[1]["operations"][0]["kind"]) == (200, 1, "restore")
    assert http("POST", "/v1/snapshots/1/restore", {"reason": "back", "expect": "green"}, key) == first
    assert http("POST", "/v1/snapshots/1/restore", {"expect": "green"})[1]["operations"][0]["state"] == "already"
    assert http("POST", "/v1/snapshots/99/restore", {})[0] == 404
    assert http("POST", "/v1/snapshots/1/restore", {"to": "green"})[0] == 422


def test_reading_works_without_an_agent(site: Site) -> None:
    """The same lists and files from the state directory; a restore needs the agent."""
    site.until_known()
    site.agent.lbswitch("green")
    with_agent = [
        site.agent.lbswitch("snapshots", *more, "--json").output
        for more in ((), ("show", "1"), ("show", "1", "--file", "lbswitch.yaml"), ("show", "1", "--diff"))
    ]
    site.agent.kill()
    without = [
        site.agent.lbswitch("snapshots", *more, "--json").output
        for more in ((), ("show", "1"), ("show", "1", "--file", "lbswitch.yaml"), ("show", "1", "--diff"))
    ]
    assert without == with_agent
    assert site.agent.lbswitch("restore", "1").code == 6
    said = site.agent.lbswitch("snapshots", "show", "7")
    assert (said.code, "there is no snapshot 7; the newest is 1" in said.output) == (2, True)
