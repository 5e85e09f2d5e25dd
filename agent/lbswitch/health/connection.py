"""One connection to a server: TCP or unix socket, plain or TLS."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable
from functools import cache
from typing import Protocol, cast

from lbswitch.core.values import Endpoint
from lbswitch.health.checking import OWN_TROUBLE, CheckFailed
from lbswitch.health.resolver import Resolver


class Receiver(Protocol):
    """Takes what a server sends."""

    def receive(self, data: bytes) -> bool:
        """Take the next bytes; True when it has enough."""

    def end(self) -> None:
        """The server closed the connection before it was enough."""


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # a check asks whether the server works; the balancer decides whom to trust
    return context


class _Tls:
    """TLS between the transport and the receiver.

    In memory, because asyncio's own TLS protocol holds a buffer of 256 KiB for each connection, and connections stay.
    """

    def __init__(self, server_name: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = _tls_context().wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.is_ready = False

    def shake(self) -> None:
        """Go on with the handshake. Raises: ssl.SSLError."""
        try:
            self._object.do_handshake()
            self.is_ready = True
        except ssl.SSLWantReadError:
            pass

    def decrypt(self, data: bytes) -> bytes:
        """What these bytes mean; empty for those of the protocol itself. Raises: ssl.SSLError."""
        self._incoming.write(data)
        if not self.is_ready:
            self.shake()
        plain = bytearray()
        try:
            while self.is_ready:
                plain += self._object.read(65536)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            if not plain:
                raise
        return bytes(plain)

    def encrypt(self, data: bytes) -> None:
        """Queue for `outgoing`."""
        self._object.write(data)

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        return self._outgoing.read()


class Connection(asyncio.Protocol):
    """An open connection that asks one thing at a time; made by `connect`."""

    def __init__(self, tls: _Tls | None) -> None:
        """Wait for asyncio to attach the transport."""
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._done: asyncio.Future[None] | None = None
        self._fault: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody closed it, as far as this side knows."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, question: bytes, receiver: Receiver) -> None:
        """Send, and wait until the receiver has enough or the connection ends. Raises: CheckFailed (TLS)."""
        self._receiver = receiver
        try:
            self._send(question)
            await self._until_done()
        finally:
            self._receiver = None

    async def secure(self) -> None:
        """Shake hands. Raises: CheckFailed."""
        if self._tls is not None:
            self._tls.shake()
            self._flush()
            await self._until_done()

    def close(self) -> None:
        """Close at once, whatever is still to be sent or read."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on; what nobody asked for ends the connection."""
        if self._tls is not None:
            data = self._decrypted(self._tls, data)
            if not data:
                return
        if self._receiver is None:
            self.close()
        elif self._receiver.receive(data):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it broke is all the same
        """Tell who waits."""
        self._transport = None
        if self._receiver is not None:
            if self._done is not None and not self._done.done():
                self._receiver.end()
        elif self._tls is not None and not self._tls.is_ready and self._fault is None:
            self._fault = "TLS: closed during the handshake"
        self._finish()

    def _decrypted(self, tls: _Tls, data: bytes) -> bytes:
        was_ready = tls.is_ready
        try:
            data = tls.decrypt(data)
        except ssl.SSLZeroReturnError:
            self.close()
            return b""
        except ssl.SSLError as error:
            self._fault = f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
            self.close()
            return b""
        self._flush()
        if tls.is_ready and not was_ready:
            self._finish()
        return data

    def _send(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.encrypt(data)
            self._flush()
        elif self._transport is not None:
            self._transport.write(data)

    def _flush(self) -> None:
        data = self._tls.outgoing() if self._tls is not None else b""
        if data and self._transport is not None:
            self._transport.write(data)

    async def _until_done(self) -> None:
        self._done = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self.connection_lost(None)
        await self._done
        if self._fault is not None:
            raise CheckFailed(self._fault)

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


async def connect(endpoint: Endpoint, resolver: Resolver, *, tls: bool, server_name: str | None) -> Connection:
    """Open a connection, and shake hands with TLS; unbounded in time. Raises: CheckFailed, OSError."""
    connection = await _reach(endpoint, resolver, tls=tls, server_name=server_name)
    try:
        await connection.secure()
    except BaseException:
        connection.close()
        raise
    return connection


async def _reach(endpoint: Endpoint, resolver: Resolver, *, tls: bool, server_name: str | None) -> Connection:
    def make() -> Connection:
        return Connection(_Tls(server_name) if tls else None)

    if endpoint.is_unix:
        return await _reach_unix(endpoint.path, make)
    last: CheckFailed | None = None
    for address in await resolver.addresses(endpoint.host):
        try:
            return await _reach_address(address, endpoint.port, make)
        except CheckFailed as failure:
            last = failure
    raise last or CheckFailed(f"no such host: {endpoint.host}")


async def _reach_address(address: str, port: int, make: Callable[[], Connection]) -> Connection:
    try:
        return (await asyncio.get_running_loop().create_connection(make, address, port))[1]
    except OSError as error:
        raise _refusal(error) from error


async def _reach_unix(path: str, make: Callable[[], Connection]) -> Connection:
    try:
        transport, connection = await asyncio.get_running_loop().create_unix_connection(make, path)
    except OSError as error:
        raise _refusal(error) from error
    if not transport.get_extra_info("peername"):
        # connect(2) says EAGAIN when the accept queue of a unix socket is full, which asyncio takes for "in progress"
        transport.abort()
        raise CheckFailed("connect failed: the accept queue is full")
    return connection


def _refusal(error: OSError) -> OSError | CheckFailed:
    if error.errno in OWN_TROUBLE:
        return error
    if error.errno == errno.ECONNREFUSED:
        return CheckFailed("connect refused")
    return CheckFailed(f"connect failed: {os.strerror(error.errno) if error.errno else error}")
