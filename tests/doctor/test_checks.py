"""Each check that needs no balancer: what it finds, and that it is silent when there is nothing."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lbswitch.doctor.finding import NotChecked
from lbswitch.doctor.host import Host, Space
from lbswitch.doctor.together import together
from lbswitch.errors import NotAllowed
from tests.doctor.desk import Desk, severities
from tests.support.ports import free_port

# -- configuration and templates -----------------------------------------------------------------------------------


def test_an_invalid_configuration(desk: Desk):
    """Every problem with its line."""
    assert desk.found("config-invalid") == []
    desk.document["balancer"]["kind"] = "apache"
    desk.document["services"]["shop"]["bind"] = "nowhere"
    found = desk.found("config-invalid")
    assert severities(found) == ["error", "error"]
    assert all(finding.what.startswith(f"{desk.path}:") for finding in found)


def test_without_a_valid_configuration_other_checks_say_so(desk: Desk):
    desk.document["balancer"]["kind"] = "apache"
    with pytest.raises(NotChecked, match="there is no valid configuration"):
        desk.found("state-volatile")


def test_a_configuration_that_is_not_in_use(desk: Desk):
    desk.answer = desk.healthy()
    assert desk.found("config-not-in-use") == []
    desk.answer["agent"]["config"]["error"] = "lbswitch.yaml:3: is wrong\nand more"
    desk.answer["agent"]["config"]["files_error"] = "nginx.conf.j2:1: is wrong"
    found = desk.found("config-not-in-use")
    assert severities(found) == ["error", "error"]
    assert "lbswitch.yaml:3: is wrong" in found[0].what
    assert found[0].what.endswith("is wrong; and more")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_an_agent_that_may_not_write_where_it_has_to(desk: Desk):
    """Each directory is named; the mend is one command."""
    desk.answer = desk.healthy()
    output = desk.directory / "output"
    (output / "rendered").mkdir(parents=True)
    desk.document["balancer"] |= {"managed": False, "config": "/etc/nginx/nginx.conf", "output_dir": str(output)}
    assert desk.found("not-writable") == []
    os.chown(output, 65534, -1)
    with subprocess.Popen(["sleep", "60"], user=65534) as agent:
        desk.answer["agent"]["pid"] = agent.pid
        found = desk.found("not-writable")
        agent.kill()
    assert severities(found) == ["error"]
    assert f"runs as nobody and may not write in {output / 'rendered'} (owner root, mode 0755)" in found[0].what
    assert found[0].mend == f"chown -R nobody: {output}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only an agent that is root can be tricked")
def test_a_configuration_that_others_can_write(desk: Desk):
    """The file, its directory, and templates."""
    case = desk.case()
    assert desk.found("config-writable", case) == []
    desk.path.chmod(0o666)
    assert severities(desk.found("config-writable", desk.look())) == ["error"]
    desk.path.chmod(0o644)
    os.chown(desk.path, 65534, -1)
    found = desk.found("config-writable", desk.look())
    assert severities(found) == ["warning"]
    assert found[0].mend == f"chown root: {desk.path}"
    os.chown(desk.path, 0, -1)
    templates = desk.directory / "templates"
    templates.mkdir()
    (templates / "nginx.conf.j2").write_text("")
    (templates / "nginx.conf.j2").chmod(0o646)
    desk.document["balancer"]["templates"] = str(templates)
    assert [finding.mend for finding in desk.found("config-writable")] == [f"chmod o-w {templates}/nginx.conf.j2"]


def test_a_template_of_another_version(desk: Desk):
    templates = desk.directory / "templates"
    templates.mkdir()
    desk.document["balancer"]["templates"] = str(templates)
    (templates / "nginx.conf.j2").write_text("made by hand\n")
    assert desk.found("template-older") == []
    (templates / "nginx.conf.j2").write_text("{# lbswitch 0.0.9: a copy of nginx/nginx.conf.j2, 0123456789ab #}\n")
    found = desk.found("template-older")
    assert severities(found) == ["warning"]
    assert "lbswitch 0.0.9" in found[0].what


# -- state and disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "severity"),
    [("ext4", []), ("xfs", []), ("btrfs", []), ("tmpfs", ["error"]), ("ramfs", ["error"]), ("overlay", ["warning"])],
)
def test_a_state_directory_that_does_not_stay(desk: Desk, kind: str, severity: list[str]):
    desk.host.kind = kind
    assert severities(desk.found("state-volatile")) == severity


def test_a_state_directory_that_is_cleaned(desk: Desk):
    desk.host.age = "10 days"
    found = desk.found("state-volatile")
    assert severities(found) == ["warning"]
    assert "not touched for 10 days" in found[0].what


def test_the_machine_knows_its_file_systems():
    """A path that is not there yet has that of the directory above it."""
    host = Host()
    assert host.filesystem(Path("/proc/nothing")) == "proc"
    assert host.filesystem(Path("/nothing/at/all")) == host.filesystem(Path("/"))
    assert host.cleaned(Path("/tmp/state")) == "10 days"
    assert host.cleaned(Path("/var/lib/lbswitch")) is None
    assert host.space(Path("/nothing")).total > 0


def test_no_state_directory(desk: Desk):
    assert severities(desk.found("state-missing")) == ["note"]
    desk.state_dir.mkdir()
    assert desk.found("state-missing") == []


@pytest.mark.parametrize(
    ("space", "severity"),
    [
        (Space(1 << 30, 1 << 40, 10**6), []),
        (Space(1 << 30, 1 << 40, None), []),
        (Space(100 << 20, 1 << 40, 10**6), ["warning"]),
        (Space(10 << 20, 1 << 40, 10**6), ["error"]),
        (Space(1 << 30, 1 << 40, 5000), ["warning"]),
        (Space(1 << 30, 1 << 40, 10), ["error"]),
    ],
)
def test_little_room(desk: Desk, space: Space, severity: list[str]):
    desk.host.left = space
    found = desk.found("disk-space")
    assert severities(found) == severity
    assert all("du -xhd1" in finding.mend for finding in found)


def test_a_large_log_that_nothing_rotates(desk: Desk):
    log = desk.state_dir / "nginx" / "error.log"
    log.parent.mkdir(parents=True)
    log.write_text("one line\n")
    assert desk.found("log-unrotated") == []
    os.truncate(log, 300 << 20)  # without blocks
    found = desk.found("log-unrotated")
    assert severities(found) == ["warning"]
    assert f"{log} has 300 MiB" in found[0].what


# -- servers -------------------------------------------------------------------------------------------------------


def test_both_colors_list_the_same_server(desk: Desk):
    """As an address, or by a name for it."""
    assert desk.found("same-server") == []
    address = desk.shop["blue"]["servers"][0]
    desk.shop["green"]["servers"].append(address.replace("127.0.0.1", "localhost"))
    found = desk.found("same-server")
    assert severities(found) == ["warning"]
    assert f"both resolve to {address}" in found[0].what


def test_a_name_that_does_not_resolve(desk_of: Callable[..., Desk]):
    """nginx would not start with it."""
    for kind, severity in (("nginx", "error"), ("haproxy", "warning")):
        desk = desk_of(kind)
        desk.shop["blue"]["servers"] = ["localhost:9101"]
        assert desk.found("unresolved") == []
        desk.shop["blue"]["servers"] = ["lbswitch-test.invalid:9101"]
        found = desk.found("unresolved")
        assert severities(found) == [severity]
        assert "lbswitch-test.invalid does not resolve" in found[0].what


# -- what the agent knows ------------------------------------------------------------------------------------------


def test_without_an_agent_its_checks_are_not_made(desk: Desk):
    for name in ("frozen", "unhealthy", "unverified", "never-switched", "clock-jump", "agent-version"):
        with pytest.raises(NotChecked, match="the agent does not answer"):
            desk.found(name)


def test_a_frozen_service(desk: Desk):
    desk.answer = desk.healthy()
    assert desk.found("frozen") == []
    desk.answer = desk.healthy(frozen="3 failovers in an hour")
    found = desk.found("frozen")
    assert severities(found) == ["warning"]
    assert "3 failovers in an hour" in found[0].what
    assert found[0].mend == "lbswitch release -s shop"


@pytest.mark.parametrize(
    ("blue", "green", "severity", "words"),
    [
        ("healthy", "healthy", [], ""),
        ("unknown", "unknown", [], ""),
        ("healthy", "unhealthy", ["warning"], "there is no way back from blue: green has 0 of 1 servers healthy"),
        ("unhealthy", "healthy", ["error"], "the live color is unhealthy: blue has 0 of 1"),
        ("unhealthy", "unhealthy", ["error"], "both colors are unhealthy"),
    ],
)
def test_unhealthy_colors(desk: Desk, blue: str, green: str, severity: list[str], words: str):
    desk.answer = desk.healthy()
    for color, state in (("blue", blue), ("green", green)):
        pool = desk.answer["services"]["shop"][color]
        pool["state"] = state
        pool["healthy"] = int(state == "healthy")
        pool["servers"][0]["last_error"] = "connect refused" if state == "unhealthy" else None
    found = desk.found("unhealthy")
    assert severities(found) == severity
    assert all(words in finding.what and "connect refused" in finding.what for finding in found)


def test_a_service_that_is_not_seen(desk: Desk):
    desk.answer = desk.healthy()
    assert desk.found("unverified") == []
    desk.answer = desk.healthy(verified=False, problem="the listener answers HTTP 502")
    assert severities(desk.found("unverified")) == ["error"]
    desk.answer = desk.healthy(verified=False, operation={"kind": "switch", "actor": "ci"})
    assert desk.found("unverified") == []


def test_a_first_switch_that_was_never_done(desk: Desk):
    desk.answer = desk.healthy()
    assert desk.found("never-switched") == []
    desk.answer = desk.healthy(previous=None, generation=1)
    assert severities(desk.found("never-switched")) == ["note"]


def test_failover_that_is_off(desk: Desk):
    assert desk.found("no-failover") == []
    desk.shop["failover"] = {"enabled": False}
    assert severities(desk.found("no-failover")) == ["note"]


def test_only_one_service_is_looked_at(desk: Desk):
    """The one that was asked for."""
    desk.document["services"]["api"] = {**desk.shop, "bind": "127.0.0.1:1", "failover": {"enabled": False}}
    desk.shop["failover"] = {"enabled": False}
    assert [finding.service for finding in desk.found("no-failover", desk.case("api"))] == ["api"]
    assert len(desk.found("no-failover")) == 2


# -- the agent and the machine -------------------------------------------------------------------------------------


def test_no_agent(desk: Desk):
    assert severities(desk.found("agent-unreachable")) == ["error"]
    desk.answer = NotAllowed("may not use the socket")
    assert severities(desk.found("agent-unreachable")) == ["warning"]
    desk.answer = desk.healthy()
    assert desk.found("agent-unreachable") == []


def test_a_socket_for_everybody(desk: Desk):
    """Its own mode, and the directories above it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(desk.directory / "agent.sock"))
        (desk.directory / "agent.sock").chmod(0o660)
        assert desk.found("socket-open") == []
        (desk.directory / "agent.sock").chmod(0o666)
        assert severities(desk.found("socket-open")) == ["warning"]
        desk.directory.chmod(0o700)
        assert desk.found("socket-open") == []


