"""The HTTP check against servers that work, fail and misbehave."""

import asyncio
import socket
import tracemalloc
import urllib.parse

import pytest

from lbswitch.core.config import HealthConfig
from lbswitch.health.checking import Inconclusive
from tests.health.raw import (
    asynchronous,
    certificate,
    checked,
    checked_once,
    http_prober,
    polite,
    saying,
    serving,
    silent,
)
from tests.support.app import App
from tests.support.ports import free_port

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def answering(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()


def test_application():
    """A real application passes, fails with its status and words, and heals."""
    with App("blue") as app:
        assert asyncio.run(checked_once(app.address)) == "+ HTTP 200"
        app.fail(health=503, text=urllib.parse.quote("db down"))
        assert asyncio.run(checked_once(app.address)) == '- HTTP 503 "db down"'
        app.fail(health=0)
        assert asyncio.run(checked_once(app.address)) == "+ HTTP 200"
    assert asyncio.run(checked_once(app.address)) == "- connect refused"


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (answering("200 OK", "ok"), "+ HTTP 200"),
        (answering("302 Found", ""), "+ HTTP 302"),
        (answering("404 Not Found", ""), "- HTTP 404"),
        (answering("500 Oops", "line\nbreak \x1b[31m red"), '- HTTP 500 "line\\nbreak \\x1b[31m red"'),
        (answering("500 Oops", "x" * 500), f'- HTTP 500 "{"x" * 80}..."'),
        (answering("503 Cut", "down")[:-1], '- HTTP 503 "dow"'),
        (b"", "- closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "- closed in the middle of its answer"),
        (HEADER + b"Content-Length: 5\r\n\r\nok", "- closed in the middle of its answer"),
        (b"220 mail.example ESMTP\r\n\r\n", '- not HTTP: "220 mail.example ESMTP"'),
    ],
)
@asynchronous
async def test_details(sent, detail):
    """Every failure says what was seen, on one line that is safe to print."""
    async with serving(saying(sent)) as server:
        assert await checked_once(server.address) == detail


@asynchronous
async def test_timeout():
    """A server that accepts and never answers fails with the timeout."""
    async with serving(silent) as server:
        assert await checked_once(server.address, timeout=0.05) == "- timeout after 50ms"
        assert await checked_once(server.address, timeout=0.125) == "- timeout after 125ms"


