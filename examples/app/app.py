#!/usr/bin/env python3
r"""A small web application that stands on a color: says its version, streams, and fails when told to.

    app.py --listen 127.0.0.1:9101 --name blue --version v1

GET  /health           200 "ok", or the status and text set with /fail
GET  /version          the version
GET  /                 "NAME VERSION\n"
GET  /stream?n=5&ms=100  n chunks, one every ms milliseconds
GET  /slow?ms=500      an answer that takes its time
POST /upload           counts the bytes of the body, streamed
GET  /headers          the request headers as JSON
GET  /ws               a WebSocket that echoes text frames
POST /fail?health=503&traffic=500&text=db+down   from now on /health and the rest answer so; 0 heals
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

_WS_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class App:
    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version
        self.fail = {"health": 0, "traffic": 0}
        self.fail_text = "failing"
        self.served = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._one(reader, writer):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, protocol = first.split(" ", 2)
        headers = {}
        for line in lines:
            key, _, value = line.partition(":")
            headers[key.strip().lower()] = value.strip()
        url = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path == "/ws":
            await self._websocket(reader, writer, headers)
            return False
        size = 0
        async for chunk in self._body(reader, headers):
            size += len(chunk)
        asked = headers.get("connection", "").lower()
        keep = asked == "keep-alive" if protocol == "HTTP/1.0" else asked != "close"
        if url.path == "/stream":
            await self._stream(writer, int(query.get("n", "5")), float(query.get("ms", "100")))
            return keep
        status, text = await self._answer(method, url.path, query, headers, size)
        body = b"" if method == "HEAD" else text.encode()
        writer.write(
            f"HTTP/1.1 {status} {'OK' if status < 400 else 'Failed'}\r\nContent-Type: text/plain\r\n"
            f"X-App: {self.name}\r\nX-Version: {self.version}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        return keep

    async def _answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], size: int
    ) -> tuple[int, str]:
        if path == "/fail" and method == "POST":
            for key in self.fail:
                self.fail[key] = int(query.get(key, self.fail[key]))
            self.fail_text = query.get("text", self.fail_text)
            return 200, "ok\n"
        if path == "/health":
            return (self.fail["health"], self.fail_text) if self.fail["health"] else (200, "ok")
        self.served += 1
        if self.fail["traffic"]:
            return self.fail["traffic"], self.fail_text + "\n"
        if path == "/slow":
            await asyncio.sleep(float(query.get("ms", "500")) / 1000)
        answers = {"/version": self.version + "\n", "/headers": json.dumps(headers), "/upload": f"{size}\n"}
        return 200, answers.get(path, f"{self.name} {self.version}\n")

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                yield await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readline()
            return
        left = int(headers.get("content-length", "0"))
        while left:
            chunk = await reader.read(min(left, 65536))
            if not chunk:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(chunk)
            yield chunk

    async def _stream(self, writer: asyncio.StreamWriter, count: int, pause_ms: float) -> None:
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-App: {self.name}\r\n"
            f"X-Version: {self.version}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for number in range(count):
            data = f"{self.name} {number}\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause_ms / 1000)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _websocket(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> None:
        key = headers.get("sec-websocket-key", "")
        accept = base64.b64encode(hashlib.sha1((key + _WS_GUID).encode()).digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        while True:
            opcode, length = await reader.readexactly(2)
            size = length & 0x7F
            if size == 126:
                size = int.from_bytes(await reader.readexactly(2), "big")
            mask = await reader.readexactly(4) if length & 0x80 else b"\0\0\0\0"
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(size)))
            if opcode & 0x0F == 8:
                writer.write(b"\x88\x00")
                await writer.drain()
                return
            answer = f"{self.name}:".encode() + data
            long = len(answer) > 125
            size_bytes = bytes([126]) + len(answer).to_bytes(2, "big") if long else bytes([len(answer)])
            writer.write(b"\x81" + size_bytes + answer)
            await writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:9101", help="host:port, or unix:/path")
    parser.add_argument("--name", default="blue")
    parser.add_argument("--version", default="v1")
    options = parser.parse_args()
    app = App(options.name, options.version)
    if options.listen.startswith("unix:"):
        server = await asyncio.start_unix_server(app.serve, options.listen.removeprefix("unix:"))
    else:
        host, _, port = options.listen.rpartition(":")
        server = await asyncio.start_server(app.serve, host.strip("[]"), int(port), backlog=1024)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"{options.name} {options.version} listens on {options.listen}", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
