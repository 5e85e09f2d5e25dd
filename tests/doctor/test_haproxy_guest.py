"""An owner's HAProxy with lbswitch as its guest: a real one, and what is wrong with its files."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.balancers.haproxy.guest import Guest
from tests.doctor.desk import Desk, severities
from tests.support.app import App

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class Visit(Desk):
    """The owner's HAProxy, and the doctor's desk beside it."""

    def __init__(self, directory: Path, guest: Guest) -> None:
        super().__init__(directory, "haproxy")
        self.guest = guest
        self.document = guest.document
        self.state_dir = Path(guest.document["agent"]["state_dir"])

    def edit(self, old: str, new: str) -> None:
        """Change the owner's file."""
        text = self.guest.owner.read_text()
        assert old in text
        self.guest.owner.write_text(text.replace(old, new))


Make = Callable[..., Visit]


@pytest.fixture
def make(directory: Path, make_certificate: Callable[..., tuple[Path, Path]]) -> Iterator[Make]:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if program is None:
        pytest.skip("HAProxy is not installed")
    cert, key = make_certificate(name="theirs")
    pem = directory / "theirs-both.pem"
    pem.write_bytes(cert.read_bytes() + key.read_bytes())
    guests = []
    with App("blue") as blue, App("green") as green, App("theirs") as theirs:

        def visit(load: str = "after", serve: bool = True, **service: Any) -> Visit:
            shop = {"blue": {"servers": [blue.address]}, "green": {"servers": [green.address]}, **service}
            guest = Guest(program, {"shop": shop}, pem, theirs.address, load=load)
            guests.append(guest)
            if serve:
                guest.serve()
            return Visit(directory, guest)

        yield visit
        for guest in guests:
            guest.close()


FILES = ("not-loaded", "no-use-backend", "other-map", "idle-close", "hard-stop-after", "other-files")
RUNNING = ("no-master", "no-master-socket", "listener", "balancer-down", "drift", "no-restart", "not-applied")


@pytest.mark.parametrize("load", ["after", "before", "directory"])
def test_an_owner_who_did_as_told(make: Make, load: str):
    """Every check of files and processes finds nothing, however our file is loaded."""
    visit = make(load)
    if load == "directory":
        visit.document["balancer"]["config"] = [str(visit.guest.owner.parent)]
    case = visit.case()
    for name in (*FILES, *RUNNING, "change-refused", "balancer-missing", "same-server", "health-odd"):
        assert visit.found(name, case) == [], name


def test_an_owner_who_did_as_told_with_weights(make: Make):
    visit = make(weights={"sticky": "address"})
    case = visit.case()
    for name in (*FILES, *RUNNING):
        assert visit.found(name, case) == [], name


def test_a_file_that_is_not_loaded(make: Make):
    visit = make(serve=False)
    visit.guest.load = "never"
    visit.guest.write_owner([])
    visit.guest.install()
    visit.guest.start()
    found = visit.found("not-loaded")
    assert severities(found) == ["error"]
    assert found[0].what.startswith(f"HAProxy does not load {visit.guest.ours}")
    assert severities(visit.found("no-use-backend")) == ["error"]


def test_a_line_that_is_missing(make: Make):
    """The mend is the line itself."""
    visit = make()
    line = visit.guest.lines("shop")[0]
    visit.edit(line, "# later")
    found = visit.found("no-use-backend")
    assert severities(found) == ["error"]
    assert line in found[0].mend


def test_a_line_with_another_map(make: Make):
    visit = make()
    visit.edit("/lbswitch/live.map", "/old/live.map")
    found = visit.found("other-map")
    assert severities(found) == ["error"]
    assert f"looks into another map than {visit.guest.output}/live.map" in found[0].what
    assert found[0].what.startswith(f"{visit.guest.owner}:")


def test_weights_without_their_lines(make: Make):
    visit = make(weights={"sticky": "none"})
    for line in visit.guest.lines("shop")[:-1]:
        visit.edit(f"        {line}\n", "")
    assert severities(visit.found("other-map")) == ["error"]


def test_reloads_that_cut_idle_connections(make: Make):
    """The option may stand in the frontend or in the defaults that it takes; `no option` in between counts."""
    visit = make()
    visit.edit("\toption\tidle-close-on-response\n", "")
    found = visit.found("idle-close")
    assert severities(found) == ["warning"]
    assert f"{visit.guest.owner}:" in found[0].what
    assert "frontend web" in found[0].mend
    visit.edit("        option forwardfor", "        option idle-close-on-response")
    assert visit.found("idle-close") == []
    visit.edit("        option idle-close-on-response", "        no option idle-close-on-response")
    assert severities(visit.found("idle-close")) == ["warning"]


def test_workers_without_an_end(make: Make):
    visit = make()
    visit.edit("\thard-stop-after 5m\n", "")
    found = visit.found("hard-stop-after")
    assert severities(found) == ["warning"]
    assert "hard-stop-after 30m" in found[0].mend


def test_a_master_socket_that_is_another(make: Make):
    visit = make()
    socket = visit.document["balancer"]["master_socket"]
    visit.document["balancer"]["master_socket"] = socket.replace("master.sock", "other.sock")
    found = visit.found("no-master-socket")
    assert severities(found) == ["error"]
    assert found[0].mend == f"balancer.master_socket: {socket}"


def test_an_owner_without_a_master(make: Make):
    """A HAProxy that was started with -D alone."""
    visit = make(serve=False)
    visit.guest.install()
    argv = [visit.guest.binary, "-D", "-p", str(visit.directory / "alone.pid"), *visit.guest.arguments()]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    pid = int((visit.directory / "alone.pid").read_text())
    try:
        visit.document["balancer"]["pid_file"] = str(visit.directory / "alone.pid")
        assert severities(visit.found("no-master")) == ["error"]
        assert severities(visit.found("no-master-socket")) == ["error"]
    finally:
        process = psutil.Process(pid)
        process.kill()
        process.wait(10)


def test_files_that_the_configuration_does_not_name(make: Make):
    visit = make()
    other = visit.directory / "other.cfg"
    other.write_text(visit.guest.owner.read_text())
    visit.document["balancer"]["config"] = [str(other)]
    found = visit.found("other-files")
    assert severities(found) == ["warning"]
    assert f"-f {visit.guest.owner}" in found[0].what


def test_an_owner_whose_haproxy_is_down(make: Make):
    """What only the process tells is not checked; its files are."""
    visit = make()
    visit.guest.stop()
    assert severities(visit.found("balancer-down")) == ["error"]
    assert visit.found("no-use-backend") == []


def test_an_owners_edit_that_would_not_start_again(make: Make):
    visit = make()
    visit.edit("option forwardfor", "option forwardfoo")
    found = visit.found("no-restart")
    assert severities(found) == ["error"]
    assert "forwardfoo" in found[0].what


def test_a_map_that_was_changed_behind_our_back(make: Make):
    visit = make()
    (visit.guest.output / "current" / "lbswitch.cfg").write_text("# mine\n")
    assert "warning" in severities(visit.found("drift"))
