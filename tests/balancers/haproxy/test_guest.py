"""lbswitch in somebody else's HAProxy: it switches, and nothing of the owner's changes."""

import json
import socket
import threading
from pathlib import Path

import pytest

from lbswitch.balancers.haproxy_guest_rendering import GuestRendering
from lbswitch.balancers.haproxy_maps import MapFiles
from lbswitch.balancers.haproxy_runtime import Runtime
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Route
from lbswitch.errors import CommitFailed, NotSeen, ReloadFailed, StartFailed
from tests.balancers.haproxy.managed import ask, key
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.wait import wait_until

BLUE, GREEN = Route(Color.BLUE), Route(Color.GREEN)


@pytest.fixture(params=["after", "before", "directory"])
def load_order(request):
    return request.param


# -- switching -----------------------------------------------------------------------------------------------


def test_the_next_request_goes_to_the_new_color(visit, service, load_order):
    """However our file is loaded, with and without the owner's TLS; and the owner's own path goes where it went."""
    guest = visit({"shop": service()}, load=load_order).serve()
    for color in (GREEN, BLUE, GREEN):
        guest.move(shop=color)
        assert guest.app() == color.live
        assert guest.get(tls=True).getheader("X-App") == color.live
        assert guest.app("/theirs") == "theirs"


def test_no_request_is_lost_by_switches_under_load(guest):
    """Switching back and forth, and reloading between, loses no request."""
    load = Load("127.0.0.1", guest.port, rate=300).start()
    try:
        for color in (GREEN, BLUE, GREEN):
            before = load.report().answered
            guest.move(shop=color)
            wait_until(lambda before=before: load.report().answered > before + 50, "load goes on")
            guest.haproxy.reload()
        report = load.stop()
    finally:
        load.close()
    assert report.lost == 0, str(report)
    assert report.answered_by("green") > 0


def test_a_worker_that_still_drains_follows(guest):
    """A connection that a worker from before the owner's reload holds is answered by the new color."""
    held = guest.connection()
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    old, first = guest.processes().current[0], held.sock
    guest.reload_by_owner()
    assert guest.processes().draining == (old,)
    guest.move(shop=GREEN)
    held.request("GET", "/")
    assert held.sock is first
    assert held.getresponse().getheader("X-App") == "green"
    held.close()


def test_the_owner_restarts_and_the_live_color_comes_back(guest):
    """The maps on disk say it."""
    guest.move(shop=GREEN)
    guest.stop()
    guest.haproxy.commit(guest.intent, [])
    guest.start()
    assert guest.app() == "green"
    assert guest.shows("shop")


def test_commit_with_haproxy_down_changes_the_disk(guest):
    """The owner's next start serves it."""
    guest.stop()
    guest.intent = guest.after(shop=GREEN)
    guest.haproxy.commit(guest.intent, ["shop"])
    assert not guest.haproxy.is_running()
    guest.start()
    assert guest.app() == "green"


@pytest.mark.parametrize("sticky", ["none", "address", "cookie:sid", "header:x-user"])
def test_weights(visit, service, sticky):
    """With the owner's few lines the traffic splits, moves without a reload, and sticks as configured."""
    guest = visit({"shop": service(weights={"sticky": sticky})}).serve()
    worker = guest.processes().current
    guest.move(shop=Route(Color.BLUE, 50))
    headers = [{"Cookie": f"sid={n}", "X-User": str(n)} for n in range(60)]
    seen = [guest.app(**{name.replace("-", "_"): value for name, value in each.items()}) for each in headers]
    assert set(seen) == ({"blue", "green"} if sticky != "address" else set(seen[:1]))
    if sticky != "none":
        assert seen == [guest.app(**{n.replace("-", "_"): v for n, v in each.items()}) for each in headers]
    guest.move(shop=GREEN)
    assert {guest.app() for _ in range(10)} == {"green"}
    assert guest.processes().current == worker


def test_a_split_that_the_owner_never_allowed_for_is_not_seen(visit, service):
    """The lines without weights answer with the share that they give, so that nobody believes in a split."""
    guest = visit({"shop": service(weights={})})
    guest.write_owner([f"use_backend lbswitch_shop_%[str(shop),map({guest.output}/live.map,blue)]"])
    guest.serve()
    guest.intent = guest.after(shop=Route(Color.BLUE, 50))
    guest.haproxy.commit(guest.intent, ["shop"])
    assert guest.haproxy.observe("shop").share_green == 0
    assert not guest.shows("shop")


