"""What passes through nginx, and that a switch does not disturb it."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time

import pytest

from lbswitch.core.model import ServerKey
from tests.balancers.nginx.servers import Server
from tests.balancers.nginx.site import BLUE, GREEN
from tests.support.ports import free_port
from tests.support.wait import wait_until


def _frame(text: str) -> bytes:
    return bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text.encode()


def test_websocket(site):
    """A WebSocket stays with its server through a switch and goes on echoing."""
    shop = site()
    client = shop.connect()
    client.connect()
    try:
        key = base64.b64encode(os.urandom(16)).decode()
        client.sock.sendall(
            f"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = client.sock.makefile("rb")
        assert b" 101 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        for text in ("before", "after"):
            client.sock.sendall(_frame(text))
            assert answer.read(2 + len("blue:" + text))[2:] == f"blue:{text}".encode()
            shop.switch(shop=GREEN)
        assert shop.color() == "green"
        answer.close()
    finally:
        client.close()


def test_stream(site):
    """A response is passed on as it comes, and is finished by the color that began it."""
    shop = site()
    client = shop.connect()
    try:
        began = time.monotonic()
        client.request("GET", "/stream?n=5&ms=200")
        answer = client.getresponse()
        assert answer.readline() == b"blue 0\n"
        assert time.monotonic() - began < 0.9  # all of it takes a second: the first line did not wait for the rest
        shop.switch(shop=GREEN)
        assert answer.read() == b"blue 1\nblue 2\nblue 3\nblue 4\n"
    finally:
        client.close()


def test_upload(site):
    """An upload larger than nginx's limits arrives whole at the color that it began with, chunked or not."""
    shop = site()
    client = shop.connect()
    piece, count = b"x" * 65536, 40
    try:
        client.putrequest("POST", "/upload")
        client.putheader("Content-Length", str(len(piece) * count))
        client.endheaders()
        for number in range(count):
            client.send(piece)
            if number == 2:
                wait_until(shop.is_asking_blue, "the upload has begun")
                shop.switch(shop=GREEN)
        answer = client.getresponse()
        assert (answer.read(), answer.getheader("X-App")) == (f"{len(piece) * count}\n".encode(), "blue")
        client.request("POST", "/upload", body=iter([piece] * count), encode_chunked=True)
        answer = client.getresponse()
        assert (answer.read(), answer.getheader("X-App")) == (f"{len(piece) * count}\n".encode(), "green")
    finally:
        client.close()
    assert not any(path.is_file() for path in (shop.prefix / "tmp").rglob("*"))