@asynchronous
async def test_nobody_accepts():
    """A listening socket that nobody accepts from fails with the timeout."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert await checked_once(f"127.0.0.1:{listening.getsockname()[1]}", timeout=0.05) == "- timeout after 50ms"


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (HEADER, b"X-More: and more\r\n"),
        (HEADER + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEADER + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["headers", "chunks", "body", "informational"],
)
@asynchronous
async def test_slow_drip(first, rest):
    """The timeout covers the whole check, also when something arrives all the time."""

    async def drip(reader, writer):
        writer.write(first)
        while True:
            writer.write(rest)
            await writer.drain()
            await asyncio.sleep(0.005)

    async with serving(drip) as server:
        assert await checked_once(server.address, timeout=0.1) == "- timeout after 100ms"


@pytest.mark.parametrize(
    ("first", "rest", "detail"),
    [
        (HEADER, b"X-More: and more\r\n" * 1000, "- header longer than 16 KiB"),
        (HEADER + b"\r\n", b"x" * 100_000, "+ HTTP 200"),
        (b"", b"x" * 100_000, "- header longer than 16 KiB"),
    ],
    ids=["headers", "body", "garbage"],
)
@asynchronous
async def test_endless(first, rest, detail):
    """Endless answers are given up early and take no memory to speak of."""

    async def flood(reader, writer):
        writer.write(first)
        while True:
            writer.write(rest)
            await writer.drain()

    async with serving(flood) as server:
        await checked_once(server.address)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(5):
                assert await checked_once(server.address) == detail
            assert tracemalloc.get_traced_memory()[0] - before < 3_000_000  # the flooding side's buffers included
        finally:
            tracemalloc.stop()


@asynchronous
async def test_request():
    """Method, path and Host header are sent as configured; by default the Host is the server's address."""
    seen = []

    async def listen(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(listen) as server:
        await checked_once(server.address, path="/up?deep=1", method="OPTIONS", host="shop.example")
        await checked_once(server.address)
    assert seen[0].startswith("OPTIONS /up?deep=1 HTTP/1.1\r\n")
    assert "\r\nhost: shop.example\r\n" in seen[0].lower()
    assert seen[1].startswith("GET /health HTTP/1.1\r\n")
    assert f"\r\nhost: {server.address}\r\n" in seen[1].lower()


@asynchronous
async def test_head():
    """A HEAD check does not wait for the body that the length promises."""
    async with serving(saying(HEADER + b"Content-Length: 100\r\n\r\n")) as server:
        assert await checked_once(server.address, method="HEAD") == "+ HTTP 200"


@pytest.mark.parametrize(
    ("expect", "detail"),
    [("200", "- HTTP 401"), ("200-299", "- HTTP 401"), ([200, 401], "+ HTTP 401"), ("400-499", "+ HTTP 401")],
)
@asynchronous
async def test_expected_status(expect, detail):
    """The configured statuses pass and no others."""
    async with serving(saying(answering("401 Unauthorized", ""))) as server:
        assert await checked_once(server.address, expect=expect) == detail


@asynchronous
async def test_body():
    """The body must hold the text within its first 64 KiB."""
    async with serving(saying(answering("200 OK", '{"status": "ok"}'))) as server:
        assert await checked_once(server.address, body='"ok"') == "+ HTTP 200"
        assert await checked_once(server.address, body="ready") == '- body lacks "ready"'
    for before, sign in [(65_534, "+"), (65_535, "-")]:
        async with serving(saying(answering("200 OK", "x" * before + "ok"))) as server:
            assert (await checked_once(server.address, body="ok"))[0] == sign
    async with serving(
        saying(HEADER + b"Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n", b"1\r\nk\r\n0\r\n\r\n")
    ) as server:
        assert await checked_once(server.address, body="ok") == "+ HTTP 200"


@asynchronous
async def test_port_override():
    """With `port` the check goes there, also for a server on a unix socket."""
    async with serving(polite) as server:
        port = int(server.address.rpartition(":")[2])
        assert await checked_once(f"127.0.0.1:{free_port()}", port=port) == "+ HTTP 200"
        assert await checked_once("unix:/nowhere.sock", port=port) == "+ HTTP 200"


@asynchronous
async def test_unix_socket(tmp_path):
    """A unix socket is checked, and one that is missing or full says so."""
    path = tmp_path / "app.sock"
    assert await checked_once(f"unix:{path}") == "- connect failed: No such file or directory"
    async with serving(polite, path=path) as server:
        assert await checked_once(server.address) == "+ HTTP 200"


@asynchronous
async def test_full_unix_socket(tmp_path):
    """A unix socket whose queue is full is not taken for one that accepts."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        assert await checked_once(f"unix:{path}", timeout=0.2) == "- connect failed: the accept queue is full"


@asynchronous
async def test_ipv6():
    """An IPv6 server is checked."""
    async with serving(polite, host="::1") as server:
        assert server.address.startswith("[::1]:")
        assert await checked_once(server.address) == "+ HTTP 200"


@asynchronous
async def test_host_name():
    """A name is looked up; all its addresses are tried."""
    async with serving(polite) as server:
        assert await checked_once(server.address.replace("127.0.0.1", "localhost")) == "+ HTTP 200"
    assert await checked_once(server.address.replace("127.0.0.1", "localhost")) == "- connect refused"


@asynchronous
async def test_no_such_host():
    """A name that does not exist says so."""
    assert await checked_once("nobody.invalid:80", timeout=10.0) == "- no such host: nobody.invalid"


@asynchronous
async def test_tls(tmp_path):
    """TLS is checked without judging the certificate, and the connection is kept."""
    async with serving(polite, tls=certificate(tmp_path)) as server:
        prober = http_prober(server.address, tls=True)
        assert [await checked(prober) for _ in range(4)] == ["+ HTTP 200"] * 4
        assert server.accepted == 1
        prober.close()


@asynchronous
async def test_tls_name(tmp_path):
    """The handshake asks for the host by name, from the Host header or the server's own; never for an address."""
    context, names = certificate(tmp_path), []
    context.sni_callback = lambda connection, name, _: names.append(name)
    async with serving(polite, tls=context) as server:
        port = server.address.rpartition(":")[2]
        await checked_once(server.address, tls=True)
        await checked_once(f"localhost:{port}", tls=True)
        await checked_once(server.address, tls=True, host="shop.example:8443")
    assert names == [None, "localhost", "shop.example"]


@asynchronous
async def test_tls_with_a_plain_server():
    """A server that speaks plain HTTP, or hangs up, fails the TLS check with the reason."""
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        assert await checked_once(server.address, tls=True, timeout=0.1) == "- timeout after 100ms"

    async def reject(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(reject) as server:
        assert (await checked_once(server.address, tls=True)).startswith("- TLS: ")

    async def hang_up(reader, writer):
        await reader.read(65536)

    async with serving(hang_up) as server:
        assert await checked_once(server.address, tls=True) == "- TLS: closed during the handshake"


@asynchronous
async def test_big_body_over_tls(tmp_path):
    """A body that spans many TLS records is read like any other."""
    async with serving(saying(answering("200 OK", "x" * 60_000 + "ok")), tls=certificate(tmp_path)) as server:
        assert await checked_once(server.address, tls=True, body="xok") == "+ HTTP 200"


@asynchronous
async def test_connection_is_kept_but_not_for_long():
    """Checks share a connection, and a new one is opened every few checks."""
    async with serving(polite) as server:
        prober = http_prober(server.address)
        for _ in range(20):
            assert await checked(prober) == "+ HTTP 200"
        assert server.accepted == 4
        prober.close()


@asynchronous
async def test_closed_while_idle():
    """A kept connection that the server closed is no failure."""
    async with serving(polite) as server:
        prober = http_prober(server.address)
        for number in range(1, 5):
            assert await checked(prober) == "+ HTTP 200"
            assert server.accepted == number
            await server.hang_up()
        prober.close()


@asynchronous
async def test_closed_when_asked_again():
    """A server that closes just when the second request arrives is asked again on a fresh connection."""

    async def one_then_close(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"\r\n\r\n")

    async with serving(one_then_close) as server:
        prober = http_prober(server.address)
        assert [await checked(prober) for _ in range(4)] == ["+ HTTP 200"] * 4
        prober.close()


@asynchronous
async def test_goodbye_while_idle():
    """A 408 that a server sends to an idle connection is not taken for the next answer."""
    said = asyncio.Event()

    async def goodbye(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        said.set()
        await reader.read()

    async with serving(goodbye) as server:
        prober = http_prober(server.address)
        for _ in range(3):
            assert await checked(prober) == "+ HTTP 200"
            await said.wait()
            said.clear()
            await asyncio.sleep(0)
        prober.close()


@asynchronous
async def test_dead_listener_is_noticed():
    """A server that no longer accepts fails soon, though it still answers on an old connection."""
    async with serving(polite) as server:
        prober = http_prober(server.address)
        assert await checked(prober) == "+ HTTP 200"
        server.stop_listening()
        seen = [await checked(prober) for _ in range(6)]
        assert seen == ["+ HTTP 200"] * 4 + ["- connect refused"] * 2
        prober.close()


@asynchronous
async def test_nothing_stays_open():
    """After a failed or ended check no connection of it is left."""
    async with serving(silent) as server:
        prober = http_prober(server.address, timeout=0.05)
        await checked(prober)
        await _until(lambda: server.accepted == 1 and server.open == 0)
    async with serving(polite) as server:
        prober = http_prober(server.address)
        await checked(prober)
        assert server.open == 1
        prober.close()
        await _until(lambda: server.open == 0)


@asynchronous
async def test_cancelled_check():
    """A check that is cancelled leaves no connection."""
    async with serving(silent) as server:
        task = asyncio.create_task(http_prober(server.address, timeout=30.0).check())
        await _until(lambda: server.open == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _until(lambda: server.open == 0)


@asynchronous
async def test_out_of_descriptors():
    """When the agent itself runs out of descriptors nothing is said about the server."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(polite) as server:
        with socket.socket() as lowest:
            limit = lowest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            with pytest.raises(Inconclusive, match="Too many open files"):
                await http_prober(server.address).check()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await checked_once(server.address) == "+ HTTP 200"


async def _until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_default_settings_are_those_of_the_contract():
    """The defaults that operators read are the ones that checks use."""
    config = HealthConfig()
    assert (config.path, config.interval, config.timeout, config.rise, config.fall) == ("/health", 1.0, 0.5, 2, 2)
