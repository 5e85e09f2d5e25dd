"""What passes through: WebSockets, streams, uploads, headers, TLS, IPv6, unix sockets, plain TCP."""

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from lbswitch.core.model import Color, Route
from lbswitch.errors import CheckFailed, NotSeen
from tests.balancers.haproxy.managed import ask, connect
from tests.support.ports import free_port
from tests.support.wait import wait_until

GREEN = Route(Color.GREEN)


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


class WebSocket:
    """A WebSocket client of one kind of frame: short text."""

    def __init__(self, port: int) -> None:
        self._socket = connect(port)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._socket.recv(1)
        assert b" 101 " in head.splitlines()[0]

    def echo(self, text: str) -> str:
        data = text.encode()
        self._socket.sendall(bytes([0x81, 0x80 | len(data)]) + b"\0\0\0\0" + data)
        _, length = self._socket.recv(2, socket.MSG_WAITALL)
        return self._socket.recv(length, socket.MSG_WAITALL).decode()

    def close(self) -> None:
        self._socket.close()


def test_a_websocket_survives_a_switch_and_a_reload(shop):
    """What is open stays with the server that has it; new ones go to the new color."""
    old = WebSocket(shop.ports["shop"])
    assert old.echo("one") == "blue:one"
    shop.move(shop=GREEN)
    assert old.echo("two") == "blue:two"
    shop.haproxy.reload()
    assert old.echo("three") == "blue:three"
    new = WebSocket(shop.ports["shop"])
    assert new.echo("one") == "green:one"
    old.close()
    new.close()


def test_a_stream_survives_a_switch_and_is_not_held_back(shop):
    """Chunks arrive one by one, all from the color that began."""
    connection = shop.connection()
    connection.request("GET", "/stream?n=5&ms=60")
    response = connection.getresponse()
    assert response.readline() == b"blue 0\n"
    shop.move(shop=GREEN)
    assert response.read().splitlines() == [f"blue {number}".encode() for number in range(1, 5)]
    connection.close()


def test_an_upload_survives_a_switch(shop):
    """A body that is sent while the switch happens arrives complete."""
    connection = shop.connection()
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()
    connection.send(b"x" * 1_000_000)
    shop.move(shop=GREEN)
    connection.send(b"x" * 1_000_000)
    response = connection.getresponse()
    assert (response.getheader("X-App"), response.read()) == ("blue", b"2000000\n")
    connection.close()


def test_forwarded_headers_can_not_be_spoofed(shop):
    """Proto, Host and Port are replaced; For is appended to; the Host header stays."""
    spoofed = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil", "X-Forwarded-Port": "1"}
    connection = shop.connection()
    response = ask(connection, "/headers", {**spoofed, "X-Forwarded-For": "192.0.2.7", "Host": "shop.example:81"})
    connection.close()
    headers = json.loads(response.body)
    assert headers["host"] == "shop.example:81"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "shop.example:81"
    assert headers["x-forwarded-port"] == str(shop.ports["shop"])
    assert headers["x-forwarded-for"] == "127.0.0.1"  # the last of two lines, as the application keeps it


def test_what_the_client_said_of_its_way_is_kept_in_front(shop):
    """Both X-Forwarded-For entries arrive, ours last."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        shop.document["services"]["shop"]["blue"] = {"servers": [f"127.0.0.1:{server.getsockname()[1]}"]}
        later = shop.adapter()
        later.install(later.render(shop.intent))
        later.reload()
        wait_until(lambda: later.observe("shop").revision == later.installed(), "the new server is known")
        with connect(shop.ports["shop"]) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 192.0.2.7\r\nUpgrade: h2c\r\n\r\n")
            accepted, _ = server.accept()
            with accepted:
                head = accepted.recv(65536).decode().lower()
    lines = [line for line in head.split("\r\n") if line.startswith("x-forwarded-for")]
    assert ", ".join(line.split(": ")[1] for line in lines) == "192.0.2.7, 127.0.0.1"
    assert "h2c" not in head


def test_a_proxy_before_a_unix_socket_is_believed(make, service, tmp_path):
    """Who connects through the unix socket is on this machine and knows the client better."""
    path = tmp_path / "shop.sock"
    managed = make({"shop": service(bind=f"unix:{path}")}).serve()
    assert managed.haproxy.observe("shop").color is Color.BLUE
    managed.move(shop=GREEN)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(
            b"GET /headers HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
            b"Connection: close\r\n\r\n"
        )
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    headers = json.loads(text.split("\r\n\r\n", 1)[1])
    assert headers["x-forwarded-for"] == "192.0.2.7"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-host"] == "shop"


def test_what_is_served_is_told_to_this_machine_alone(shop):
    """The same path from an address that is not the one connected to is 404, and never reaches an application."""
    with connect(shop.ports["shop"], "127.0.0.2") as client:
        client.sendall(b"GET /.lbswitch/state HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"lbswitch-" not in answer
    assert b"x-app" not in answer.lower()


def test_a_server_that_is_down_costs_no_request(make, blue, green):
    """A connection that can't be made is made to another server of the pool."""
    pool = {"servers": [f"127.0.0.1:{free_port()}", blue.address]}
    managed = make({"shop": {"blue": pool, "green": {"servers": [green.address]}}}).serve()
    assert {managed.get("/").status for _ in range(10)} == {200}


