"""Switches by map, as clients see them."""

import threading

import pytest

from lbswitch.core.model import Color, Route, ServiceIntent
from tests.balancers.haproxy.managed import ask, key
from tests.support.load import Load
from tests.support.wait import wait_until

BLUE, GREEN = Route(Color.BLUE), Route(Color.GREEN)


def test_the_next_request_goes_to_the_new_color(shop):
    """When commit returns, the very next request is answered by the new color; and back."""
    for color in (GREEN, BLUE, GREEN, BLUE):
        shop.move(shop=color)
        assert shop.app() == color.live


def test_a_connection_that_is_kept_alive_follows(shop):
    """A client that keeps its connection open is answered by the new color on it."""
    connection = shop.connection()
    assert ask(connection, "/", {}).getheader("X-App") == "blue"
    first = connection.sock
    shop.move(shop=GREEN)
    assert ask(connection, "/", {}).getheader("X-App") == "green"
    assert connection.sock is first
    connection.close()


def test_no_request_is_lost_by_switches_under_load(shop):
    """Switching back and forth under load loses no request, and each color answers only in its time."""
    load = Load("127.0.0.1", shop.ports["shop"], rate=300).start()
    try:
        for color in (GREEN, BLUE, GREEN):
            before = load.report().answered
            shop.move(shop=color)
            load.mark(str(color))
            wait_until(lambda before=before: load.report().answered > before + 50, "load goes on")
        report = load.stop()
    finally:
        load.close()
    assert report.lost == 0, str(report)
    assert report.answered_by("green") > 0


def test_all_services_move_at_one_instant(make, service):
    """A commit of several services is seen for all of them or for none, by whoever asks meanwhile."""
    names = [f"s{number}" for number in range(20)]
    managed = make({name: service() for name in names}).serve()
    torn, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            last = managed.haproxy.observe("s19").generation  # asked first, so it may never be ahead
            first = managed.haproxy.observe("s0").generation
            if first < last:
                torn.append((first, last))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(30):
        managed.move(**dict.fromkeys(names, GREEN if number % 2 else BLUE))
    stop.set()
    watcher.join()
    assert torn == []


def test_one_service_moves_alone(make, service):
    """The others stay on their color and generation."""
    managed = make({"shop": service(), "my-cart": service()}).serve()
    managed.move(my_cart=GREEN)
    assert (managed.app("shop"), managed.app("my-cart")) == ("blue", "green")
    assert managed.haproxy.observe("shop").generation == 1
    assert managed.haproxy.observe("my-cart").generation == 2


def test_a_worker_that_still_drains_follows(shop):
    """A keep-alive connection that a worker from before a reload holds follows the switch as well."""
    held = shop.connection()
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    old = shop.processes().current[0]
    first = held.sock
    shop.haproxy.reload()
    assert shop.processes().draining == (old,)  # it keeps the idle connection
    shop.move(shop=GREEN)
    held.request("GET", "/")
    assert held.sock is first
    assert held.getresponse().getheader("X-App") == "green"
    held.close()


def test_the_maps_of_all_workers_and_of_the_disk_are_the_same(make, service):
    """`show map` of the current and of a draining worker, and the files, say the same after a commit."""
    managed = make({"shop": service(), "cart": service()}).serve()
    held = managed.connection()
    ask(held, "/", {})
    managed.haproxy.reload()
    managed.move(shop=Route(Color.BLUE, 30), cart=GREEN)
    processes = managed.processes()
    assert len(processes.workers) == 2
    for name in ("live.map", "weights.map"):
        on_disk = sorted((managed.directory / name).read_text().splitlines())
        for worker in processes.workers:
            answer = managed.haproxy._runtime.ask(worker, f"show map {managed.directory / name}")
            assert sorted(" ".join(line.split()[1:]) for line in answer.splitlines() if line) == on_disk
    held.close()


def test_switching_by_reload(make, service):
    """`switching: reload` writes the color into the configuration, and loses no request either."""
    managed = make({"shop": service(switching="reload"), "cart": service()}).serve()
    load = Load("127.0.0.1", managed.ports["shop"], rate=300).start()
    try:
        for route in (GREEN, BLUE, Route(Color.BLUE, 40), GREEN):
            before = load.report().answered
            managed.intent = managed.after(shop=route)
            rendered = managed.haproxy.render(managed.intent)
            assert rendered.revision != managed.haproxy.installed()
            managed.haproxy.check(rendered)
            managed.haproxy.install(rendered)
            managed.haproxy.reload()
            managed.haproxy.commit(managed.intent, ["shop"])
            wait_until(lambda: managed.shows(managed.haproxy.observe("shop"), "shop"), f"{route} is seen")
            wait_until(lambda before=before: load.report().answered > before + 30, "load goes on")
        report = load.stop()
    finally:
        load.close()
    assert report.lost == 0, str(report)
    assert managed.app() == "green"
    assert managed.adapter().committed().services == managed.intent.services


def test_a_restart_without_the_agent_comes_back_on_the_live_color(shop):
    """Maps on disk are what HAProxy starts from: color, generation and weight."""
    shop.move(shop=GREEN)
    shop.stop()
    later = shop.adapter()
    later.start()
    assert shop.app() == "green"
    shop.move(shop=Route(Color.GREEN, 60))
    shop.stop()
    later.start()
    seen = later.observe("shop")
    assert (seen.generation, seen.share_green) == (3, 60)


