"""Servers that misbehave on purpose, in the event loop of the test."""

import asyncio
import contextlib
import functools
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from lbswitch.core.config import HealthConfig
from lbswitch.health.http import HttpProber
from lbswitch.health.resolver import Resolver
from lbswitch.health.target import check_endpoint
from lbswitch.health.tcp import TcpProber

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def asynchronous(test):
    """Run an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


class Server:
    """Where it listens, how many connections it accepted, and which are open."""

    def __init__(self, handler: Handler) -> None:
        self.address = ""
        self.accepted = 0
        self._handler = handler
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._listener: asyncio.Server | None = None

    async def listen(self, listener: Awaitable[asyncio.Server]) -> None:
        self._listener = await listener
        name = self._listener.sockets[0].getsockname()
        if isinstance(name, str):
            self.address = f"unix:{name}"
        else:
            self.address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    @property
    def open(self) -> int:
        return len(self._open)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open[writer] = asyncio.current_task()
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._handler(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            del self._open[writer]

    async def hang_up(self) -> None:
        """Close all connections, as a server does with idle ones."""
        for writer, task in list(self._open.items()):
            writer.transport.abort()
            task.cancel()
            await asyncio.wait([task])
        await asyncio.sleep(0)

    def stop_listening(self) -> None:
        """Accept no more; connections that are open live on."""
        self._listener.close()

    async def stop(self) -> None:
        for _ in range(10):  # what was connected just now gets as far as `handle`
            await asyncio.sleep(0)
        self.stop_listening()
        await self.hang_up()


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, path: Path | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server that hands every connection to `handler` and closes it afterwards."""
    server = Server(handler)
    if path is not None:
        await server.listen(asyncio.start_unix_server(server.handle, path))
    else:
        await server.listen(asyncio.start_server(server.handle, host, 0, ssl=tls, backlog=1024))
    try:
        yield server
    finally:
        await server.stop()


def saying(*pieces: bytes, pause_s: float = 0.0, forever: bool = False) -> Handler:
    """A handler that reads a request, then sends these pieces, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while True:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            if not forever:
                return

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read, and never answer."""
    while await reader.read(65536):
        pass


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with 200 ok, and keep the connection."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def http_prober(address: str, **settings: object) -> HttpProber:
    config = HealthConfig.model_validate(settings)
    return HttpProber(check_endpoint(address, config), config, Resolver())


def tcp_prober(address: str, **settings: object) -> TcpProber:
    config = HealthConfig.model_validate({"type": "tcp", **settings})
    return TcpProber(check_endpoint(address, config), config, Resolver())


async def checked(prober: HttpProber | TcpProber) -> str:
    """One check as `+ detail` or `- detail`."""
    result = await prober.check()
    return f"{'+' if result.passed else '-'} {result.detail}"


async def checked_once(address: str, **settings: object) -> str:
    """One HTTP check by a prober that is closed afterwards."""
    prober = http_prober(address, **settings)
    try:
        return await checked(prober)
    finally:
        prober.close()


def certificate(directory: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody signed."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=nobody.invalid", "-days", "2", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
