"""What the owner is told to write, with the exact lines."""

import pytest

from lbswitch.balancers.haproxy_lines import owner_lines
from lbswitch.core.config import Config
from lbswitch.core.config_text import parse
from lbswitch.errors import ConfigError


def test_nothing_when_all_is_well(guest):
    """Neither while it runs nor while it is down."""
    assert guest.haproxy.warnings() == []


def test_our_file_is_not_loaded(visit, service):
    """Debian's place for another -f, or a symlink where a directory is loaded."""
    guest = visit({"shop": service()}, load="never")
    guest.write_owner([])
    guest.serve()
    warnings = guest.haproxy.warnings()
    master, ours = guest.document["balancer"]["master_socket"], guest.ours
    assert any(f'EXTRAOPTS="-S {master} -f {ours}"' in warning for warning in warnings)
    guest.document["balancer"]["config"] = [str(guest.owner.parent)]
    guest.stop()
    assert any(f"ln -s {ours} {guest.owner.parent}/lbswitch.cfg" in warning for warning in guest.adapter().warnings())


def test_no_line_for_a_service(visit, service):
    """The line is in the message; the service that has one is not mentioned."""
    guest = visit({"shop": service(), "cart": service(weights={})})
    guest.write_owner(guest.lines("shop"))
    guest.serve()
    (warning,) = guest.haproxy.warnings()
    assert "uses the backends of cart" in warning
    for line in guest.lines("cart"):
        assert line in warning


def test_a_line_that_looks_elsewhere(visit, service):
    """A map by another name would stay on its color for ever."""
    guest = visit({"shop": service()})
    other = guest.directory / "other.map"
    other.write_text("shop blue\n")
    guest.write_owner([f"use_backend lbswitch_shop_%[str(shop),map({other},blue)]"])
    guest.serve()
    (warning,) = guest.haproxy.warnings()
    assert "no switch moves it" in warning
    assert guest.lines("shop")[0] in warning


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("\toption\tidle-close-on-response\n", "`option idle-close-on-response`"),
        ("\thard-stop-after 5m\n", "`hard-stop-after 30m`"),
    ],
)
def test_settings_that_reloads_need(visit, service, without, said):
    """One sentence for each that is missing."""
    guest = visit({"shop": service()})
    guest.owner.write_text(guest.owner.read_text().replace(without, ""))
    guest.serve()
    (warning,) = guest.haproxy.warnings()
    assert said in warning


def test_idle_close_in_the_frontend_is_enough(visit, service):
    """It need not be in the defaults."""
    guest = visit({"shop": service()})
    text = guest.owner.read_text().replace("\toption\tidle-close-on-response\n", "")
    guest.owner.write_text(text.replace("option forwardfor", "option forwardfor\n    option idle-close-on-response"))
    guest.serve()
    assert guest.haproxy.warnings() == []


def test_weights_need_a_section_and_lines(visit, service):
    """First the section is asked for, then the lines; with both, nothing."""
    guest = visit({"shop": service()}).serve()
    assert "`weights: {sticky: none}`" in (guest.haproxy.why_not_weighted("shop") or "")
    guest.document["services"]["shop"]["weights"] = {"sticky": "address"}
    guest.haproxy = guest.adapter()
    why = guest.haproxy.why_not_weighted("shop") or ""
    assert "src,crc32(1),mod(100)" in why
    assert all(line in why for line in guest.lines("shop"))
    guest.write_owner(guest.lines("shop"))
    assert guest.haproxy.why_not_weighted("shop") is None


def test_owner_lines(visit, service):
    """What documentation, `init` and messages show is one and the same."""
    guest = visit({"shop": service(initial="green")})
    config = Config.model_validate(guest.document)
    expected = f"use_backend lbswitch_shop_%[str(shop),map({guest.output}/live.map,green)]"
    assert owner_lines(config, "shop") == guest.haproxy.owner_lines("shop") == [expected]


def test_switching_by_reload_is_refused():
    """A literal color would have to stand in the owner's frontend."""
    text = """
balancer: {kind: haproxy, managed: false, config: /etc/haproxy/haproxy.cfg, output_dir: /etc/haproxy/lbswitch,
           master_socket: /run/haproxy-master.sock}
services:
  shop: {bind: 127.0.0.1:80, switching: reload, blue: {servers: [127.0.0.1:1]}, green: {servers: [127.0.0.1:2]}}
"""
    with pytest.raises(ConfigError, match="frontend that lbswitch does not write"):
        parse(text, "lbswitch.yaml")


def test_lines_of_a_service_that_is_gone(visit, service):
    """HAProxy's checker does not see where a line with a map in it leads."""
    guest = visit({"shop": service(), "my-cart": service()})
    guest.write_owner([*guest.lines("my-cart", " if { path_beg /cart }"), *guest.lines("shop")])
    guest.serve()
    assert guest.haproxy.warnings() == []
    del guest.document["services"]["my-cart"]
    (warning,) = guest.adapter().warnings()
    assert "frontend web" in warning
    assert "service my-cart that is not in lbswitch.yaml" in warning
