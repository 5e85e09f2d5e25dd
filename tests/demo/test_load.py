"""The load client accounts for every request; the promises of the switch tests rest on it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.app import App
from tests.support.load import Load, Report
from tests.support.ports import free_port
from tests.support.wait import wait_until

OK = b"HTTP/1.1 200 OK\r\nX-App: raw\r\nContent-Length: 2\r\n\r\nok"


def _read_request(connection: socket.socket) -> bool:
    """Whether another request came."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            return False
        data += piece
    return True


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that hands each connection to `serve`, one thread each, and closes it afterwards."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                serve(connection)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=one, args=(connection,))
            threads.append(thread)
            thread.start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def run_until(load: Load, enough: Callable[[Report], bool]) -> Report:
    """Send until the report shows enough, then stop and check that every request is accounted for."""
    with load:
        wait_until(lambda: enough(load.report()), "enough requests")
        report = load.stop()
    assert report.in_flight == 0
    assert report.sent == report.answered + report.lost
    return report


def test_every_answer_is_counted_under_the_application_that_gave_it():
    """Keep-alive and single-request connections alike are answered, and nothing is lost on a healthy server."""
    with App("blue", "v7") as app:
        report = run_until(Load("127.0.0.1", app.port, rate=400), lambda r: r.answered >= 200)
    assert report.lost == 0
    assert report.answered_by("blue") == report.answered
    assert report.phases[0].answers[0].version == "v7"
    assert report.opened > report.answered / 3, "half of the requests get a connection of their own"


def test_an_idle_connection_that_the_server_closed_is_opened_again_and_loses_nothing():
    """The server ends each keep-alive connection with its first answer, without having announced it."""

    def serve(connection: socket.socket) -> None:
        if _read_request(connection):
            connection.send(OK, socket.MSG_MORE)  # held back until close(): answer and end arrive together

    with raw_server(serve) as port:
        load = Load("127.0.0.1", port, rate=50, connections=2, new_connections=0)
        report = run_until(load, lambda r: r.answered >= 20)
    assert report.lost == 0
    assert report.reopened >= 15


def test_a_request_on_a_connection_that_ends_without_an_answer_is_lost():
    """It is not sent again: the request had been written."""
    seen = []

    def serve(connection: socket.socket) -> None:
        while _read_request(connection):
            seen.append(1)
            if len(seen) % 2 == 0:
                return
            connection.sendall(OK)

    with raw_server(serve) as port:
        load = Load("127.0.0.1", port, rate=50, connections=1, new_connections=0)
        report = run_until(load, lambda r: r.sent >= 20)
    assert report.lost_by_kind == {"closed": len(seen) // 2}
    assert report.sent == len(seen)
    assert not any(failure.fresh for failure in report.failures), "each was lost on a connection that had answered"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "truncated"),
        (b"HTTP/1.1 502 Bad Gateway\r\nX-App: raw\r\nContent-Length: 0\r\n\r\n", "http_502"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "http_404"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "garbled"),
        (b"", "closed"),
    ],
)
def test_whatever_is_not_a_complete_good_answer_is_lost_under_its_name(answer: bytes, kind: str):
    """Truncated bodies, errors and foreign protocols are told apart."""

    def serve(connection: socket.socket) -> None:
        if _read_request(connection):
            connection.sendall(answer)

    with raw_server(serve) as port:
        report = run_until(Load("127.0.0.1", port, rate=100), lambda r: r.sent >= 10)
    assert report.answered == 0
    assert report.lost_by_kind == {kind: report.sent}
    assert report.failures[0].kind == kind


def test_a_chunked_answer_and_one_that_ends_with_the_connection_are_complete():
    """Both ways to send a body without a length count as answered."""
    bodies = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    ]
    turn = iter(bodies * 1000)

    def serve(connection: socket.socket) -> None:
        if _read_request(connection):
            connection.sendall(next(turn))

    with raw_server(serve) as port:
        report = run_until(Load("127.0.0.1", port, rate=100, new_connections=1), lambda r: r.sent >= 12)
    assert report.lost == 0


def test_a_server_that_never_answers_costs_a_timeout_each():
    """Requests that hang end after the timeout, also those in flight when the client stops."""

    def serve(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    with raw_server(serve) as port:
        load = Load("127.0.0.1", port, rate=50, connections=2, new_connections=1, timeout_s=0.2)
        report = run_until(load, lambda r: r.lost >= 3)
    assert report.lost_by_kind == {"timeout": report.sent}


def test_a_port_where_nobody_listens_refuses():
    """Refused connections are requests that were sent and lost."""
    report = run_until(Load("127.0.0.1", free_port(), rate=100), lambda r: r.sent >= 10)
    assert report.lost_by_kind == {"refused": report.sent}


def test_a_mark_divides_what_ended_before_it_from_what_ended_after():
    """The old application's last answer and the new one's first are told in ms after the mark."""
    with App("blue", "v1") as app:
        port = app.port
        with Load("127.0.0.1", port, rate=200) as load:
            wait_until(lambda: load.report().answered_by("blue") >= 20, "blue answers")
            before = time.monotonic()
            marked = load.mark("switch")
            assert before <= marked <= time.monotonic()
            app.stop()
            with App("green", "v2", port=port):
                wait_until(lambda: load.report().answered_by("green") >= 20, "green answers")
                report = load.stop()
    start, switch = report.phases
    assert (start.name, switch.name) == ("start", "switch")
    assert start.answered_by("blue") >= 20
    assert start.answered_by("green") == start.lost == 0
    green = switch.by("green")
    assert green is not None
    assert 0 < green.first_sent_ms < green.first_ms <= green.last_ms
    assert switch.lost > 0
    assert switch.last_loss_ms is not None
    assert switch.last_loss_ms < green.last_ms
    assert Report.from_json(report.to_json()) == report


def test_the_client_ends_by_itself_after_its_duration():
    """A test that dies does not leave a client behind; the report of one that ended is still there."""
    with App("blue") as app:
        load = Load("127.0.0.1", app.port, rate=100, duration_s=0.2).start()
        assert load._process is not None
        load._process.wait(timeout=10)
        report = load.stop()
    assert report.lost == 0
    assert 0.2 <= report.duration_s < 5
