"""The benchmark's load generator accounts for everything it sends; what the benchmark says rests on it."""

import base64
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from scripts.benchmark.native import NativeLoad, Origin, Report, build

from tests.bench.raw import Client, Serve, serving
from tests.support.ports import free_port
from tests.support.wait import wait_until

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("cc")), reason="there is no C compiler: apt-get install gcc libc6-dev"
)

OK = b"HTTP/1.1 200 OK\r\nX-Color: blue\r\nContent-Length: 5\r\n\r\nblue\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nX-Color: blue\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nX-Color: blue\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@contextmanager
def load_to(port: int, **options: float) -> Iterator[NativeLoad]:
    """Requests only, unless told otherwise."""
    plan = {"rate": 200, "kept": 4, "streams": 0, "websockets": 0, "timeout_ms": 15000} | options
    with NativeLoad(port, **plan) as load:  # type: ignore[arg-type]
        yield load


def run_until(port: int, enough: Callable[[Report], object], **options: float) -> Report:
    """Send until the report shows enough, then stop and check that every request is accounted for."""
    with load_to(port, **options) as load:
        wait_until(lambda: enough(load.report()), "enough of it", 30)
        report = load.stop()
    totals = report["totals"]
    assert report["in_flight"] == 0
    assert totals["sent"] == sum(totals["answered"].values()) + sum(totals["lost"].values())
    return report


def answering(*answer: bytes) -> Serve:
    """A server that gives every request the same answer, in these pieces."""

    def serve(client: Client) -> None:
        while True:
            client.read_request()
            client.send(*answer)

    return serve


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


# Everything in order


def test_everything_that_a_sound_server_answers_is_counted_and_nothing_is_lost():
    with Origin("blue") as origin:
        report = run_until(
            origin.port,
            lambda now: now["totals"]["streams_done"] > 5 and now["totals"]["ws_done"] > 5,
            rate=1000,
            streams=3,
            stream_seconds=0.3,
            websockets=3,
            ws_every_ms=20,
        )
    totals = report["totals"]
    assert totals["answered"] == {"blue": totals["sent"]}
    assert (totals["lost"], totals["streams_broken"], totals["ws_broken"], totals["skipped"]) == ({}, 0, 0, 0)
    assert totals["ws_frames"] >= totals["ws_done"]
    assert report["failures"] == []


def test_streams_and_websockets_that_stop_cuts_off_are_neither_done_nor_broken():
    with Origin("blue") as origin:
        report = run_until(
            origin.port,
            lambda now: now["totals"]["ws_frames"] > 4,
            rate=0,
            streams=2,
            websockets=2,
            stream_seconds=100,
            ws_every_ms=20,
        )
    totals = report["totals"]
    assert (totals["streams_started"], totals["streams_done"], totals["streams_broken"]) == (2, 0, 0)
    assert (totals["ws_opened"], totals["ws_done"], totals["ws_broken"]) == (2, 0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        [bytes([byte]) for byte in OK],
        [CHUNKED + b"3;name=value\r\nblu\r\n", b"2\r", b"\ne\n\r\n0\r\nTrailer: 1\r\n", b"\r\n"],
        [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK],
        [b"HTTP/1.1 204 No Content\r\nX-Color: blue\r\n\r\n"],
    ],
    ids=["byte by byte", "chunked", "after an interim answer", "without a body"],
)
def test_an_answer_counts_however_it_comes(answer: list[bytes]):
    with serving(answering(*answer)) as port:
        report = run_until(port, lambda now: now["totals"]["answered"].get("blue", 0) > 20)
    assert (report["totals"]["lost"], report["totals"]["reopened"]) == ({}, 0)


def test_an_answer_without_a_length_ends_with_its_connection():
    def serve(client: Client) -> None:
        client.read_request()
        client.send(b"HTTP/1.1 200 OK\r\nX-Color: blue\r\n\r\nblue\n")

    with serving(serve) as port:
        report = run_until(port, lambda now: now["totals"]["answered"].get("blue", 0) > 20)
    assert (report["totals"]["lost"], report["totals"]["reopened"]) == ({}, 0)


# Lost requests


def _reset(client: Client) -> None:
    client.read_request()
    client.reset()


def _close(client: Client) -> None:
    client.read_request()


def _truncate(client: Client) -> None:
    client.read_request()
    client.send(OK[:-2])