def test_a_post_is_not_sent_twice(make, green):
    """A server that takes a POST and closes gets it once; a GET is tried again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        managed = make({"shop": {"blue": {"servers": [address]}, "green": {"servers": [green.address]}}}).serve()
        server.settimeout(0.5)
        for method, least, most in (("POST", 1, 1), ("GET", 2, 4)):
            with connect(managed.ports["shop"]) as client:
                client.sendall(f"{method} / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n".encode())
                taken = 0
                with contextlib.suppress(TimeoutError):
                    while True:
                        accepted, _ = server.accept()
                        accepted.settimeout(5)
                        with accepted:
                            taken += bool(accepted.recv(65536))
            assert least <= taken <= most, method


@needs_ipv6
def test_ipv6(make, blue, green):
    """Listeners and servers on IPv6; `[::]` is every IPv6 address and leaves IPv4 alone."""
    relay_port = free_port()
    one, every = free_port(), free_port()
    pools = {"blue": {"servers": [f"[::1]:{relay_port}"]}, "green": {"servers": [green.address]}}
    managed = make({"one": {"bind": f"[::1]:{one}", **pools}, "every": {"bind": f"[::]:{every}", **pools}}).serve()
    with socket.create_server(("127.0.0.1", every)):  # would be taken otherwise
        pass
    argv = [sys.executable, str(Path(__file__).parents[3] / "examples/app/app.py"), "--name", "six"]
    with subprocess.Popen([*argv, "--listen", f"[::1]:{relay_port}"], stdout=subprocess.DEVNULL) as app:
        try:
            for port in (one, every):
                connection = http.client.HTTPConnection("::1", port, timeout=5)
                wait_until(lambda connection=connection: ask(connection, "/", {}).status == 200, "six answers")
                connection.close()
            managed.move(one=GREEN, every=GREEN)
        finally:
            app.terminate()


def test_servers_on_unix_sockets(make, green, tmp_path):
    """A pool may be on a unix socket."""
    tmp_path.chmod(0o755)
    path = tmp_path / "app.sock"
    managed = make(
        {"shop": {"blue": {"servers": [f"unix:{path}"]}, "green": {"servers": [green.address]}}}, user="root"
    )
    managed.serve()
    argv = [sys.executable, str(Path(__file__).parents[3] / "examples/app/app.py"), "--name", "local"]
    with subprocess.Popen([*argv, "--listen", f"unix:{path}"], stdout=subprocess.DEVNULL) as app:
        try:
            wait_until(lambda: managed.app() == "local", "the application on the socket answers")
        finally:
            app.terminate()


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two self-signed certificates with their keys: (cert, key) pairs."""
    directory = tmp_path_factory.mktemp("tls")
    for name in ("one", "two"):
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.crt")]
        subprocess.run([*argv, *files, "-subj", f"/CN={name}", "-days", "2"], check=True, capture_output=True)
    return [(str(directory / f"{name}.crt"), str(directory / f"{name}.key")) for name in ("one", "two")]


def handshake(port: int, *protocols: str) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context.wrap_socket(connect(port))


