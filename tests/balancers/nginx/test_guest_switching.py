"""What a guest in an owner's running nginx promises."""

import http.client
import os
import signal
import ssl

import pytest

from lbswitch.balancers.nginx_guest import NginxGuest
from lbswitch.core.config import Config
from lbswitch.core.model import Route
from lbswitch.errors import NotSeen, ReloadFailed, StartFailed
from tests.balancers.nginx.conftest import guest_service
from tests.balancers.nginx.site import BLUE, GREEN
from tests.support.load import Load
from tests.support.wait import wait_until


def get(port: int, path: str = "/", *, tls: bool = False, source: str | None = None) -> tuple[int, str]:
    """Status and body for a client of the owner's listener."""
    origin = None if source is None else (source, 0)
    if tls:
        context = ssl._create_unverified_context()
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context, source_address=origin)
    else:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=origin)
    try:
        client.request("GET", path, headers={"Host": "shop.example"})
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def test_switch(guest, owner):
    """The request after a move of the pointer goes to the new color; nothing is reloaded, no file changed."""
    shop = guest().install()
    owner.start()
    before, workers = owner.fingerprint(), owner.workers()
    for color in (GREEN, BLUE, GREEN):
        shop.switch(color)
        assert get(owner.port)[1].startswith(color)
        assert shop.nginx.observe("shop").shows(shop.intent.services["shop"], shop.nginx.installed())
    assert owner.workers() == workers
    assert owner.fingerprint() == before


def test_no_request_is_lost(guest, owner):
    """Switches as fast as they go cost none of the requests on kept and on new connections."""
    shop = guest().install()
    owner.start()
    with Load("127.0.0.1", owner.port, rate=400, connections=8, new_connections=0.5) as load:
        wait_until(lambda: load.report().answered_by("blue") > 20, "the load is under way")
        for _ in range(50):
            shop.switch(GREEN)
            shop.switch(BLUE)
        shop.switch(GREEN)
        wait_until(lambda: load.report().answered_by("green") > 50, "green answers")
        report = load.stop()
    assert report.lost == 0, report.lost_by_kind


def test_behind_the_owners_protections(guest, owner, blue, green):
    """TLS, a password, `deny all` and a server name: clients are held to them, the question of this machine is not."""
    verify = {"host": "shop.example", "tls": True}
    service = guest_service(owner, blue, green, bind=f"127.0.0.1:{owner.tls_port}", verify=verify)
    shop = guest({"shop": service}).install()
    owner.start()
    assert get(owner.tls_port, tls=True)[0] == 403
    shop.switch(GREEN)
    assert shop.nginx.observe("shop").color is GREEN
    log = (owner.base / "log/access.log").read_text()
    assert "/.lbswitch/" not in log


def test_limits_do_not_stop_the_question(guest, owner):
    """The owner's limit of one request a second is for clients."""
    owner.write("conf.d/limit.conf", "limit_req_zone $server_name zone=one:1m rate=1r/s;\nlimit_req zone=one;\n")
    shop = guest().install()
    owner.start()
    assert {get(owner.port)[0] for _ in range(5)} == {200, 503}
    assert {shop.nginx.observe("shop").color for _ in range(5)} == {BLUE}


def test_only_this_machine_is_answered(guest, owner):
    """The state is not told to others, and the server's other locations are the owner's."""
    guest().install()
    owner.start()
    assert get(owner.port, "/.lbswitch/state/shop") == (200, "shop 1 0\n")
    assert get(owner.port, "/.lbswitch/state/shop", source="127.0.0.2")[0] == 404
    assert get(owner.default_port)[1] == "Welcome to nginx!\n"


def test_weights(guest, owner, blue, green):
    """A service with a weights section moves shares without a reload; each share is seen at the listener."""
    shop = guest({"shop": guest_service(owner, blue, green, weights={})}).install()
    owner.start()
    workers = owner.workers()
    for share in (10, 50, 90):
        shop.switch(Route(BLUE, 100 - share))
        assert shop.nginx.observe("shop").share_green == share
    colors = [get(owner.port)[1].split()[0] for _ in range(200)]
    assert colors.count("green") > colors.count("blue") > 0
    assert owner.workers() == workers


