"""Rendering, checking and installing; nothing of it touches what serves."""

import re
import tempfile

import pytest

from lbswitch.balancers.haproxy_binds import LONGEST_SOCKET_PATH
from lbswitch.balancers.templating import STOCK_TEMPLATES
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.errors import CheckFailed, RenderFailed, StartFailed, StateError
from tests.balancers.haproxy.managed import key, open_files

GREEN = Route(Color.GREEN)


def text(rendered):
    return next(file.content.decode() for file in rendered.files if file.name == "haproxy.cfg")


def test_the_same_inputs_give_the_same_bytes(make, service):
    """Routes, generations, weights and ejected servers of map-switched services change nothing."""
    managed = make({"shop": service()})
    first = managed.haproxy.render(managed.intent)
    other = Intent(
        {"shop": ServiceIntent(Route(Color.GREEN, 30), 9, weighted=True)},
        9,
        frozenset([key("shop", "blue", managed.document["services"]["shop"]["blue"]["servers"][0])]),
    )
    assert managed.haproxy.render(other) is first
    assert managed.adapter().render(other) == first
    assert first.revision in text(first)


def test_reload_services_carry_route_and_generation(make, service):
    """With `switching: reload` each of them gives another revision."""
    managed = make({"shop": service(switching="reload"), "cart": service()})
    revisions = {
        managed.haproxy.render(managed.after(shop=route)).revision
        for route in (Route(Color.BLUE), GREEN, Route(Color.BLUE, 30))
    }
    assert len(revisions) == 3
    assert "shop" in text(managed.haproxy.render(managed.intent))


def test_an_edited_template_is_noticed(make, service, tmp_path):
    """An override comes before the stock template, and an edit gives a new revision at the next render."""
    managed = make({"shop": service()}, templates=str(tmp_path))
    first = managed.haproxy.render(managed.intent)
    stock = (STOCK_TEMPLATES / "haproxy" / "http.cfg.j2").read_text()
    (tmp_path / "http.cfg.j2").write_text(stock + "    http-request set-header X-Ours yes\n")
    second = managed.haproxy.render(managed.intent)
    assert second.revision != first.revision
    assert "X-Ours yes" in text(second)
    managed.haproxy.check(second)


def test_a_broken_template_is_named_with_its_line(make, service, tmp_path):
    """File and line of the template, not a traceback."""
    (tmp_path / "tcp.cfg.j2").write_text("")
    (tmp_path / "http.cfg.j2").write_text("frontend x\n    bind {{ service.nonsense }}\n")
    managed = make({"shop": service()}, templates=str(tmp_path))
    with pytest.raises(RenderFailed, match=r"http\.cfg\.j2:2: .*nonsense"):
        managed.haproxy.render(managed.intent)


def test_what_the_checker_refuses_is_not_installed(shop, tmp_path):
    """CheckFailed has HAProxy's words with the line, and everything is as before, on disk and in traffic."""
    (tmp_path / "color.cfg.j2").write_text("    nonsense here\n")
    shop.document["balancer"]["templates"] = str(tmp_path)
    later = shop.adapter()
    files = open_files(shop.state)
    with pytest.raises(CheckFailed) as failed:
        later.check(later.render(shop.intent))
    words = str(failed.value)
    assert re.search(r"haproxy\.cfg:\d+.*unknown keyword 'nonsense'", words)
    assert str(shop.state) not in words
    assert "[ALERT]" not in words
    assert open_files(shop.state) == files
    assert shop.app() == "blue"


def test_a_first_check_leaves_nothing_behind(make, service):
    """Also when there is no state yet: the maps it needs exist only while it runs."""
    managed = make({"shop": service()})
    managed.haproxy.check(managed.haproxy.render(managed.intent))
    assert open_files(managed.state) == []


