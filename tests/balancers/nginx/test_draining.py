"""What nginx's workers still have open to the servers of a color, and how it is ended: managed and as a guest."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lbswitch.balancers.nginx_draining import NginxDraining
from lbswitch.balancers.nginx_workers import workers
from lbswitch.balancers.socket_tables import SocketTables, open_sockets, remote_keys
from lbswitch.core.config import Config
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import BalancerError
from lbswitch.ports import Held
from tests.balancers.nginx.conftest import guest_service
from tests.balancers.nginx.owner import Guest
from tests.balancers.nginx.servers import Server
from tests.balancers.nginx.site import BLUE, GREEN, Site
from tests.balancers.streams import Idle, Stream, WebSocket
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

_ROOT = Path(__file__).resolve().parents[3]
SHOP_BLUE, SHOP_GREEN = PoolKey("shop", BLUE), PoolKey("shop", GREEN)


class Scene:
    """An nginx with the service `shop`, ours or somebody else's."""

    def __init__(self, made: Site | Guest) -> None:
        self._made = made
        self.is_ours = isinstance(made, Site)
        self.nginx = made.nginx
        self.port = parse_endpoint(made.config.services["shop"].bind).port

    @property
    def draining(self) -> NginxDraining:
        return self.nginx.draining

    def switch(self, color: Color) -> None:
        if isinstance(self._made, Site):
            self._made.switch(shop=color)
        else:
            self._made.switch(color)

    def reload(self) -> None:
        """Returns when only new workers take connections."""
        workers = {one.pid for one in self.held(SHOP_BLUE)}
        self.nginx.reload()
        wait_until(lambda: workers <= self.old(), "those that carry something are told to end")

    def old(self) -> set[int | None]:
        return {worker.pid for worker in self.draining.old_workers()}

    def held(self, pool: PoolKey) -> tuple[Held, ...] | None:
        return self.draining.held([pool])[pool]

    def count(self, pool: PoolKey) -> int:
        held = self.held(pool)
        assert held is not None
        return sum(one.count for one in held)

    def has(self, pool: PoolKey, count: int) -> None:
        """Idle connections to servers stay for some seconds, so less may come late."""
        wait_until(lambda: self.count(pool) == count, f"{count} connections to {pool}")


@pytest.fixture(params=["managed", "guest"])
def scene(request, site, service, owner, guest, blue, green) -> Callable[..., Scene]:
    """Starts an nginx of either kind; its service may have other pools."""

    def make(**settings: Any) -> Scene:
        if request.param == "managed":
            return Scene(site({"shop": service(**settings)}))
        made = guest({"shop": {**guest_service(owner, blue, green), **settings}}).install()
        owner.start()
        return Scene(made)

    return make


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def closable(scene: Scene) -> None:
    """Skips without the right to it; workers have their title a moment after they are there."""
    wait_until(lambda: workers(scene.draining._master()), "nginx has workers")
    why = scene.draining.why_not_closed()
    if why is not None:
        pytest.skip(why)


def test_connections_by_worker(scene, clients):
    """Each pool's connections count for the workers that have them, and for no other pool."""
    shop = scene()
    assert shop.draining.held([SHOP_BLUE, SHOP_GREEN]) == {SHOP_BLUE: (), SHOP_GREEN: ()}
    for _ in range(3):
        clients.enter_context(Stream(shop.port))
    shop.switch(GREEN)
    clients.enter_context(Stream(shop.port))
    shop.has(SHOP_GREEN, 1)
    held = shop.held(SHOP_BLUE)
    assert sum(one.count for one in held) == 3
    assert all(one.pid is not None and not one.is_old for one in held)
    clients.close()
    shop.has(SHOP_BLUE, 0)
    shop.has(SHOP_GREEN, 0)


def test_workers_from_before_a_reload(scene, clients):
    """What they hold is told apart; they are listed with what they still carry, until they end."""
    shop = scene()
    assert shop.draining.old_workers() == ()
    before = clients.enter_context(Stream(shop.port))
    shop.reload()
    (held,) = shop.held(SHOP_BLUE)
    (old,) = wait_until(lambda: one_of(shop.draining.old_workers()), "only the worker with the stream is left")
    assert (held.is_old, held.count, held.pid) == (True, 1, old.pid)
    assert old.connections == 2  # the client's, and the one to the server
    assert old.age_s >= 0
    wait_until(lambda: shop.draining.old_workers()[0].age_s > old.age_s, "it grows older")
    clients.enter_context(Stream(shop.port))
    shop.has(SHOP_BLUE, 2)
    assert sorted((one.is_old, one.count) for one in shop.held(SHOP_BLUE)) == [(False, 1), (True, 1)]
    before.close()
    wait_until(lambda: not shop.draining.old_workers(), "the old worker ends")
    shop.has(SHOP_BLUE, 1)


def one_of(found: tuple) -> tuple:
    return found if len(found) == 1 else ()