def test_several_services_in_one_frontend(visit, service):
    """Names or paths tell them apart; each moves alone, and with `verify.host` and `prefix` each is asked alone."""
    guest = visit(
        {
            "shop": service(verify={"host": "shop.example"}),
            "my-cart": service(verify={"prefix": "/cart"}, weights={}),
        }
    )
    guest.write_owner(
        [
            *guest.lines("shop", " if { req.hdr(host) -i shop.example }"),
            *guest.lines("my-cart", " if { path_beg /cart }"),
        ]
    )
    guest.serve()
    guest.move(my_cart=GREEN)
    assert guest.app("/", Host="shop.example") == "blue"
    assert guest.app("/cart/1") == "green"
    assert guest.app("/elsewhere") == "theirs"


def test_a_tls_listener_of_the_owner(visit, service):
    """`verify.tls` asks through it."""
    guest = visit({"shop": service(verify={"tls": True, "host": "shop.example"})})
    guest.document["services"]["shop"]["bind"] = f"127.0.0.1:{guest.tls_port}"
    guest.haproxy = guest.adapter()
    guest.serve()
    guest.move(shop=GREEN)


def test_mode_tcp(visit, service):
    """A TCP frontend of the owner's; its maps are asked on a socket of ours."""
    port = free_port()
    guest = visit({"db": service(mode="tcp", weights={}, bind=f"127.0.0.1:{port}")}, more="@@db@@")
    lines = "\n".join(f"\t{line}" for line in guest.lines("db"))
    text = guest.owner.read_text().replace("@@db@@", f"frontend db\n\tmode tcp\n\tbind 127.0.0.1:{port}\n{lines}")
    guest.owner.write_text(text)
    guest.serve()
    for route in (GREEN, Route(Color.BLUE, 40), BLUE, GREEN):
        guest.move(db=route)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"green" in client.makefile("rb").read()
    assert guest.haproxy.why_not_weighted("db") is None


def test_servers_are_left_out(visit, blue, green, theirs):
    """In every worker and after a reload; the owner's own server in maintenance stays there."""
    pool = {"servers": [blue.address, green.address]}
    guest = visit({"shop": {"blue": pool, "green": pool}}).serve()
    runtime = Runtime(Path(guest.document["balancer"]["master_socket"]))
    worker = guest.processes().current[0]
    runtime.tell(worker, ["set server theirs/a state maint"])
    guest.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    assert {guest.app() for _ in range(6)} == {"green"}
    guest.haproxy.eject(frozenset())
    assert {guest.app() for _ in range(6)} == {"blue", "green"}
    assert guest.get("/theirs").status == 503
    guest.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    guest.haproxy.reload()
    assert {guest.app() for _ in range(6)} == {"green"}


# -- nothing of the owner's changes --------------------------------------------------------------------------


def test_the_owners_settings_and_ours_don_t_meet(visit, service, load_order):
    """Defaults of the owner that would change our pools don't, and their own sections keep them all."""
    defaults = "\tdefault-server check inter 100ms ssl verify none\n\tbalance source\n\tretries 7\n\toption httpclose"
    guest = visit({"shop": service()}, load=load_order, defaults=defaults)
    text = guest.owner.read_text().replace(" check\n", " check no-ssl\n")
    guest.owner.write_text(text)
    guest.serve()
    assert guest.app() == "blue"
    assert guest.app("/theirs") == "theirs"
    guest.move(shop=GREEN)
    worker = guest.processes().current[0]
    runtime = Runtime(Path(guest.document["balancer"]["master_socket"]))
    table = runtime.ask(worker, "show stat -1 2 -1").splitlines()
    rows = {
        row.split(",")[0]: dict(zip(table[0].lstrip("# ").split(","), row.split(","), strict=False)) for row in table
    }
    assert rows["theirs"]["algo"] == "source"
    assert rows["lbswitch_shop_blue"]["algo"] == "roundrobin"