def test_commit_works_with_haproxy_stopped(shop):
    """Then only the disk changes, and the next start serves it."""
    shop.stop()
    shop.intent = shop.after(shop=GREEN)
    shop.haproxy.commit(shop.intent, ["shop"])
    shop.haproxy.start()
    assert shop.app() == "green"
    assert shop.haproxy.committed() == shop.intent


def test_commit_is_idempotent_and_mends_a_worker(shop):
    """The same commit again changes nothing, and brings a worker that was changed by hand back to the intent."""
    shop.move(shop=GREEN)
    worker = shop.processes().current[0]
    shop.haproxy._runtime.tell(worker, [f"set map {shop.directory / 'live.map'} shop blue"])
    assert shop.app() == "blue"
    shop.haproxy.commit(shop.intent, [])
    shop.haproxy.commit(shop.intent, [])
    assert shop.app() == "green"


@pytest.mark.parametrize("applied", ["live.map", "live.map weights.map"])
@pytest.mark.parametrize("to_end", [True, False])
def test_a_crash_within_a_commit_is_mended_by_the_next(shop, applied, to_end):
    """With one or both files changed and no worker told, committing the old or the new intent makes all agree."""
    before, after = shop.intent, shop.after(shop=Route(Color.BLUE, 50))
    shop.haproxy.commit(after, ["shop"])
    changed = {name: (shop.directory / name).read_text() for name in applied.split()}
    shop.haproxy.commit(before, ["shop"])
    for name, text in changed.items():
        (shop.directory / name).write_text(text)
        (shop.directory / f".{name}.new").write_text("half")
        (shop.directory / f".{name}.old").write_text("left behind")
    shop.intent = after if to_end else before
    later = shop.adapter()
    later.commit(shop.intent, ["shop"])
    assert later.committed().services["shop"].route == shop.intent.services["shop"].route
    for _ in range(2):
        assert shop.shows(later.observe("shop"), "shop")
        later.reload()


def test_committed_reads_back_what_was_committed(make, service):
    """Routes, weights and generations; None before the first commit."""
    managed = make({"a": service(), "b": service(), "c": service()})
    assert managed.haproxy.committed() is None
    intent = managed.intent.with_services(
        {"b": ServiceIntent(Route(Color.GREEN, 30), 7, weighted=True), "c": ServiceIntent(GREEN, 9)}
    )
    managed.haproxy.commit(intent, ["b", "c"])
    assert managed.adapter().committed() == intent


def test_a_service_that_is_not_in_the_maps_yet_goes_to_its_initial_color(make, service):
    """A worker that reads a new configuration before the maps know the service does not fail its requests."""
    managed = make({"shop": service(), "cart": service(initial="green")})
    rendered = managed.haproxy.render(managed.intent)
    managed.haproxy.install(rendered)
    only_shop = managed.intent.services["shop"]
    managed.haproxy.commit(type(managed.intent)({"shop": only_shop}, 1), ["shop"])
    managed.haproxy.start()
    assert managed.app("cart") == "green"


def test_ejected_servers_of_an_intent_are_left_out_by_its_commit(make, blue, green):
    """After a reconfiguration the new adapter knows the ejected servers from the intent alone."""
    pool = {"servers": [blue.address, green.address]}
    managed = make({"shop": {"blue": pool, "green": pool}}).serve()
    later = managed.adapter()
    later.commit(managed.intent.with_ejected(frozenset([key("shop", "blue", blue.address)])), [])
    assert {managed.app() for _ in range(6)} == {"green"}


def test_a_key_that_somebody_removed_comes_back(shop):
    """A worker that can't be told the two values that change is given the whole map."""
    shop.move(shop=GREEN)
    shop.move(shop=BLUE)
    runtime, (worker,) = shop.haproxy._runtime, shop.processes().current
    runtime.tell(worker, [f"del map {shop.haproxy._files.live} shop"])
    shop.move(shop=GREEN)
    assert shop.app() == "green"
    shop.move(shop=BLUE)
    assert shop.app() == "blue"


def test_a_worker_of_a_reload_in_between_follows(shop):
    """Workers that nobody knew when the last commit ended get the next one, too; and those that they replaced."""
    shop.move(shop=GREEN)
    held = shop.connection()
    ask(held, "/", {})
    shop.haproxy.reload()
    shop.move(shop=BLUE)
    assert shop.app() == "blue"
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    held.close()


@pytest.mark.parametrize("touched", [False, True])
def test_maps_that_were_written_ahead(shop, touched):
    """They are used as they lie there, unless somebody has touched them."""
    shop.move(shop=GREEN)
    after = shop.after(shop=BLUE)
    shop.haproxy.prepare_ahead(after)
    ahead = shop.haproxy._files.live.with_name(".live.map.new")
    assert "shop blue" in ahead.read_text()
    if touched:
        ahead.write_text("shop yellow\n")
    inode = ahead.stat().st_ino
    shop.haproxy.commit(after, ["shop"])
    assert shop.app() == "blue"
    live = shop.haproxy._files.live
    assert touched or live.stat().st_ino == inode
    assert "yellow" not in live.read_text()