def test_exactly_the_bad_color_is_closed(scene, clients):
    """At most so many at a time, old workers' first; the good color and idle clients notice nothing."""
    shop = scene()
    closable(shop)
    old = clients.enter_context(Stream(shop.port))
    shop.reload()
    kinds = [Stream, WebSocket] if shop.is_ours else [Stream, Stream]  # the owner's location passes no Upgrade
    new = [clients.enter_context(kind(shop.port)) for kind in kinds]
    shop.switch(GREEN)
    good, idle = clients.enter_context(Stream(shop.port)), clients.enter_context(Idle(shop.port))
    assert (good.color, idle.color()) == ("green", "green")
    shop.has(SHOP_BLUE, 3)

    assert shop.draining.close(SHOP_BLUE, 1) == 1
    assert old.has_ended()
    assert all(client.goes_on() for client in new)
    assert shop.draining.close(SHOP_BLUE, 10) == 2
    assert all(client.has_ended() for client in new)
    shop.has(SHOP_BLUE, 0)
    assert shop.draining.close(SHOP_BLUE, 10) == 0

    assert good.goes_on()
    assert idle.color() == "green"
    assert clients.enter_context(Idle(shop.port)).color() == "green"
    shop.switch(BLUE)
    assert [clients.enter_context(Idle(shop.port)).color() for _ in range(5)] == ["blue"] * 5


def test_nothing_is_closed_of_nothing(scene, clients):
    """`most` is a bound also when it is 0."""
    shop = scene()
    closable(shop)
    stream = clients.enter_context(Stream(shop.port))
    assert shop.draining.close(SHOP_BLUE, 0) == 0
    assert stream.goes_on()


def test_lingering_workers_are_ended(scene, clients):
    """The oldest beyond those that are kept, with all they carry; an owner's are left alone."""
    shop = scene()
    streams = []
    for _ in range(3):
        streams.append(clients.enter_context(Stream(shop.port)))
        shop.reload()
    wait_until(lambda: len(shop.draining.old_workers()) == 3, "three of them are left")
    old = shop.draining.old_workers()
    assert shop.draining.end_old_workers(3) == ()
    ended = shop.draining.end_old_workers(1)
    assert [worker.pid for worker in ended] == ([worker.pid for worker in old[:2]] if shop.is_ours else [])
    gone = streams[: len(ended)]
    assert all(stream.has_ended() for stream in gone)
    assert all(stream.goes_on() for stream in streams[len(ended) :])
    wait_until(lambda: len(shop.draining.old_workers()) == 3 - len(ended), "the others are left")


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_servers_by_name_and_ipv6(scene, clients, host):
    """A name stands for its addresses, of either family."""
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no ::1")
    address = ("127.0.0.1" if host == "localhost" else host, 0)
    with Server("named", address) as server:
        port = server.server_address[1]
        named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        shop = scene(blue={"servers": [named]})
        closable(shop)
        idle = clients.enter_context(Idle(shop.port))  # nginx keeps its connection to the server, too
        assert idle.color() == "named"
        shop.has(SHOP_BLUE, 1)
        assert shop.held(SHOP_BLUE)[0].pid is not None
        assert shop.draining.close(SHOP_BLUE, 5) == 1
        assert idle.color() == "named"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_servers_at_unix_sockets(scene, clients, directory):
    """They are counted at the server's end, so nobody can tell whose they are; they are closed all the same."""
    with Server("unix", directory / "app.sock") as server:
        shop = scene(blue={"servers": [server.address]})
        closable(shop)
        assert clients.enter_context(Idle(shop.port)).color() == "unix"
        wait_until(lambda: shop.held(SHOP_BLUE) == (Held(None, False, 1),), "one connection to the socket")
        assert shop.draining.close(SHOP_BLUE, 5) == 1
        shop.has(SHOP_BLUE, 0)


def test_a_name_that_nobody_knows(scene, green):
    """What it stands for can't be known, so neither can its connections; other pools are counted."""
    shop = scene()
    services = {"shop": {"bind": "127.0.0.1:80", "blue": {"servers": ["nowhere.invalid:80"]}, "green": {"servers": []}}}
    services["shop"]["green"] = {"servers": [green.address]}
    config = Config.model_validate({"balancer": {"kind": "nginx"}, "services": services})
    draining = NginxDraining(config, shop.draining._master, is_ours=True, is_inside=False)
    assert draining.held([SHOP_BLUE, SHOP_GREEN]) == {SHOP_BLUE: None, SHOP_GREEN: ()}
    with pytest.raises(BalancerError, match="can't be looked up"):
        draining.close(SHOP_BLUE, 1)