def test_what_the_owner_has_set_is_the_same_with_and_without_us(visit, service):
    """The running settings of the owner's own sections don't depend on our file, or where it stands."""
    shown = []
    for order in ("never", "after", "before", "directory"):
        guest = visit({"shop": service()}, load=order)
        guest.write_owner([])
        guest.serve()
        runtime = Runtime(Path(guest.document["balancer"]["master_socket"]))
        worker = guest.processes().current[0]
        table = [row.split(",") for row in runtime.ask(worker, "show stat -1 3 -1").splitlines()[1:] if row]
        names = runtime.ask(worker, "show stat -1 3 -1").splitlines()[0].lstrip("# ").split(",")
        fixed = ("pxname", "svname", "slim", "mode", "algo", "qlimit")
        shown.append(
            [
                [row[names.index(name)] for name in fixed]
                for row in table
                if not row[0].startswith("lbswitch_") and row[0] != "GLOBAL"
            ]
        )
        assert guest.app("/anything") == "theirs"
    assert shown[0] == shown[1] == shown[2] == shown[3]


def test_the_state_is_told_to_this_machine_alone(guest):
    """Who comes from another address gets a 404, and applications are not asked."""
    with socket.create_connection(("127.0.0.1", guest.port), timeout=10, source_address=("127.0.0.2", 0)) as client:
        client.sendall(b"GET /.lbswitch/state/shop HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 404")
    assert guest.get("/.lbswitch/state/shop").status == 200


def test_questions_are_not_in_the_owners_log(guest):
    """What lbswitch asks every few seconds would fill it."""
    log = guest.directory / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(log))
        listener.settimeout(10)
        guest.haproxy.observe("shop")
        guest.get("/marked")
        logged = listener.recv(65536)
        while b"/marked" not in logged:
            logged += listener.recv(65536)
    assert b"lbswitch/state" not in logged


def test_x_forwarded_for_is_the_owners(visit, service, load_order):
    """Their frontend has `option forwardfor`, so servers get it, once."""
    guest = visit({"shop": service()}, load=load_order).serve()
    headers = json.loads(guest.get("/headers").body)
    assert headers["x-forwarded-for"] == "127.0.0.1"


def test_a_post_is_never_sent_twice(visit, service):
    """A server that ends the connection without an answer gets a GET again, and a POST once."""
    got: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                data = client.recv(65536)
                got.append(data.split(b" ", 1)[0])

    thread = threading.Thread(target=hang_up)
    thread.start()
    address = f"127.0.0.1:{server.getsockname()[1]}"
    pool = {"servers": [address]}
    guest = visit({"shop": {"blue": pool, "green": pool}}).serve()
    try:
        for method in ("POST", "GET"):
            connection = guest.connection()
            connection.request(method, "/", b"x" if method == "POST" else None)
            assert connection.getresponse().status in (502, 503)
            connection.close()
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
    assert got.count(b"POST") == 1
    assert got.count(b"GET") == 2


# -- the process ---------------------------------------------------------------------------------------------


def test_reload_is_seen(guest):
    """A new worker runs what is installed."""
    old = guest.processes().current
    guest.haproxy.reload()
    assert not set(old) & set(guest.processes().current)


def test_a_reload_that_the_owners_files_make_fail_says_so(guest):
    """The old worker goes on, the message has HAProxy's words and the owner's file."""
    guest.owner.write_text(guest.owner.read_text() + "\nbackend broken\n        nonsense\n")
    with pytest.raises(ReloadFailed) as failed:
        guest.haproxy.reload()
    assert f"{guest.owner}:" in str(failed.value)
    assert "nonsense" in str(failed.value)
    assert guest.app() == "blue"
    guest.move(shop=GREEN)


def test_start_and_stop_are_the_owners(guest):
    """Refused, with how the owner does it."""
    for act in (guest.haproxy.start, guest.haproxy.stop):
        with pytest.raises(StartFailed, match="somebody else's"):
            act()
    assert guest.app() == "blue"
    assert "owner's to start" in (guest.haproxy.why_not_started() or "")


def test_is_running(guest):
    """As long as the owner runs it."""
    assert guest.haproxy.is_running()
    guest.stop()
    assert not guest.haproxy.is_running()


def test_version(guest):
    """Of what runs; and of the program when nothing does."""
    running = guest.haproxy.version()
    assert running.startswith(("2.", "3."))
    guest.stop()
    guest.document["balancer"]["binary"] = guest.binary
    assert guest.adapter().version() == running


