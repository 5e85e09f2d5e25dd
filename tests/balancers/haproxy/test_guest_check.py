"""What is checked is the owner's whole configuration with our new file in its place, and nothing is left behind."""

import tempfile
from pathlib import Path

import pytest

from lbswitch.balancers.haproxy_owner import CommandLine
from lbswitch.balancers.haproxy_whole import readable_version
from lbswitch.balancers.neighbors import Neighbors
from lbswitch.core.config import Control
from lbswitch.errors import BalancerMissing, BalancerTooOld, CheckFailed, RenderFailed
from lbswitch.procs import Result
from tests.balancers.haproxy.guest import Guest
from tests.balancers.haproxy.managed import open_files


def with_template(guest: Guest, text: str) -> None:
    """The operator's own template, which is `text` and then the stock one."""
    templates = guest.directory / "templates"
    templates.mkdir(exist_ok=True)
    stock = Path(__file__).parents[3] / "templates" / "haproxy" / "guest.cfg.j2"
    (templates / "guest.cfg.j2").write_text(stock.read_text() + text)
    guest.document["balancer"]["templates"] = str(templates)
    guest.haproxy = guest.adapter()


def refused(guest: Guest) -> str:
    """The words of a check that has to fail, and that changed and left nothing."""
    before, temporary = open_files(guest.directory), set(Path(tempfile.gettempdir()).glob("lbswitch-check-*"))
    rendered = guest.haproxy.render(guest.intent)
    with pytest.raises(CheckFailed, match="nothing was changed") as failed:
        guest.haproxy.check(rendered)
    assert open_files(guest.directory) == before
    words = str(failed.value)
    assert not any(str(path) in words for path in set(Path(tempfile.gettempdir()).glob("lbswitch-check-*")) - temporary)
    return words


@pytest.mark.parametrize("load", ["after", "before", "directory", "never"])
def test_our_file_is_judged_with_theirs(visit, service, load):
    """Wherever it is loaded, or not yet: a section of ours that clashes with theirs is refused."""
    guest = visit({"shop": service()}, load=load)
    if load == "never":
        guest.write_owner([])
    guest.serve()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    with_template(guest, "\nbackend theirs\n    server x 127.0.0.1:1\n    nonsense\n")
    words = refused(guest)
    assert "lbswitch.cfg:" in words
    assert "nonsense" in words
    assert guest.app("/theirs") == "theirs"


def test_a_mistake_of_the_owners_is_named_with_their_path(guest):
    """A change of ours is not applied over a configuration that would not start."""
    guest.owner.write_text(guest.owner.read_text() + "\nbackend broken\n        nonsense\n")
    assert f"{guest.owner}:" in refused(guest)


def test_a_use_of_a_backend_that_we_no_longer_render_is_refused(visit, service):
    """The owner's literal `use_backend lbswitch_cart_blue` needs a service `cart`."""
    guest = visit({"shop": service(), "cart": service()})
    guest.write_owner([*guest.lines("shop", " if { path_beg /shop }"), "use_backend lbswitch_cart_blue"])
    guest.serve()
    del guest.document["services"]["cart"]
    guest.haproxy = guest.adapter()
    assert "lbswitch_cart_blue" in refused(guest)


def test_it_is_checked_with_haproxy_down(guest):
    """Then `balancer.config` says what the owner loads; our file comes with it, once."""
    guest.stop()
    guest.document["balancer"]["binary"] = guest.binary
    guest.haproxy = guest.adapter()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    guest.owner.write_text(guest.owner.read_text() + "\nnonsense\n")
    assert "nonsense" in refused(guest)


@pytest.mark.parametrize("gone", ["live.map", "weights.map"])
def test_maps_that_are_not_there_yet_are_no_mistake(visit, service, gone):
    """The owner's line looks into a map that the agent is about to write."""
    guest = visit({"shop": service(weights={})}).serve()
    (guest.output / gone).unlink()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    guest.owner.write_text(guest.owner.read_text() + "\nnonsense\n")
    assert f"{guest.owner}:" in refused(guest)


@pytest.mark.parametrize("how", ["cwd", "option"])
def test_relative_paths_of_the_owner(visit, service, how, pem):
    """They begin where the running HAProxy begins, not where the agent happens to be."""
    guest = visit({"shop": service()}, load="relative")
    guest.owner.write_text(guest.owner.read_text().replace(str(pem), "own.pem"))
    (guest.owner.parent / "own.pem").write_bytes(pem.read_bytes())
    if how == "cwd":
        guest.cwd = guest.owner.parent
    else:
        guest.options = ["-C", str(guest.owner.parent)]
    guest.document["balancer"]["config"] = [str(guest.owner)]
    (guest.output).mkdir()
    guest.haproxy.commit(guest.intent, [])
    guest.haproxy.install(guest.haproxy.render(guest.intent))
    guest.start()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    guest.haproxy.reload()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    (guest.owner.parent / "own.pem").unlink()
    assert "own.pem" in refused(guest)