@pytest.mark.parametrize(("mode", "severity"), [("process", []), ("control-group", ["error"]), ("mixed", ["error"])])
def test_a_balancer_that_would_end_with_the_agent(desk: Desk, mode: str, severity: list[str]):
    """It lives in the control group of the agent's unit. The pid file is that of any process here."""
    desk.host.systemd, desk.host.unit_name = True, "lbswitch.service"
    desk.host.units["lbswitch.service"] = {"UnitFileState": "enabled", "KillMode": mode}
    case = desk.case()
    case.look_up("master", os.getpid)
    found = desk.found("same-unit", case)
    assert severities(found) == severity
    assert all(f"KillMode={mode}" in finding.what for finding in found)


def test_a_balancer_that_waits_for_the_agent(desk: Desk):
    assert desk.found("balancer-unit") == []
    desk.host.systemd = True
    assert severities(desk.found("balancer-unit")) == ["note"]
    desk.host.units["lbswitch-balancer.service"] = {"UnitFileState": "enabled"}
    assert desk.found("balancer-unit") == []


def test_a_balancer_in_a_unit_of_its_own(desk: Desk):
    desk.host.systemd, desk.host.unit_name = True, "lbswitch-nginx.service"
    case = desk.case()
    case.look_up("master", os.getpid)
    assert desk.found("same-unit", case) == []