def test_a_missing_master_socket_is_said_with_its_mend(guest):
    """Nothing moves, and the line for -S is in the message."""
    guest.document["balancer"]["master_socket"] = str(guest.directory / "elsewhere.sock")
    later = guest.adapter()
    with pytest.raises(CommitFailed, match="did not move") as failed:
        later.commit(guest.after(shop=GREEN), ["shop"])
    assert f"-S {guest.directory}/elsewhere.sock" in str(failed.value)
    assert "EXTRAOPTS" in str(failed.value)
    assert guest.app() == "blue"
    assert guest.haproxy.committed() == guest.intent
    assert any("no switch can reach HAProxy" in warning for warning in later.warnings())
    with pytest.raises(ReloadFailed, match="EXTRAOPTS"):
        later.reload()


def test_a_killed_worker_is_replaced_and_serves_the_live_color(guest):
    """HAProxy's master ends with its worker, and the owner starts it again."""
    guest.move(shop=GREEN)
    guest.stop()
    guest.start()
    assert guest.app() == "green"


def test_without_the_owners_line_nothing_is_seen(visit, service):
    """The message says what to look at."""
    guest = visit({"shop": service()})
    guest.write_owner([])
    guest.serve()
    with pytest.raises(NotSeen, match="use_backend"):
        guest.haproxy.observe("shop")


def test_pools_and_connections(guest):
    """One server each; a held connection is counted."""
    pools = guest.haproxy.pools(guest.haproxy.render(guest.intent))
    assert pools == {"lbswitch_shop_blue": 1, "lbswitch_shop_green": 1}
    with socket.create_connection(("127.0.0.1", guest.port), timeout=10):
        wait_until(lambda: (guest.haproxy.connections(["shop"])["shop"] or 0) >= 1, "the connection is counted")


def test_a_map_changed_by_hand_is_a_difference_and_repaired(guest):
    """`set map` behind our back is seen in the worker and put right."""
    runtime = Runtime(Path(guest.document["balancer"]["master_socket"]))
    runtime.tell(guest.processes().current[0], [f"set map {guest.output}/live.map shop green"])
    assert guest.app() == "green"
    assert any(
        found.where == "running" and found.service == "shop" for found in guest.haproxy.differences(guest.intent)
    )
    guest.haproxy.repair(guest.intent, None)
    assert guest.app() == "blue"
    assert guest.haproxy.differences(guest.intent) == []


def test_sigusr2_of_the_owner_changes_nothing_for_us(guest):
    """A reload behind our back: the new worker reads the maps from disk."""
    guest.move(shop=GREEN)
    guest.reload_by_owner()
    assert guest.app() == "green"
    guest.move(shop=BLUE)


def test_a_reload_of_the_owner_does_not_bring_back_a_server_that_is_left_out(visit, blue, green):
    """New workers know nothing of it, so they are told at the next look."""
    pool = {"servers": [blue.address, green.address]}
    guest = visit({"shop": {"blue": pool, "green": pool}}).serve()
    guest.haproxy.eject(frozenset([key("shop", "blue", blue.address)]))
    guest.reload_by_owner()
    assert {guest.app() for _ in range(6)} == {"blue", "green"}
    guest.haproxy.remind()
    assert {guest.app() for _ in range(6)} == {"green"}
    runtime = Runtime(Path(guest.document["balancer"]["master_socket"]))
    runtime.tell(guest.processes().current[0], ["set server lbswitch_shop_blue/s1 state ready"])
    guest.haproxy.remind()
    assert {guest.app() for _ in range(6)} == {"blue", "green"}, (
        "what somebody did by hand is drift, and not overridden"
    )


def test_who_may_ask_beside_this_machine(guest):
    """The gateway of a container's network, which questions of this host come from."""
    config = Config.model_validate(guest.document)
    files = MapFiles(guest.output)
    rendering = GuestRendering(config, files, guest.output / "state.sock", lambda: ["127.0.0.2"])
    guest.haproxy.install(rendering.render())
    guest.haproxy.reload()
    for source, status in (("127.0.0.2", 200), ("127.0.0.3", 404), ("127.0.0.1", 200)):
        with socket.create_connection(("127.0.0.1", guest.port), timeout=10, source_address=(source, 0)) as client:
            client.sendall(b"GET /.lbswitch/state/shop HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().startswith(f"HTTP/1.1 {status}".encode()), source
