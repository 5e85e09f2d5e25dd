"""Whatever goes wrong in a commit, everything serves what it served before: disk, current and draining workers."""

import contextlib
import errno
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.errors import CommitFailed
from tests.balancers.haproxy.managed import Managed, ask, open_files

GREEN = Route(Color.GREEN)


def assert_as_before(managed: Managed, files: list[str]) -> None:
    """Traffic, answers, maps on disk and the directory itself are as they were; and the next commit works."""
    assert managed.app() == "blue"
    assert managed.shows(managed.haproxy.observe("shop"), "shop")
    assert managed.haproxy.committed() == managed.intent
    assert open_files(managed.directory) == files
    managed.move(shop=GREEN)
    assert managed.app() == "green"


class Relay:
    """Stands before the master's socket and cuts the connection at every command that holds `word`, for some time."""

    def __init__(self, path: Path, word: bytes, times: int) -> None:
        self.path, self.word, self.times = path, word, times
        self.behind = path.with_name("behind.sock")

    def __enter__(self) -> "Relay":
        self.path.rename(self.behind)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.behind.rename(self.path)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        request = _read(client)
        cut = self.word in request and self.times > 0
        if cut:
            self.times -= 1
            return
        with socket.socket(socket.AF_UNIX) as master:
            master.connect(str(self.behind))
            master.sendall(request)
            master.shutdown(socket.SHUT_WR)
            client.sendall(_read(master))


def _read(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def cut(managed: Managed, word: bytes, times: int = 1) -> Relay:
    return Relay(managed.directory / "master.sock", word, times)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """This process can't write more than a few bytes into a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("word", [b"show proc", b"prepare map", b"add map", b"commit map"])
def test_a_socket_that_closes_half_way(shop, word):
    """At whichever command the Runtime API goes away, the commit fails and nothing has moved."""
    files = open_files(shop.directory)
    with (
        cut(shop, word),
        pytest.raises(CommitFailed, match="shop did not move, the maps serve what they served before"),
    ):
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    assert_as_before(shop, files)


def test_a_worker_that_was_moved_already_is_put_back(shop):
    """With two workers, the second one's failure takes the first one back as well."""
    held = shop.connection()
    ask(held, "/", {})
    shop.haproxy.reload()
    draining = shop.processes().draining[0]
    files = open_files(shop.directory)
    with cut(shop, f"@!{draining} commit map".encode()), pytest.raises(CommitFailed, match="did not move"):
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    held.close()
    assert_as_before(shop, files)


def test_when_the_way_back_fails_too_the_message_says_so(shop):
    """Nothing is promised that does not hold; the disk is back, and the next commit mends the rest."""
    message = r"nor all put back .* restart of HAProxy serves what is on disk"
    with cut(shop, b"commit map", times=2), pytest.raises(CommitFailed, match=message):
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    assert shop.haproxy.committed() == shop.intent
    shop.move(shop=GREEN)


def test_a_master_without_its_socket(shop):
    """Somebody removed the socket: the commit fails and names it."""
    files = open_files(shop.directory)
    master = shop.directory / "master.sock"
    master.rename(shop.directory / "hidden.sock")
    with pytest.raises(CommitFailed, match=r"master\.sock: No such file"):
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    (shop.directory / "hidden.sock").rename(master)
    assert_as_before(shop, files)


def test_a_hung_worker(shop):
    """The current worker hangs: nobody moves."""
    files = open_files(shop.directory)
    current = shop.processes().current[0]
    os.kill(current, signal.SIGSTOP)
    try:
        with pytest.raises(CommitFailed, match="no answer"):
            shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    finally:
        os.kill(current, signal.SIGCONT)
    assert_as_before(shop, files)


def test_a_hung_worker_that_drains_stops_nobody(shop):
    """A worker from before a reload hangs: the others move, it is named, and it follows when it wakes up."""
    held = shop.connection()
    ask(held, "/", {})
    shop.haproxy.reload()
    draining = shop.processes().draining[0]
    os.kill(draining, signal.SIGSTOP)
    try:
        shop.move(shop=GREEN)
        assert shop.app() == "green"
        assert f"worker {draining}" in shop.haproxy.warnings()[-1]
    finally:
        os.kill(draining, signal.SIGCONT)
    shop.move(shop=GREEN)
    assert not any("hangs" in warning for warning in shop.haproxy.warnings())
    assert ask(held, "/", {}).headers["X-App"] == "green"
    held.close()


def test_a_full_disk(shop):
    """The new maps can't be written: nothing moves, and nothing is left lying about."""
    files = open_files(shop.directory)
    with full_disk(), pytest.raises(CommitFailed) as failed:
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    assert os.strerror(errno.EFBIG) in str(failed.value)
    assert_as_before(shop, files)


def test_a_failed_split_and_a_failed_end_of_a_split(shop):
    """Weights come and go with the maps as one."""
    files = open_files(shop.directory)
    with Relay(shop.directory / "master.sock", b"commit map", times=1), pytest.raises(CommitFailed):
        shop.haproxy.commit(shop.after(shop=Route(Color.BLUE, 50)), ["shop"])
    assert shop.shows(shop.haproxy.observe("shop"), "shop")
    shop.move(shop=Route(Color.BLUE, 50))
    with Relay(shop.directory / "master.sock", b"commit map", times=1), pytest.raises(CommitFailed):
        shop.haproxy.commit(shop.after(shop=GREEN), ["shop"])
    assert shop.shows(shop.haproxy.observe("shop"), "shop")
    shop.move(shop=Route(Color.BLUE))
    assert_as_before(shop, files)


def test_a_thousand_services_go_through_in_pieces(make, service):
    """Maps larger than HAProxy's buffer are handed over completely, or not at all."""
    managed = make({"shop": service()}).serve()
    files = open_files(managed.directory)
    many = {f"service-with-a-long-name-{number:04}": ServiceIntent(GREEN, 5) for number in range(1000)}
    intent = Intent({**managed.intent.services, **many}, 5)
    with Relay(managed.directory / "master.sock", b"-0900.generation 5", times=1), pytest.raises(CommitFailed):
        managed.haproxy.commit(intent, many)
    assert managed.shows(managed.haproxy.observe("shop"), "shop")
    assert open_files(managed.directory) == files
    managed.haproxy.commit(intent, many)
    live = managed.directory / "live.map"
    worker = managed.processes().current[0]
    answer = managed.haproxy._runtime.ask(worker, f"show map {live}")
    assert sorted(" ".join(line.split()[1:]) for line in answer.splitlines() if line) == sorted(
        live.read_text().splitlines()
    )