def test_first_weight_reloads(guest, owner):
    """Without such a section the first share is rendered and reloaded once."""
    shop = guest().install()
    owner.start()
    shop.switch(Route(BLUE, 50))
    assert shop.nginx.render(shop.intent).revision != shop.nginx.installed()
    shop.reload()
    colors = {get(owner.port)[1].split()[0] for _ in range(60)}
    assert colors == {"blue", "green"}


def test_switching_by_reload(guest, owner, blue, green):
    """`switching: reload` renders the color, for those who want no `if`."""
    shop = guest({"shop": guest_service(owner, blue, green, switching="reload")}).install()
    owner.start()
    shop.switch(GREEN)
    assert get(owner.port)[1].startswith("blue")
    shop.reload()
    assert get(owner.port)[1].startswith("green")
    shop.switch(Route(GREEN, 50))
    shop.reload()
    assert {get(owner.port)[1].split()[0] for _ in range(60)} == {"blue", "green"}


# -- reloads ---------------------------------------------------------------------------------------------------------


def test_reload_is_seen(guest, owner):
    """A reload is over when there are new workers."""
    shop = guest().install()
    owner.start()
    before = owner.workers()
    shop.nginx.reload()
    assert owner.workers() - before


def test_refused_reload(guest, owner):
    """What the master says no to is told in its own words, and the old workers go on."""
    shop = guest().install()
    owner.start()
    before = owner.workers()
    owner.write("conf.d/broken.conf", "nonsense;\n")
    with pytest.raises(ReloadFailed, match=r'refused the reload: unknown directive "nonsense" in .*broken.conf:1'):
        shop.nginx.reload()
    assert owner.workers() == before
    assert get(owner.port)[1].startswith("blue")


def test_reload_of_one_that_is_down(guest, owner):
    """There is nothing to reload, and whose it is to start is said."""
    shop = guest().install()
    with pytest.raises(ReloadFailed, match=r"not running.*its owner starts it: .*nginx"):
        shop.nginx.reload()


def test_life_is_the_owners(guest, owner):
    """lbswitch neither starts nor stops an nginx that is not its own."""
    shop = guest().install()
    for act in (shop.nginx.start, shop.nginx.stop):
        with pytest.raises(StartFailed, match=r"somebody else's \(balancer.managed: false\)"):
            act()
    assert not shop.nginx.is_running()
    assert str(shop.nginx.why_not_started()).startswith("nginx is somebody else's to start (balancer.managed: false)")
    owner.start()
    assert shop.nginx.is_running()
    assert get(owner.port)[0] == 200


def test_master_is_found_again(guest, owner):
    """After the owner restarted his nginx, the new master is the one that is reloaded."""
    shop = guest().install()
    owner.start()
    shop.nginx.reload()
    owner.stop()
    assert not shop.nginx.is_running()
    owner.start()
    before = owner.workers()
    shop.nginx.reload()
    assert owner.workers() - before


def test_owners_reload(guest, owner):
    """The owner's own reload is no drift: it reads what is installed."""
    shop = guest().install()
    owner.start()
    shop.switch(GREEN)
    workers = owner.workers()
    os.kill(owner.pid(), signal.SIGHUP)
    wait_until(lambda: owner.workers() and not owner.workers() & workers, "the old workers are gone")
    assert shop.nginx.differences(shop.intent) == []
    assert get(owner.port)[1].startswith("green")


def test_drift(guest, owner):
    """A pointer that somebody removed is noticed, and written again when that is asked for."""
    shop = guest().install()
    owner.start()
    shop.switch(GREEN)
    (owner.state_dir / "live").unlink()
    (found,) = [each for each in shop.nginx.differences(shop.intent) if each.thing == str(owner.state_dir / "live")]
    assert "is gone: nginx sends every service to blue" in found.what
    shop.nginx.repair(shop.intent, shop.nginx.render(shop.intent))
    assert shop.nginx.differences(shop.intent) == []
    assert get(owner.port)[1].startswith("green")


