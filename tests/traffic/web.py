"""HTTP servers that answer what a test says, in its event loop, and what sources say of them."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pydantic import TypeAdapter

from lbswitch.core.criteria import MetricReading
from lbswitch.core.source_config import SourceConfig
from lbswitch.traffic.sources import read_once
from tests.health.raw import Server

_SOURCE: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def source(kind: str, **settings: Any) -> SourceConfig:
    return _SOURCE.validate_python({"kind": kind, "timeout": 8.0, "interval": 10.0, **settings})


async def read(config: SourceConfig) -> MetricReading:
    return await read_once("x", config)


async def value(config: SourceConfig) -> float:
    reading = await read(config)
    assert reading.error is None, reading.error
    assert reading.value is not None
    return reading.value


async def error(config: SourceConfig) -> str:
    reading = await read(config)
    assert reading.value is None
    assert reading.error is not None
    return reading.error


class Web(Server):
    """Answers each request; `requests` has their heads."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(self._serve)
        self.requests: list[bytes] = []
        self._reply = reply

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(1)
        if head != b"\x16":  # the beginning of TLS
            head += await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        await self._reply(head, writer)
        await writer.drain()


def saying(body: str | bytes, status: str = "200 OK", *headers: str) -> Reply:
    """The same answer each time."""
    data = body.encode() if isinstance(body, str) else body

    async def reply(head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Connection: close", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    return reply


@contextlib.asynccontextmanager
async def web(reply: Reply, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    server = Web(reply)
    await server.listen(asyncio.start_server(server.handle, host, 0, ssl=tls))
    try:
        yield server
    finally:
        await server.stop()