def test_environment_variables_of_the_owner(visit, service, theirs):
    """The service's unit sets them; the check has them too."""
    guest = visit({"shop": service()})
    guest.owner.write_text(guest.owner.read_text().replace(theirs.address, '"${THEIRS}"'))
    guest.environment = {"THEIRS": theirs.address}
    guest.haproxy.commit(guest.intent, [])
    guest.haproxy.install(guest.haproxy.render(guest.intent))
    guest.start()
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    guest.haproxy.reload()
    guest.haproxy.check(guest.haproxy.render(guest.intent))


def test_a_directory_is_read_as_haproxy_reads_it(visit, service):
    """Hidden files and others than *.cfg are not loaded, so they are not checked."""
    guest = visit({"shop": service()}, load="directory").serve()
    (guest.owner.parent / "notes.txt").write_text("nonsense\n")
    (guest.owner.parent / ".hidden.cfg").write_text("nonsense\n")
    guest.haproxy.check(guest.haproxy.render(guest.intent))
    guest.haproxy.reload()
    (guest.owner.parent / "aa.cfg").write_text("nonsense\n")
    assert f"{guest.owner.parent}/aa.cfg:" in refused(guest)


def test_a_broken_template_names_its_line(guest):
    """Nothing is rendered, so nothing is checked or installed."""
    with_template(guest, "\n    {{ nothing_of_that_name }}\n")
    with pytest.raises(RenderFailed, match=r"guest\.cfg\.j2:\d+: .*nothing_of_that_name"):
        guest.haproxy.render(guest.intent)


def test_a_socket_path_that_is_too_long(visit, service):
    """HAProxy's checker does not bind, so it would not say so."""
    guest = visit({"db": service(mode="tcp")}, output_dir="/tmp/" + "x" * 100)
    with pytest.raises(CheckFailed, match=r"choose a shorter balancer\.output_dir"):
        guest.haproxy.check(guest.haproxy.render(guest.intent))


def test_a_program_that_is_not_there(guest):
    """Said with the setting that names another."""
    guest.stop()
    guest.document["balancer"]["binary"] = "/nowhere/haproxy"
    with pytest.raises(BalancerMissing, match=r"balancer\.binary"):
        guest.adapter().version()


def test_versions():
    """As programs and workers say them; older ones are refused."""
    assert readable_version("2.6.12-1+deb12u4") == "2.6.12"
    assert readable_version(" 3.0.11-1+deb13u3 2026/05/20") == "3.0.11"
    with pytest.raises(BalancerTooOld, match=r"need 2\.6"):
        readable_version("2.4.1")
    with pytest.raises(BalancerMissing):
        readable_version("nginx")


def test_command_lines():
    """As owners write them, and as the master writes its own after a reload."""
    after_a_reload = "haproxy -sf 12 13 -x sockpair@4 "
    line = "-Ws -f /etc/a.cfg -p /run/p -S /run/m -C /etc -m 16 -dr -f /etc/b -- c.cfg d.cfg"
    found = CommandLine.parse((after_a_reload + line).split())
    assert found.files == ("/etc/a.cfg", "/etc/b", "c.cfg", "d.cfg")
    assert found.directory == "/etc"
    assert found.kept == ("-m", "16", "-dr")
    assert CommandLine.parse(["haproxy", "-W", "-f"]).files == ()


class InItsOwnNetwork:
    """A container's HAProxy, as far as routes go."""

    kind = Control.DOCKER
    asked = 0

    def run(self, argv, *, timeout_s):
        self.asked += 1
        assert argv == ["cat", "/proc/net/route"]
        table = "Iface\tDestination\tGateway \tFlags\neth0\t00000000\t010214AC\t0003\neth0\t000214AC\t00000000\t0001\n"
        return Result(0, table)


class InTheHostsNetwork(InItsOwnNetwork):
    def run(self, argv, *, timeout_s):
        return Result(0, Path("/proc/net/route").read_text())


def test_the_gateway_of_a_containers_network_may_ask():
    """Asked once; with the host's network there is none beside loopback."""
    inside = InItsOwnNetwork()
    neighbors = Neighbors(inside)
    assert neighbors.addresses() == neighbors.addresses() == ["172.20.2.1"]
    assert inside.asked == 1
    assert Neighbors(InTheHostsNetwork()).addresses() == []


def test_a_service_that_a_frontend_still_uses_may_not_go(visit, service):
    """HAProxy's checker does not see where a line with a map in it leads, so we look; afterwards it may go."""
    guest = visit({"shop": service(), "cart": service()})
    (line,), shop = guest.lines("cart", " if { path_beg /cart }"), guest.lines("shop")
    guest.write_owner([line, *shop])
    guest.serve()
    del guest.document["services"]["cart"]
    guest.haproxy = guest.adapter()
    assert f"frontend web: {line}" in refused(guest)
    guest.write_owner(shop)
    guest.haproxy.check(guest.haproxy.render(guest.intent))