def test_every_kind_of_service_passes_without_a_warning(make, service):
    """HAProxy's checker has nothing to say about what the stock templates give."""
    managed = make(
        {
            "plain": service(),
            "cookie": service(weights={"sticky": "cookie:a"}),
            "header": service(weights={"sticky": "header:X-A"}),
            "address": service(weights={"sticky": "address"}),
            "reload": service(switching="reload"),
            "tcp": service(mode="tcp", weights={"sticky": "address"}),
            "tcp-reload": service(mode="tcp", switching="reload"),
            "any": service(bind="*:18999"),
            "any6": service(bind="[::]:18999"),
            "unix": service(bind="unix:/tmp/lbswitch-never-bound.sock", timeouts={"connect": "100ms", "read": "30d"}),
            "name": service(blue={"servers": ["no-such-host.invalid:80", "[::1]:80", "unix:/tmp/x.sock"]}),
        }
    )
    rendered = managed.haproxy.render(managed.intent)
    managed.haproxy.check(rendered)
    with managed.haproxy._rendered.staged(managed.haproxy._with_maps(rendered)) as staging:
        ok, output = managed.haproxy._program.run(["-c", "-C", str(staging), "-f", "haproxy.cfg"])
    assert ok
    complaints = [line for line in output.splitlines() if line.startswith(("[WARNING]", "[ALERT]"))]
    assert [line for line in complaints if "no-such-host.invalid" not in line] == []


def test_two_services_on_one_address_are_refused(make, service):
    """The kernel would share the connections out between them, and HAProxy's checker does not look."""
    managed = make({"shop": service(bind="127.0.0.1:18080"), "cart": service(bind="127.0.0.1:18080")})
    with pytest.raises(CheckFailed, match=r"shop, cart all bind 127\.0\.0\.1:18080"):
        managed.haproxy.check(managed.haproxy.render(managed.intent))


def test_a_state_directory_that_is_too_deep_is_refused_in_words(make, service):
    """Unix sockets have short paths, and HAProxy needs room for a suffix."""
    managed = make({"shop": service()})
    deep = managed.state / ("d" * (LONGEST_SOCKET_PATH - len(str(managed.state)) - len("/haproxy/master.sock")))
    managed.document["agent"]["state_dir"] = str(deep)
    later = managed.adapter()
    message = rf"has {LONGEST_SOCKET_PATH + 1} bytes, .* shorter agent\.state_dir"
    with pytest.raises(CheckFailed, match=message):
        later.check(later.render(managed.intent))
    later.commit(managed.intent, [])
    later.install(later.render(managed.intent))
    with pytest.raises(StartFailed, match=message):
        later.start()


def test_the_longest_state_directory_works(make, service):
    """The limit that is promised is one that HAProxy can bind."""
    managed = make({"shop": service(), "db": service(mode="tcp")})
    deep = managed.state / ("d" * (LONGEST_SOCKET_PATH - 1 - len(str(managed.state)) - len("/haproxy/master.sock")))
    managed.document["agent"]["state_dir"] = str(deep)
    managed.haproxy = managed.adapter()
    managed.install()
    managed.haproxy.start()
    managed.move(shop=GREEN, db=GREEN)


def test_installed_revisions_are_kept_and_can_be_put_back(make, service, tmp_path):
    """The previous revision is still there, and one that never was is an error."""
    managed = make({"shop": service(switching="reload")})
    first = managed.haproxy.render(managed.intent)
    managed.haproxy.install(first)
    second = managed.haproxy.render(managed.after(shop=GREEN))
    managed.haproxy.install(second)
    assert managed.haproxy.installed() == second.revision
    managed.haproxy.reinstall(first.revision)
    assert managed.haproxy.installed() == first.revision
    assert managed.haproxy.read(second.revision) == second
    with pytest.raises(StateError):
        managed.haproxy.read("0123456789ab")


def test_a_reload_works_when_the_first_revision_is_long_gone(make, service):
    """The running master's own directory may have been removed by then."""
    managed = make({"shop": service(switching="reload")}).serve()
    first = managed.haproxy.installed()
    for number in range(12):
        managed.intent = managed.after(shop=GREEN if number % 2 else Route(Color.BLUE))
        managed.haproxy.install(managed.haproxy.render(managed.intent))
    assert not (managed.directory / "rendered" / first).exists()
    managed.haproxy.reload()
    managed.haproxy.reload()
    assert managed.app() == "green"


def test_a_thousand_services(make, service):
    """They are rendered, checked, started, switched together and seen."""
    names = [f"s{number}" for number in range(1000)]
    with tempfile.TemporaryDirectory(prefix="lbs-") as directory:
        managed = make({name: service(bind=f"unix:{directory}/{name}") for name in names}).serve()
        managed.move(**dict.fromkeys(names, GREEN))
        managed.stop()