def test_a_server_of_two_pools(site, service, clients):
    """Its connections count for both, and are closed for neither: they may be the other one's."""
    shop, blog = service(), service()
    both = site({"shop": shop, "blog": blog})
    stream = clients.enter_context(Stream(parse_endpoint(shop["bind"]).port))
    draining, pools = both.nginx.draining, [SHOP_BLUE, PoolKey("blog", BLUE)]
    counts = {pool: sum(one.count for one in held or ()) for pool, held in draining.held(pools).items()}
    assert counts == dict.fromkeys(pools, 1)
    with pytest.raises(BalancerError, match="other pools list shop's blue servers, too"):
        draining.close(SHOP_BLUE, 1)
    assert stream.goes_on()


def test_a_balancer_that_is_down(site, clients):
    """Nothing is held, there are no old workers, and a close says why it did nothing."""
    shop = site()
    clients.enter_context(Stream(shop.connect().port))
    pid = shop.nginx._process.pid()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not shop.nginx.is_running(), "nginx ended")
    wait_until(lambda: shop.nginx.draining.held([SHOP_BLUE]) == {SHOP_BLUE: ()}, "nothing is open")
    assert shop.nginx.draining.old_workers() == ()
    assert shop.nginx.draining.end_old_workers(0) == ()
    with pytest.raises(BalancerError, match="no worker of nginx can be seen from here"):
        shop.nginx.draining.close(SHOP_BLUE, 1)


def test_a_container_that_is_not_seen(site):
    """Nobody knows what it holds; nothing is guessed from this host's own connections."""
    shop = site()
    hidden = NginxDraining(shop.config, lambda: None, is_ours=False, is_inside=True)
    assert hidden.held([SHOP_BLUE]) == {SHOP_BLUE: None}
    assert "no worker of nginx" in hidden.why_not_closed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_rights(site, clients, blue):
    """Connections are counted without the workers, less one's own; closing says which right it needs."""
    shop = site()
    for _ in range(2):
        clients.enter_context(Stream(parse_endpoint(shop.config.services["shop"].bind).port))
    told = as_user([], shop, blue)
    assert told["held"] == [[None, False, 2]]
    assert "give the agent CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in told["why"]
    assert told["why"] in told["error"]
    assert told["old"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_rights_that_it_asks_for_are_enough(site, clients, blue):
    """Not being root, with these two it sees whose connections there are, and ends one."""
    shop = site()
    for _ in range(2):
        clients.enter_context(Stream(parse_endpoint(shop.config.services["shop"].bind).port))
    rights = "-all,+sys_ptrace,+dac_read_search"
    become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", f"--inh-caps={rights}"]
    become.append(f"--ambient-caps={rights}")
    if shutil.which("setpriv") is None or subprocess.run([*become, sys.executable, "-c", ""], check=False).returncode:
        pytest.skip("needs setpriv, and a Python that everybody may run")
    told = as_user(become, shop, blue)
    assert (told["why"], told["error"]) == (None, "closed")
    ((pid, is_old, count),) = told["held"]
    assert pid in {worker.pid for worker in workers(shop.nginx._process.pid())}
    assert (is_old, count) == (False, 1)


def as_user(become: list[str], shop: Site, blue: App) -> dict[str, Any]:
    argv = [*become, sys.executable, "-m", "tests.balancers.nginx.draining_as_user"]
    argv += [str(shop.nginx._process.pid()), blue.address]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    result = subprocess.run(argv, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_may_be_asked_by_many(scene, clients):
    """Several threads that look at once get the same answer."""
    shop = scene()
    for _ in range(4):
        clients.enter_context(Stream(shop.port))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shop.count(SHOP_BLUE), range(20)))
    assert found == [4] * 20


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_where_netlink_may_not_be_asked(clients, host):
    """The tables in /proc say the same."""
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no ::1")
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    server = clients.enter_context(socket.create_server((host, 0), family=family))
    port = server.getsockname()[1]
    client = clients.enter_context(socket.create_connection((host, port)))
    asked, read = SocketTables(), SocketTables()
    read._is_own = False
    found = asked.tcp_to(remote_keys(host, port))
    assert [one.inode for one in found] == [os.fstat(client.fileno()).st_ino]
    assert read.tcp_to(remote_keys(host, port)) == found
    assert found[0].inode in asked.established() & read.established()


def test_connections_of_a_network_of_its_own(clients):
    """A process in another network namespace is looked at with that one's tables."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    port = free_port()
    argv = ["unshare", "--net", sys.executable, "-c", _ALONE, str(port)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    clients.callback(process.wait)
    clients.callback(process.stdin.close)
    clients.callback(process.stdout.close)
    assert process.stdout.readline() == "connected\n"
    (found,) = SocketTables(process.pid).tcp_to(remote_keys("127.0.0.1", port))
    assert found.inode in open_sockets(process.pid)
    assert SocketTables().tcp_to(remote_keys("127.0.0.1", port)) == []


_ALONE = """
import fcntl, socket, struct, sys
made = socket.socket()
fcntl.ioctl(made, 0x8914, struct.pack("16sh14x", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
client = socket.create_connection(server.getsockname())
print("connected", flush=True)
sys.stdin.read()
"""