def _truncate_chunks(client: Client) -> None:
    client.read_request()
    client.send(CHUNKED + chunk(b"blue\n"))


def _say_nothing(client: Client) -> None:
    client.read_request()
    client.wait_for_end()


@pytest.mark.parametrize(
    ("kind", "serve"),
    [
        ("reset", _reset),
        ("closed", _close),
        ("truncated", _truncate),
        ("truncated", _truncate_chunks),
        ("timeout", _say_nothing),
        ("garbled", answering(b"ICY 200 OK\r\n\r\n")),
        ("garbled", answering(OK + b"more")),
        ("garbled", answering(CHUNKED + b"blue\n\r\n")),
        ("garbled", answering(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n")),
        ("http_502", answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")),
        (
            "http_503",
            answering(b"HTTP/1.0 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"),
        ),
    ],
)
def test_a_lost_request_is_counted_once_as_what_happened_to_it(kind: str, serve: Serve):
    """On kept connections and on those of their own, and never tried again."""
    timeout_ms = 300 if kind == "timeout" else 15000
    with serving(serve) as port:
        report = run_until(port, lambda now: now["totals"]["lost"].get(kind, 0) > 10, timeout_ms=timeout_ms)
    assert report["totals"]["lost"] == {kind: report["totals"]["sent"]}
    assert {failure["kind"] for failure in report["failures"]} == {kind}
    assert {failure["what"] for failure in report["failures"]} == {"kept", "new"}


def test_a_port_where_nobody_listens_refuses_everything():
    report = run_until(free_port(), lambda now: now["totals"]["lost"].get("refused", 0) > 10, streams=1, websockets=1)
    assert report["totals"]["lost"] == {"refused": report["totals"]["sent"]}
    assert report["totals"]["streams_broken"] > 0
    assert report["totals"]["ws_broken"] > 0


def test_a_kept_connection_that_was_closed_while_idle_is_opened_again_and_costs_nothing():
    def serve(client: Client) -> None:
        client.read_request()
        client.send_with_end(OK)

    with serving(serve) as port:
        report = run_until(port, lambda now: now["totals"]["reopened"] > 5, new_share=0)
    totals = report["totals"]
    assert totals["answered"] == {"blue": totals["sent"]}
    assert totals["reopened"] <= totals["sent"]


def test_a_kept_connection_whose_answer_announces_its_end_is_not_counted_as_reopened():
    def serve(client: Client) -> None:
        client.read_request()
        client.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with serving(serve) as port:
        report = run_until(port, lambda now: now["totals"]["answered"].get("blue", 0) > 20, new_share=0)
    assert (report["totals"]["lost"], report["totals"]["reopened"]) == ({}, 0)


def test_requests_that_no_kept_connection_is_free_for_are_skipped_and_never_sent():
    go_on = threading.Event()

    def serve(client: Client) -> None:
        client.read_request()
        go_on.wait(20)
        client.send(OK)
        answering(OK)(client)

    with serving(serve) as port, load_to(port, rate=500, kept=1, new_share=0) as load:
        wait_until(lambda: load.report()["totals"]["skipped"] > 5, "requests that were given up", 30)
        assert load.report()["totals"]["sent"] == 1
        go_on.set()
        totals = load.stop()["totals"]
    assert totals["answered"] == {"blue": totals["sent"]}


# Streams and WebSockets


def _stream(*pieces: bytes, then: Callable[[Client], None] = lambda client: None) -> Serve:
    def serve(client: Client) -> None:
        client.read_request()
        client.send(CHUNKED, *pieces)
        then(client)

    return serve


@pytest.mark.parametrize(
    ("kind", "serve"),
    [
        ("truncated", _stream(chunk(b"blue 0\n"))),
        ("truncated", _stream(chunk(b"blue 0\nbl"), b"0\r\n\r\n")),
        ("truncated", _stream(b"0\r\n\r\n")),
        ("reset", _stream(chunk(b"blue 0\n"), then=lambda client: (time.sleep(0.05), client.reset())[0])),
        ("mixed", _stream(chunk(b"blue 0\n"), chunk(b"green 1\n"), b"0\r\n\r\n")),
        ("garbled", _stream(chunk(b"blue 0\n"), chunk(b"blue 2\n"), b"0\r\n\r\n")),
        ("timeout", _stream(chunk(b"blue 0\n"), then=Client.wait_for_end)),
        ("closed", _close),
        ("http_502", answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad")),
    ],
)
def test_a_stream_that_does_not_come_whole_and_of_one_color_is_broken(kind: str, serve: Serve):
    timeout_ms = 300 if kind == "timeout" else 15000
    with serving(serve) as port:
        report = run_until(
            port, lambda now: now["totals"]["streams_broken"] >= 2, rate=0, streams=1, timeout_ms=timeout_ms
        )
    assert report["totals"]["streams_done"] == 0
    assert {(failure["what"], failure["kind"]) for failure in report["failures"]} == {("stream", kind)}


def _websocket(handle: Callable[[Client, bytes], None]) -> Serve:
    """After the handshake `handle` gets every text; a close is answered."""

    def serve(client: Client) -> None:
        client.read_request()
        client.send(UPGRADED)
        while True:
            opcode, payload = client.read_frame()
            if opcode == 8:
                client.send_frame(8, payload)
                return
            if opcode == 1:
                handle(client, payload)

    return serve


def _hang_up(client: Client, _: bytes) -> None:
    raise EOFError


@pytest.mark.parametrize(
    ("kind", "serve"),
    [
        ("closed", _websocket(_hang_up)),
        ("closed", _websocket(lambda client, text: client.send_frame(8, b""))),
        ("reset", _websocket(lambda client, text: client.reset())),
        ("mixed", _websocket(lambda client, text: client.send_frame(1, b"green:" + text))),
        ("garbled", _websocket(lambda client, text: client.send_frame(1, b"blue:" + text + b"0"))),
        ("timeout", _websocket(lambda client, text: None)),
        ("garbled", answering(UPGRADED.replace(b"s3p", b"S3p"))),
        ("garbled", answering(OK)),
        ("http_502", answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")),
        ("closed", _close),
    ],
)
def test_a_websocket_that_the_other_side_ends_or_that_gets_another_echo_is_broken(kind: str, serve: Serve):
    timeout_ms = 300 if kind == "timeout" else 15000
    with serving(serve) as port:
        report = run_until(
            port, lambda now: now["totals"]["ws_broken"] >= 2, rate=0, websockets=1, timeout_ms=timeout_ms
        )
    assert report["totals"]["ws_done"] == 0
    assert {(failure["what"], failure["kind"]) for failure in report["failures"]} == {("websocket", kind)}


def test_a_websocket_answers_pings_and_is_done_when_its_close_is_answered():
    pongs: list[bytes] = []

    def serve(client: Client) -> None:
        client.read_request()
        client.send(UPGRADED)
        while True:
            opcode, payload = client.read_frame()
            if opcode == 1:
                client.send_frame(9, b"are you there")
                client.send_frame(1, b"blue:" + payload)
            elif opcode == 10:
                pongs.append(payload)
            elif opcode == 8:
                client.send_frame(8, payload)
                return

    with serving(serve) as port:
        report = run_until(
            port, lambda now: now["totals"]["ws_done"] > 1, rate=0, websockets=1, stream_seconds=0.2, ws_every_ms=20
        )
    assert report["totals"]["ws_broken"] == 0
    assert set(pongs) == {b"are you there"}


# Phases


def test_a_switch_that_is_told_later_is_measured_from_its_own_moment():
    """The first answer of the new color cannot come before the server begins to give it, nor can a request have begun
    after that and be answered by the old one."""
    begins_ns = [1 << 62]
    has_answered_green = threading.Event()

    def serve(client: Client) -> None:
        while True:
            client.read_request()
            is_green = time.monotonic_ns() >= begins_ns[0]
            client.send(OK.replace(b"blue", b"green").replace(b"5", b"6") if is_green else OK)
            if is_green:
                has_answered_green.set()

    with serving(serve) as port, load_to(port, rate=500) as load:
        wait_until(lambda: load.report()["totals"]["answered"], "traffic")
        at_ns = time.monotonic_ns()
        begins_ns[0] = at_ns + 200_000_000
        assert has_answered_green.wait(20)
        assert load.switch("blue", "green", at_ns) == at_ns
        report = load.stop()
    before, switch = report["phases"]
    assert (before["name"], before["from"], before["until_ns"]) == ("start", None, at_ns)
    assert (switch["name"], switch["from"], switch["to"], switch["at_ns"]) == ("switch", "blue", "green", at_ns)
    assert "green" not in before["answered"]
    assert switch["first_new_ms"] is not None
    assert switch["first_new_ms"] >= 200
    assert switch["last_old_ms"] is not None
    assert switch["last_old_answered_ms"] is not None
    assert 0 <= switch["last_old_ms"] <= 200
    assert switch["last_old_ms"] <= switch["last_old_answered_ms"]
    assert 0 < switch["old_after"] <= switch["answered"]["blue"]
    assert before["sent"] + switch["sent"] == report["totals"]["sent"]
    assert sum(sum(phase["answered"].values()) for phase in report["phases"]) == report["totals"]["sent"]


def test_a_phase_begins_neither_before_what_was_reported_nor_in_the_future_nor_long_ago():
    with Origin("blue") as origin, load_to(origin.port) as load:
        at_ns = load.now_ns()
        report = load.report()
        for moment in (at_ns, time.monotonic_ns() + 60 * 10**9, 1):
            with pytest.raises(RuntimeError, match="the moment is"):
                load.switch("blue", "green", moment)
        assert load.report()["phases"][-1]["name"] == report["phases"][-1]["name"] == "start"
        assert at_ns < load.phase("quiet") < time.monotonic_ns()
        (_, quiet) = load.stop()["phases"]
    assert (quiet["name"], quiet["from"], quiet["to"]) == ("quiet", None, None)


# The end


def test_it_ends_with_its_duration_and_still_gives_its_report():
    with Origin("blue") as origin, load_to(origin.port, duration_s=0.2) as load:
        wait_until(lambda: psutil.Process(load.pid).status() == psutil.STATUS_ZOMBIE, "its end")
        totals = load.stop()["totals"]
    assert totals["answered"] == {"blue": totals["sent"]}


@pytest.mark.parametrize("program", ["load", "origin"])
def test_it_ends_when_nobody_holds_its_stdin_any_more(program: str):
    arguments = {
        "load": ["--target", f"127.0.0.1:{free_port()}"],
        "origin": ["--listen", f"127.0.0.1:{free_port()}", "--name", "blue"],
    }
    argv = [str(build() / program), *arguments[program]]
    process = subprocess.run(argv, input=b"", capture_output=True, timeout=30, check=False)
    assert process.returncode == 0


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install gcc"):
        build(tmp_path / "cache")


def test_it_is_compiled_once(tmp_path: Path):
    first = build(tmp_path)
    made = [(first / name).stat().st_mtime_ns for name in ("load", "origin")]
    assert build(tmp_path) == first
    assert [(first / name).stat().st_mtime_ns for name in ("load", "origin")] == made
    assert sorted(path.name for path in first.iterdir()) == ["load", "origin"]


# The application


def test_the_application_answers_with_its_color_and_keeps_connections():
    with Origin("blue") as origin:
        connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=20)
        for path, body in (("/", b"blue\n"), ("/any/path?x=1", b"blue\n"), ("/health", b"ok\n"), ("/", b"blue\n")):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["X-Color"], answer.read()) == (200, "blue", body)
            assert connection.sock is not None
        connection.request("GET", "/", headers={"Connection": "close"})
        assert connection.getresponse().read() == b"blue\n"
        assert connection.sock is None
        connection.close()


def test_the_applications_stream_has_a_line_for_every_interval_and_an_end():
    with Origin("blue") as origin:
        connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=20)
        for _ in range(2):  # the connection is kept
            connection.request("GET", "/stream?seconds=0.2&every_ms=20")
            assert connection.getresponse().read().splitlines() == [b"blue %d" % n for n in range(11)]
        connection.close()


def test_the_applications_websocket_follows_the_protocol():
    key = base64.b64encode(os.urandom(16))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    with Origin("blue") as origin, socket.create_connection(("127.0.0.1", origin.port), 20) as client:
        client.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        stream = client.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n"))
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: " + accept + b"\r\n" in head
        long = b"x" * 300
        for opcode, payload, answer in (
            (1, b"hello", b"\x81\x0ablue:hello"),
            (9, b"?", b"\x8a\x01?"),
            (1, long, b"\x81\x7e\x01\x31blue:" + long),
            (8, b"\x03\xe8", b"\x88\x02\x03\xe8"),
        ):
            client.sendall(_masked(opcode, payload))
            assert stream.read(len(answer)) == answer
        assert stream.read() == b""
        stream.close()


def _masked(opcode: int, payload: bytes) -> bytes:
    mask, size = os.urandom(4), len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
