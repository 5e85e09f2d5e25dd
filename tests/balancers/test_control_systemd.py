"""`control: systemd`, with a systemctl of the test's own that says what a real one says (systemd 252)."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbswitch.balancers.control_systemd import ControlSystemd
from lbswitch.core.config import BalancerConfig
from lbswitch.errors import ReloadFailed

_SCRIPT = """#!/bin/sh
echo "$@" >>{directory}/calls
case "$1" in
show) cat {directory}/properties ;;
reload) cat {directory}/words >&2; exit "$(cat {directory}/code)" ;;
esac
"""


class Systemd:
    """What systemctl answers."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.directory, self.pid = directory, pid
        self.program = directory / "systemctl"
        self.program.write_text(_SCRIPT.format(directory=directory))
        self.program.chmod(0o755)
        self.says()
        self.refuses("", code=0)

    def says(self, **properties: str) -> None:
        """Properties of the unit; one that runs well by default."""
        known = {
            "LoadState": "loaded",
            "ActiveState": "active",
            "SubState": "running",
            "Result": "success",
            "MainPID": str(self.pid),
        }
        lines = [f"{name}={value}" for name, value in {**known, **properties}.items()]
        (self.directory / "properties").write_text("\n".join(lines) + "\n")

    def refuses(self, words: str, code: int = 1) -> None:
        (self.directory / "words").write_text(words)
        (self.directory / "code").write_text(str(code))

    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def control(self, booted: Path | None = None, **settings: str) -> ControlSystemd:
        document = {"kind": "nginx", "managed": False, "config": ["/etc/nginx/nginx.conf"], "output_dir": "/etc/ours"}
        balancer = BalancerConfig.model_validate({**document, "control": "systemd", **settings})
        return ControlSystemd(balancer, systemctl=str(self.program), booted=booted or self.directory)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield Systemd(tmp_path, process.pid)
        finally:
            process.kill()


def test_the_main_process_is_what_systemd_says(systemd: Systemd):
    """Asked once, and again when that process is gone."""
    control = systemd.control()
    assert (control.pid(), control.is_running(), control.trouble()) == (systemd.pid, True, None)
    assert control.arguments() == ["sleep", "300"]
    asked = len(systemd.calls())
    assert control.pid() == systemd.pid
    assert len(systemd.calls()) == asked
    systemd.says(MainPID=str(os.getpid()))
    assert systemd.control().pid() == os.getpid()


def test_the_unit_is_the_balancer_s_unless_it_is_named(systemd: Systemd):
    """`nginx.service`, or balancer.unit; it is reloaded, and nothing else is done to it."""
    systemd.control().reload()
    systemd.control(unit="nginx@blue.service").reload()
    reloads = [call for call in systemd.calls() if call.startswith("reload")]
    assert [call.split()[-1] for call in reloads] == ["nginx.service", "nginx@blue.service"]
    assert {call.split()[0] for call in systemd.calls()} <= {"reload", "show"}
    assert systemd.control(unit="web.service").how_to("restart") == "systemctl restart web"


def test_a_failed_reload_says_what_systemctl_said(systemd: Systemd):
    """With the state of the unit, if that is the reason."""
    systemd.refuses("Job for nginx.service failed.\nSee 'systemctl status nginx.service' for details.")
    with pytest.raises(ReloadFailed, match=r"nginx\.service was not reloaded: Job for nginx\.service failed"):
        systemd.control().reload()
    systemd.refuses("nginx.service is not active, cannot reload.")
    systemd.says(ActiveState="failed", SubState="failed", Result="exit-code", MainPID="0")
    with pytest.raises(ReloadFailed, match=r"is failed \(failed, exit-code\); start it: systemctl start nginx"):
        systemd.control().reload()


def test_a_user_without_the_right_is_told_of_the_polkit_rule(systemd: Systemd):
    """In the words of systemd 252 for a user whom polkit asks for a password."""
    systemd.refuses("Failed to reload nginx.service: Interactive authentication required.")
    with pytest.raises(ReloadFailed, match=r"this user may not: .*Install lbswitch's polkit rule"):
        systemd.control().reload()


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "knows no unit nginx.service"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "systemctl unmask nginx.service"),
        ({"LoadState": "bad-setting", "ActiveState": "inactive"}, "systemd calls it bad-setting"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "start it: systemctl start nginx"),
        ({}, "does not know the main process of nginx.service"),
    ],
)
def test_what_is_wrong_with_the_unit_is_said(systemd: Systemd, properties: dict[str, str], words: str):
    """Each state has its mend."""
    systemd.says(MainPID="0", **properties)
    control = systemd.control()
    assert words in str(control.trouble())
    assert (control.pid(), control.is_running(), control.arguments()) == (None, False, [])


@pytest.fixture
def without(systemd: Systemd) -> Callable[[], ControlSystemd]:
    return lambda: systemd.control(booted=systemd.directory / "nothing")


def test_a_host_without_systemd_says_so(systemd: Systemd, without: Callable[[], ControlSystemd]):
    """And systemctl is not asked there."""
    with pytest.raises(ReloadFailed, match="process 1 is something else"):
        without().reload()
    assert (without().pid(), without().is_running()) == (None, False)
    assert systemd.calls() == []


def test_the_balancer_s_files_are_this_host_s(systemd: Systemd):
    """Paths are as they are; programs run here."""
    control = systemd.control()
    path = systemd.directory / "file"
    path.write_bytes(b"content")
    assert (control.seen(path), control.read(path)) == (path, b"content")
    assert "file" in control.names(systemd.directory)
    assert control.run(["printf", "here"], timeout_s=10).output == "here"
    with pytest.raises(FileNotFoundError):
        control.run(["no-such-program"], timeout_s=10)
