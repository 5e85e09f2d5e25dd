"""The TCP check."""

import socket

import pytest

from tests.health.raw import asynchronous, certificate, checked, polite, serving, silent, tcp_prober
from tests.support.ports import free_port


@asynchronous
async def test_connects():
    """A server that accepts passes, whatever it says or does not say, and no connection stays."""
    async with serving(silent) as server:
        assert await checked(tcp_prober(server.address)) == "+ connected"
        assert await checked(tcp_prober(server.address)) == "+ connected"
        assert server.accepted <= 2


@asynchronous
async def test_refused():
    """Nobody listens: refused."""
    assert await checked(tcp_prober(f"127.0.0.1:{free_port()}")) == "- connect refused"


@pytest.mark.parametrize("name", ["nobody.invalid", "localhost"])
@asynchronous
async def test_names(name):
    """Names are looked up."""
    async with serving(silent) as server:
        detail = await checked(tcp_prober(f"{name}:{server.address.rpartition(':')[2]}", timeout=10.0))
    assert detail == ("+ connected" if name == "localhost" else "- no such host: nobody.invalid")


@asynchronous
async def test_full_queue():
    """A listening socket whose queue is full fails with the timeout."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        with socket.create_connection(address):
            assert await checked(tcp_prober("{}:{}".format(*address), timeout=0.1)) == "- timeout after 100ms"


@asynchronous
async def test_unix_socket(tmp_path):
    """A unix socket is checked; one whose program is gone refuses."""
    path = tmp_path / "app.sock"
    async with serving(silent, path=path) as server:
        assert await checked(tcp_prober(server.address)) == "+ connected"
    assert await checked(tcp_prober(server.address)) == "- connect refused"


@asynchronous
async def test_tls(tmp_path):
    """With TLS the handshake has to succeed."""
    async with serving(polite, tls=certificate(tmp_path)) as server:
        assert await checked(tcp_prober(server.address, tls=True)) == "+ connected with TLS"
    async with serving(silent) as server:
        assert await checked(tcp_prober(server.address, tls=True, timeout=0.1)) == "- timeout after 100ms"