def test_an_agent_of_another_version(desk: Desk):
    desk.answer = desk.healthy()
    assert desk.found("agent-version") == []
    desk.answer["agent"]["version"] = "0.0.1"
    assert severities(desk.found("agent-version")) == ["warning"]


def test_an_agent_that_does_not_come_back(desk: Desk):
    """Without systemd there is nobody to ask."""
    assert desk.found("agent-boot") == []
    desk.host.systemd = True
    assert "no lbswitch.service" in desk.found("agent-boot")[0].what
    desk.host.units["lbswitch.service"] = {"UnitFileState": "disabled"}
    found = desk.found("agent-boot")
    assert severities(found) == ["warning"]
    assert found[0].mend == "systemctl enable lbswitch.service"
    desk.host.units["lbswitch.service"] = {"UnitFileState": "enabled"}
    assert desk.found("agent-boot") == []


def test_an_agent_in_a_unit_of_another_name(desk: Desk):
    desk.host.systemd, desk.host.unit_name = True, "edge.service"
    desk.host.units["edge.service"] = {"UnitFileState": "enabled"}
    desk.answer = desk.healthy()
    assert desk.found("agent-boot") == []


def test_an_owners_balancer_that_does_not_come_back(desk: Desk):
    desk.host.systemd = True
    desk.host.units["nginx.service"] = {"UnitFileState": "disabled"}
    assert severities(desk.found("balancer-boot")) == ["warning"]
    desk.host.units["nginx.service"] = {"UnitFileState": "enabled"}
    assert desk.found("balancer-boot") == []


