"""A healthy host with a real agent, managed or as a guest: the doctor finds nothing, and then what is done to it."""

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lbswitch.balancers.templating import STOCK_TEMPLATES
from lbswitch.client import Client, UnixSocket
from lbswitch.doctor.case import Case
from lbswitch.doctor.examine import Report, examine
from lbswitch.doctor.registry import CHECKS
from tests.balancers.haproxy.guest import Guest
from tests.balancers.nginx.owner import Owner
from tests.balancers.nginx.site import binaries
from tests.doctor.desk import QuietHost, check, severities
from tests.e2e.conftest import FAST, Site, has_balancer
from tests.support.agent import Agent
from tests.support.app import App
from tests.support.wait import wait_until

KINDS = ("nginx", "haproxy")
MAIN_FILE = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}


def report(agent: Agent, host: QuietHost | None = None) -> Report:
    """What the doctor says of a running agent's host."""
    return examine(
        Case(agent.config_path, lambda: Client(UnixSocket(str(agent.socket))), None, host or QuietHost()), CHECKS
    )


def found(agent: Agent, name: str) -> list[Any]:
    case = Case(agent.config_path, lambda: Client(UnixSocket(str(agent.socket))), None, QuietHost())
    return list(check(name).run(case))


def nothing(report: Report) -> bool:
    assert report.findings == []
    assert report.not_checked == {}
    return True


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if not has_balancer(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def site(kind: str) -> Iterator[Site]:
    """Managed: running, healthy, and switched once."""
    with ExitStack() as stack:
        made = Site(kind)
        stack.callback(made.close)
        made.blue.start()
        made.green.start()
        made.agent.start()
        made.until_known()
        assert made.agent.lbswitch("green").code == 0
        yield made


def test_a_healthy_managed_balancer(site: Site):
    """All checks are made and find nothing."""
    found = report(site.agent)
    assert nothing(found)
    assert len(found.results) > 30


def test_healthy_colors_that_are_split(site: Site):
    assert site.agent.lbswitch("blue", "--weight", "20").code == 0
    assert nothing(report(site.agent))


def test_without_an_agent_the_rest_is_clean(site: Site):
    """Only that nobody answers is found, and that what the agent knows could not be asked."""
    site.agent.stop()
    found = report(site.agent)
    assert [(one.id, str(finding.severity)) for one, finding in found.findings] == [("agent-unreachable", "error")]
    assert set(found.not_checked) == {"the agent does not answer"}


def test_the_command(site: Site):
    """One document or a few lines; the exit code is the worst."""
    said = site.agent.lbswitch("doctor", "--json")
    assert isinstance(said.output, dict), said
    assert said.code == {"note": 0, "warning": 1, "error": 2}[said.output["worst"]]
    assert {finding["id"] for finding in said.output["findings"]} <= {"state-volatile", "clock-unsynchronized"}
    site.agent.stop()
    said = site.agent.lbswitch("doctor")
    assert said.code == 2
    assert "error agent-unreachable" in said.output
    assert "mend: systemctl start lbswitch" in said.output


def test_an_idle_color_that_fails(site: Site):
    site.blue.fail(health=503)
    wait_until(lambda: site.status()["blue"]["state"] == "unhealthy", "blue is unhealthy")
    assert [(one.id, str(finding.severity)) for one, finding in report(site.agent).findings] == [
        ("unhealthy", "warning")
    ]


def test_a_frozen_service(site: Site):
    assert site.agent.lbswitch("freeze", "--reason", "holidays").code == 0
    assert [one.id for one, _ in report(site.agent).findings] == ["frozen"]


def test_a_balancer_that_was_stopped(site: Site):
    """The port is free, so nothing else is said."""
    site.agent.lbswitch("balancer", "stop")
    assert severities(found(site.agent, "balancer-down")) == ["error"]
    assert found(site.agent, "port-taken") == []


def test_a_port_that_somebody_else_took(site: Site):
    site.agent.stop()
    site.agent.lbswitch("balancer", "stop")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", site.port))
        other.listen()
        taken = found(site.agent, "port-taken")
    assert severities(taken) == ["error"]
    assert f"127.0.0.1:{site.port} is taken by pid " in taken[0].what


def test_installed_files_that_were_broken_by_hand(site: Site, kind: str):
    """The next restart would fail, and they are not as lbswitch made them."""
    site.agent.stop()
    path = site.agent.state_dir / kind / "current" / MAIN_FILE[kind]
    path.write_text(path.read_text() + {"nginx": "nonsense here;\n", "haproxy": "nonsense here\n"}[kind])
    broken = found(site.agent, "no-restart")
    assert severities(broken) == ["error"]
    assert "nonsense" in broken[0].what
    assert "warning" in severities(found(site.agent, "drift"))


def test_a_configuration_that_was_not_applied(site: Site):
    """Edited while no agent ran."""
    site.agent.stop()
    assert found(site.agent, "not-applied") == []
    site.config["services"]["shop"]["timeouts"] = {"read": "7s"}
    site.agent.write_config(site.config)
    changed = found(site.agent, "not-applied")
    assert severities(changed) == ["warning"]
    assert "lbswitch render --diff" in changed[0].mend


def test_a_template_that_can_not_be_rendered(site: Site, kind: str):
    site.agent.stop()
    directory = site.agent.directory / "templates"
    directory.mkdir()
    (directory / f"{MAIN_FILE[kind]}.j2").write_text("one\n{{ servces }}\n")
    site.config["balancer"]["templates"] = str(directory)
    site.agent.write_config(site.config)
    refused = found(site.agent, "change-refused")
    assert severities(refused) == ["error"]
    assert f"{MAIN_FILE[kind]}.j2:2: there is no variable 'servces'; did you mean 'services'?" in refused[0].what


def test_a_program_that_is_missing(site: Site):
    site.config["balancer"]["binary"] = "/nowhere/balancer"
    site.agent.stop()
    site.agent.write_config(site.config)
    assert severities(found(site.agent, "balancer-missing")) == ["error"]


def test_a_journal_of_nobody(kind: str):
    """Before an agent ever ran there is a note, and no error beside the missing agent."""
    made = Site(kind)
    try:
        with made.blue, made.green:
            said = report(made.agent)
    finally:
        made.close()
    assert {one.id for one, _ in said.findings} == {"agent-unreachable", "state-missing"}


# -- an open_file_cache in a template of one's own -----------------------------------------------------------------


@pytest.mark.skipif(not has_balancer("nginx"), reason="nginx is not installed")
def test_an_open_file_cache_in_a_template():
    """Managed nginx with an override: found in what is installed."""
    site = Site("nginx")
    try:
        directory = site.agent.directory / "templates"
        shutil.copytree(STOCK_TEMPLATES / "nginx", directory)
        main = directory / "nginx.conf.j2"
        main.write_text(main.read_text().replace("open_file_cache off;", "open_file_cache max=100;"))
        site.config["balancer"]["templates"] = str(directory)
        site.agent.write_config(site.config)
        with site.blue, site.green:
            site.agent.start()
            cached = found(site.agent, "open-file-cache")
    finally:
        site.close()
    assert severities(cached) == ["error"]
    assert "/nginx/current/nginx.conf:" in cached[0].what


@pytest.mark.skipif(not has_balancer("nginx"), reason="nginx is not installed")
def test_switching_by_reload_on_an_nginx_that_cuts_connections():
    site = Site("nginx", switching="reload")
    try:
        with site.blue, site.green:
            site.agent.start()
            version = tuple(
                map(int, site.agent.http("GET", "/v1/services")[1]["agent"]["balancer"]["version"].split("."))
            )
            said = found(site.agent, "reload-costs")
    finally:
        site.close()
    assert severities(said) == (["warning"] if version < (1, 27, 4) else [])


# -- guests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def apps() -> Iterator[tuple[App, App]]:
    with App("blue") as blue, App("green") as green:
        yield blue, green


def service(apps: tuple[App, App], **settings: Any) -> dict[str, Any]:
    blue, green = apps
    return {"blue": {"servers": [blue.address]}, "green": {"servers": [green.address]}, "health": FAST, **settings}


def until_healthy(agent: Agent) -> None:
    wait_until(lambda: agent.status("shop")["green"]["state"] == "healthy", "green is healthy")
    wait_until(lambda: agent.status("shop")["verified"], "what is served is seen")
    assert agent.lbswitch("green").code == 0


@pytest.mark.skipif(not binaries(), reason="no nginx on this machine")
def test_a_healthy_guest_in_an_owners_nginx(directory: Path, apps: tuple[App, App]):
    (directory / "owner").mkdir()
    owner = Owner(directory / "owner", binaries()[0])
    shop = service(apps, bind=f"127.0.0.1:{owner.port}", verify={"host": "shop.example"})
    config = {"balancer": owner.balancer(binary=binaries()[0]), "services": {"shop": shop}}
    agent = Agent(directory, config)
    (owner.etc / "sites-enabled" / "shop").unlink()
    (owner.etc / "conf.d" / "lbswitch.conf").rename(owner.etc / "later")
    try:
        owner.start()
        agent.start()
        (owner.etc / "later").rename(owner.etc / "conf.d" / "lbswitch.conf")
        (owner.etc / "sites-enabled" / "shop").symlink_to("../sites-available/shop")
        assert owner.run("-s", "reload").returncode == 0
        until_healthy(agent)
        assert nothing(report(agent))
    finally:
        agent.stop()
        owner.stop()


@pytest.mark.skipif(not has_balancer("haproxy"), reason="HAProxy is not installed")
def test_a_healthy_guest_in_an_owners_haproxy(
    directory: Path, apps: tuple[App, App], make_certificate: Callable[..., tuple[Path, Path]]
):
    cert, key = make_certificate(name="theirs")
    pem = directory / "both.pem"
    pem.write_bytes(cert.read_bytes() + key.read_bytes())
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    guest = Guest(program, {"shop": service(apps)}, pem, apps[0].address)
    agent = Agent(guest.directory, {name: value for name, value in guest.document.items() if name != "agent"})
    try:
        guest.serve()
        agent.start()
        until_healthy(agent)
        assert nothing(report(agent))
    finally:
        agent.stop()
        guest.close()