# -- what should be mended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("open_file_cache max=100 inactive=20s;", "a switch is seen only when that cache forgets"),
        ("disable_symlinks on;", "nginx can't follow the pointer"),
    ],
)
def test_hindrances(guest, owner, setting, words):
    """Settings that make the pointer stale or unreadable are found where they are inherited, with their place."""
    path = owner.write("conf.d/setting.conf", f"{setting}\n")
    (warning,) = [each for each in guest().nginx.warnings() if words in each and "sites-enabled/shop:4" in each]
    assert f"({path}:1)" in warning
    site = owner.etc / "sites-available" / "shop"
    site.write_text(site.read_text().replace("location /", f"{setting.split()[0]} off;\n    location /"))
    assert not [each for each in guest().nginx.warnings() if "sites-enabled/shop:" in each]


def test_no_warnings(guest, owner):
    """An owner who has written all lines, and nothing that stands in the way, is told nothing."""
    assert guest().nginx.warnings() == []


def test_host_header(guest, owner):
    """Servers that would be asked for the name of a pool are a warning, unless some level above says otherwise."""
    site = owner.etc / "sites-available" / "shop"
    site.write_text(site.read_text().replace("proxy_set_header Host $host;", ""))
    (warning,) = guest().nginx.warnings()
    assert warning.startswith(f"{owner.etc}/sites-enabled/shop:6: the servers get the name of a pool as Host header")
    site.write_text(site.read_text().replace('proxy_set_header Connection "";', ""))
    owner.write("conf.d/proxy.conf", "proxy_set_header host $http_host;\n")
    assert guest().nginx.warnings() == []


def test_free_reload(guest, owner):
    """A reload costs idle connections, unless this nginx can keep them and its owner has it do so."""
    shop = guest()
    assert shop.nginx.reload_is_free is False
    if not shop.nginx._program.program().has_min_timeout:
        pytest.skip("this nginx has no keepalive_min_timeout")
    owner.write("conf.d/reload.conf", "keepalive_min_timeout 5s;\n")
    assert guest().nginx.reload_is_free is True


def test_header_with_underscore(guest, owner, blue, green):
    """nginx drops such headers unless its owner says otherwise."""
    service = guest_service(owner, blue, green, weights={"sticky": "header:X_User"})
    assert [each for each in guest({"shop": service}).nginx.warnings() if "underscores_in_headers on" in each]
    owner.write("conf.d/underscores.conf", "underscores_in_headers on;\n")
    assert guest({"shop": service}).nginx.warnings() == []


def test_who_answers_otherwise(guest, owner, blue, green):
    """Another server block's answer is no sight of ours, and what is probably missing is said."""
    service = guest_service(owner, blue, green, bind=f"127.0.0.1:{owner.default_port}")
    shop = guest({"shop": service}).install()
    owner.start()
    with pytest.raises(NotSeen, match=r"answers HTTP 404 .* does not include shop.server.conf"):
        shop.nginx.observe("shop")


def test_watched(guest, owner):
    """The owner's files, ours, and where more may appear."""
    watched = guest().nginx.watched()
    assert {owner.main, owner.etc / "conf.d", owner.etc / "sites-enabled", owner.output, owner.state_dir} <= watched
    assert owner.etc / "conf.d" / "lbswitch.conf" in watched


def test_names_do_not_collide(guest, owner, blue, green):
    """The owner may have pools, zones, maps and variables of the names that a managed nginx would use."""
    owner.write(
        "conf.d/own.conf",
        "upstream shop_blue {{ zone lbswitch 64k; server 127.0.0.1:9; }}\n"
        "upstream shop_green {{ server 127.0.0.1:9; }}\n"
        "map $uri $shop {{ default 1; }}\nvariables_hash_max_size 2048;\nopen_file_cache off;\n",
    )
    shop = guest({"shop": guest_service(owner, blue, green, weights={"sticky": "cookie:sid"})}).install()
    owner.start()
    shop.switch(GREEN)
    assert shop.nginx.observe("shop").color is GREEN


def test_configuration_is_all_that_is_kept(guest, owner):
    """An adapter that is made anew finds what was installed and committed."""
    shop = guest().install()
    owner.start()
    shop.switch(GREEN)
    other = NginxGuest(Config.model_validate(shop.config.model_dump(mode="json", exclude_defaults=True)))
    assert other.installed() == shop.nginx.installed() == other.intended_revision()
    assert other.committed().services["shop"] == shop.intent.services["shop"]