@pytest.mark.parametrize("http2", [False, True])
def test_tls(make, service, certificates, http2):
    """TLS is terminated, HTTP/2 is offered when asked for, and switches are seen through it."""
    cert, key = certificates[0]
    managed = make({"shop": service(tls={"cert": cert, "key": key}, http2=http2)}).serve()
    managed.move(shop=GREEN)
    with handshake(managed.ports["shop"], "h2", "http/1.1") as client:
        assert client.selected_alpn_protocol() == ("h2" if http2 else "http/1.1")
    with handshake(managed.ports["shop"], "http/1.1") as client:
        client.sendall(b"GET /headers HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    assert json.loads(text.split("\r\n\r\n", 1)[1])["x-forwarded-proto"] == "https"


def test_http2_requests_are_served_and_follow(make, service, certificates):
    """curl over HTTP/2 sees the switch."""
    cert, key = certificates[0]
    managed = make({"shop": service(tls={"cert": cert, "key": key}, http2=True)}).serve()
    argv = ["curl", "-sk", "--http2", "-w", "%{http_version}", f"https://127.0.0.1:{managed.ports['shop']}/"]
    for color in (Color.GREEN, Color.BLUE):
        managed.move(shop=Route(color))
        output = subprocess.run(argv, capture_output=True, text=True, timeout=10).stdout
        assert output.startswith(str(color))
        assert output.endswith("\n2")


def test_a_renewed_certificate_is_served_after_a_reload(make, service, certificates, tmp_path):
    """New files under the same names give a new revision, with the key readable by its owner alone."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    port = free_port()
    settings = service(bind=f"127.0.0.1:{port}", tls={"cert": str(cert), "key": str(key)})
    managed = make({"shop": settings})

    def renew(pair: tuple[str, str]) -> None:
        cert.write_bytes(Path(pair[0]).read_bytes())
        key.write_bytes(Path(pair[1]).read_bytes())

    def served() -> bytes | None:
        with handshake(port, "http/1.1") as client:
            return client.getpeercert(binary_form=True)

    renew(certificates[0])
    managed.serve()
    before = served()
    renew(certificates[1])
    rendered = managed.haproxy.render(managed.intent)
    assert rendered.revision != managed.haproxy.installed()
    managed.haproxy.check(rendered)
    managed.haproxy.install(rendered)
    managed.haproxy.reload()
    wait_until(lambda: served() != before, "the new certificate is served")
    pem = managed.directory / "current" / "shop.pem"
    assert pem.stat().st_mode & 0o777 == 0o600
    assert [file.secret for file in rendered.files if file.name == "shop.pem"] == [True]


def test_a_key_of_another_certificate_is_named(make, service, certificates):
    """Before HAProxy sees anything, the message names both files."""
    cert, key = certificates[0][0], certificates[1][1]
    managed = make({"shop": service(tls={"cert": cert, "key": key})})
    with pytest.raises(CheckFailed, match=r"services\.shop\.tls\.key: .*two\.key does not fit tls\.cert .*one\.crt"):
        managed.haproxy.render(managed.intent)


def test_a_certificate_that_can_not_be_read_is_named(make, service, certificates):
    """The service, the setting and the path."""
    managed = make({"shop": service(tls={"cert": "/nonexistent/shop.crt", "key": certificates[0][1]})})
    with pytest.raises(CheckFailed, match=r"services\.shop\.tls\.cert: /nonexistent/shop\.crt does not exist"):
        managed.haproxy.render(managed.intent)


def test_a_key_that_everybody_can_read_is_warned_of(make, service, certificates, tmp_path):
    """It works, and should be mended."""
    key = tmp_path / "key"
    key.write_bytes(Path(certificates[0][1]).read_bytes())
    key.chmod(0o644)
    managed = make({"shop": service(tls={"cert": certificates[0][0], "key": str(key)})})
    assert any(str(key) in warning for warning in managed.haproxy.warnings())
    key.chmod(0o600)
    assert managed.haproxy.warnings() == []


# -- plain TCP -----------------------------------------------------------------------------------------------


def test_tcp_mode_is_switched_by_the_map(make, service):
    """New connections go to the new color, open ones stay; the state is seen though the port can't tell it."""
    managed = make({"db": service(mode="tcp"), "web": service(mode="tcp", initial="green")}).serve()
    assert (managed.app("db"), managed.app("web")) == ("blue", "green")
    held = managed.connection("db")
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    managed.move(db=GREEN)
    assert managed.app("db") == "green"
    assert ask(held, "/", {}).getheader("X-App") == "blue"
    held.close()


def test_tcp_mode_switched_by_reload(make, service):
    """The state socket tells the color that is written in the configuration."""
    managed = make({"db": service(mode="tcp", switching="reload")}).serve()
    for route in (GREEN, Route(Color.GREEN, 50), Route(Color.BLUE)):
        managed.intent = managed.after(db=route)
        managed.haproxy.install(managed.haproxy.render(managed.intent))
        managed.haproxy.reload()
        wait_until(lambda: managed.shows(managed.haproxy.observe("db"), "db"), f"{route} is seen")
    wait_until(lambda: managed.app("db") == "blue", "blue answers")


def test_a_tcp_service_whose_port_is_gone_is_not_seen(make, service):
    """The state socket alone proves nothing about the service's own listener."""
    managed = make({"db": service(mode="tcp")}).serve()
    worker = managed.processes().current[0]
    managed.haproxy._runtime.ask(worker, "disable frontend db")
    managed.haproxy._runtime.ask(worker, "shutdown frontend db")
    with pytest.raises(NotSeen, match=r"db: .*does not accept connections"):
        managed.haproxy.observe("db")


def test_nothing_is_seen_of_a_stopped_haproxy(shop):
    """NotSeen names the address."""
    shop.stop()
    with pytest.raises(NotSeen, match=rf"127.0.0.1:{shop.ports['shop']} does not answer"):
        shop.haproxy.observe("shop")