def test_a_clock_that_is_not_synchronized(desk: Desk):
    for synchronized, severity in ((True, []), (None, []), (False, ["note"])):
        desk.host.is_synchronized = synchronized
        assert severities(desk.found("clock-unsynchronized")) == severity
    assert Host().clock().synchronized in (True, False, None)


@pytest.mark.parametrize(("jumped_s", "words"), [(0.5, ""), (3600.0, "3600 s forward"), (-120.0, "120 s back")])
def test_a_clock_that_jumped(desk: Desk, jumped_s: float, words: str):
    """Seen by what the agent thinks it has run, against the time since boot."""
    desk.answer = desk.healthy()
    desk.host.jumped_s = jumped_s
    found = desk.found("clock-jump")
    assert severities(found) == (["warning"] if words else [])
    assert all(words in finding.what for finding in found)


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "later_days", "severity"), [(90, 0, []), (7, 0, ["warning"]), (90, 80, ["warning"]), (90, 91, ["error"])]
)
def test_a_certificate_that_ends(
    desk: Desk, make_certificate: Callable[..., tuple[Path, Path]], days: int, later_days: int, severity: list[str]
):
    cert, key = make_certificate(days)
    desk.shop["tls"] = {"cert": str(cert), "key": str(key)}
    desk.host.jumped_s = later_days * 86400.0
    found = desk.found("certificate")
    assert severities(found) == severity
    assert all(str(cert) in finding.what for finding in found)


def test_a_key_that_everybody_can_read(desk: Desk, make_certificate: Callable[..., tuple[Path, Path]]):
    cert, key = make_certificate()
    key.chmod(0o600)
    desk.shop["tls"] = {"cert": str(cert), "key": str(key)}
    assert desk.found("key-readable") == []
    key.chmod(0o644)
    assert [finding.mend for finding in desk.found("key-readable")] == [f"chmod o-r {key}"]


def test_many_are_asked_at_once():
    """Each thing once, in order."""
    assert list(together(lambda number: number * 2, [*range(100), *range(100)]).items()) == [
        (number, number * 2) for number in range(100)
    ]
    assert together(str, []) == {}


# -- metrics from elsewhere ----------------------------------------------------------------------------------------


def test_sources_are_read_once(desk: Desk):
    """What gives no value is a warning with its reason; the values of the others are one note."""
    assert desk.found("sources") == []
    desk.document["sources"] = {
        "queue": {"kind": "command", "command": ["/bin/echo", "17"]},
        "lag": {"kind": "command", "command": ["/bin/sh", "-c", "echo no replica >&2; exit 2"]},
        "p99": {"kind": "prometheus", "url": f"http://127.0.0.1:{free_port()}", "query": "x"},
    }
    found = desk.found("sources")
    assert severities(found) == ["warning", "warning", "note"]
    assert "sources.lag gives no value" in found[0].what
    assert "exit 2, saying 'no replica'" in found[0].what
    assert "can't be reached (Connection refused)" in found[1].what
    assert found[2].what == "read now: queue 17"


def test_a_secret_that_everybody_can_read(desk: Desk):
    secret = desk.directory / "dsn"
    desk.document["sources"] = {"db": {"kind": "postgres", "dsn_file": str(secret)}}
    assert desk.found("secret-readable") == []
    secret.write_text("service=shop")
    secret.chmod(0o640)
    assert desk.found("secret-readable") == []
    secret.chmod(0o644)
    found = desk.found("secret-readable")
    assert severities(found) == ["warning"]
    assert found[0].mend == f"chmod o-r {secret}"