def test_upload_streams(site, service):
    """The server sees the begin of a body before the client has sent its end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        shop = site({"shop": service(blue={"servers": [f"127.0.0.1:{port}"]})})
        client = shop.connect()
        try:
            client.putrequest("POST", "/")
            client.putheader("Content-Length", "10")
            client.endheaders()
            client.send(b"begin")
            listening.settimeout(5)
            server, _ = listening.accept()
            with server:
                server.settimeout(5)
                received = b""
                while b"begin" not in received:
                    received += server.recv(65536)
        finally:
            client.close()


def test_forwarded(site):
    """The server learns who asked, how, and for which host; what a client claims about itself is kept apart."""
    shop = site()
    host = f"shop.example:{shop.config.services['shop'].bind.split(':')[1]}"
    told = json.loads(shop.get("/headers", Host=host, X_Forwarded_For="192.0.2.1", X_Forwarded_Proto="https")[1])
    assert told["host"] == told["x-forwarded-host"] == host
    assert told["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert told["x-forwarded-proto"] == "http"
    assert told["x-forwarded-port"] == host.split(":")[1]
    assert "connection" not in told
    assert "upgrade" not in told


def test_forwarded_through_unix(site, service, directory):
    """A proxy in front that comes through a unix socket knows the client better: its word is passed on."""
    shop = site({"shop": service(bind=f"unix:{directory}/shop.sock")})
    told = json.loads(shop.get("/headers", X_Forwarded_For="192.0.2.1", X_Forwarded_Proto="https")[1])
    assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("192.0.2.1", "https")
    told = json.loads(shop.get("/headers")[1])
    assert ("x-forwarded-for" in told, told["x-forwarded-proto"]) == (False, "http")


def test_no_host(site):
    """An HTTP/1.0 request without a Host gets one, since the server is asked in HTTP/1.1."""
    shop = site()
    client = shop.connect()
    client.connect()
    try:
        client.sock.sendall(b"GET /headers HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.sock.recv(65536), b""))
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["host"] == "localhost"
    finally:
        client.close()


def test_h2c_is_not_passed(site):
    """An upgrade to cleartext HTTP/2 would take the connection out of nginx's sight: it becomes a plain request."""
    shop = site()
    told = json.loads(shop.get("/headers", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c")[1])
    assert "upgrade" not in told


def test_responses_are_left_alone(site, service):
    """The server's own Server and Location reach the client, and X-Accel headers steer nothing."""
    headers = {"X_Accel_Redirect": "/.lbswitch/state", "Location": "http://shop_blue/x"}
    with Server("blue", **headers) as blue:
        shop = site({"shop": service(blue={"servers": [blue.address]})})
        status, body, told = shop.get("/")
        assert (status, body) == (200, "blue\n")
        assert told["server"].startswith("BaseHTTP")
        assert told["location"] == "http://shop_blue/x"
        shop.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("http2", [False, True])
def test_tls(site, service, certificate, http2):
    """TLS ends at nginx, with HTTP/2 if configured, and the state is asked over TLS."""
    cert, key = map(str, certificate)
    shop = site({"shop": service(bind=f"127.0.0.1:{free_port()}", tls={"cert": cert, "key": key}, http2=http2)})
    url = f"https://{shop.config.services['shop'].bind}/headers"
    said = subprocess.run(
        ["curl", "-sk", "--http2", "-w", "\n%{http_version}", url], capture_output=True, timeout=20, check=True
    )
    body, version = said.stdout.decode().rsplit("\n", 1)
    assert version == ("2" if http2 else "1.1")
    assert json.loads(body)["x-forwarded-proto"] == "https"
    assert json.loads(body)["host"] == shop.config.services["shop"].bind
    shop.switch(shop=GREEN)
    assert shop.observe().color is GREEN


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_replays(site, service, method):
    """A request that a server took and dropped goes to another one; a POST never does."""
    with Server("one") as one, Server("two") as two:
        shop = site({"shop": service(blue={"servers": [one.address, two.address]})})
        for _ in range(4):  # both servers have an idle connection that the next request will use
            shop.get("/")
        client = shop.connect()
        try:
            client.request(method, "/drop", body=b"order" if method == "POST" else None)
            assert client.getresponse().status == 502
        finally:
            client.close()
        dropped = [request for server in (one, two) for request in server.seen if request[1] == "/drop"]
        assert len(dropped) == 1 if method == "POST" else len(dropped) > 1
        shop.close()


def test_unreachable_server(site, service, blue):
    """A server that refuses connections costs nothing while the pool has another, for POST neither."""
    shop = site({"shop": service(blue={"servers": [f"127.0.0.1:{free_port()}", blue.address]})})
    client = shop.connect()
    try:
        for _ in range(20):
            client.request("POST", "/upload", body=b"abc")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"3\n")
    finally:
        client.close()


def test_failures_are_not_logged(site, service, directory):
    """With servers down, and nobody looking for days, the error log does not grow with the requests."""
    down = {"blue": {"servers": [f"unix:{directory}/none.sock"]}, "green": {"servers": [f"127.0.0.1:{free_port()}"]}}
    shop = site({"shop": service(**down)})
    for color in (BLUE, GREEN):
        shop.switch(shop=color)
        assert {shop.get("/")[0] for _ in range(20)} == {502}
    assert (shop.prefix / "error.log").read_text() == ""


def test_ejected(site, service):
    """An ejected server gets nothing after the reload; a pool whose servers are all ejected keeps them all."""
    with Server("one") as one, Server("two") as two:
        shop = site({"shop": service(blue={"servers": [one.address, two.address]})})
        assert {shop.color() for _ in range(10)} == {"one", "two"}
        keys = [ServerKey("shop", BLUE, server.address) for server in (one, two)]
        assert not shop.nginx.eject(frozenset(keys[:1]))
        shop.apply(shop.ejected(keys[0]))
        assert {shop.color() for _ in range(10)} == {"two"}
        everything = shop.nginx.render(shop.ejected(*keys))
        assert everything.files == shop.nginx.render(shop.ejected()).files
        shop.close()
