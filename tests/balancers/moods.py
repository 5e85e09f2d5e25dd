"""An application inside the test process that can be told to fail, and remembers what it was asked."""

import http.server
import socket
import socketserver
import struct
import threading
from collections import Counter
from typing import Self


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: "Moody"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: the test looks at `asked`."""

    def _answer(self) -> None:
        self.server.asked[self.command, self.path] += 1
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        mood = self.server.mood
        if mood == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.close_connection = True
            return
        if mood == "hang":
            self.server.healed.wait(20)
            self.close_connection = True
            return
        text = f"{self.server.name} {len(body)}\n".encode()
        self.send_response(mood if isinstance(mood, int) else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_OPTIONS = do_PUT = do_DELETE = do_POST = do_PATCH = do_FETCH = _answer  # noqa: N815


class Moody(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """`mood` is a status, `hang` or `reset`, None when all is well; `asked` counts requests by method and path."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        self.name = name
        self.mood: int | str | None = None
        self.asked: Counter[tuple[str, str]] = Counter()
        self.healed = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def count(self, method: str) -> int:
        """Requests with this method."""
        return sum(count for (asked, _), count in self.asked.items() if asked == method)

    def handle_error(self, request: object, client_address: object) -> None:
        """A balancer that gave up waiting has closed the connection."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._thread.is_alive():
            self.healed.set()
            self.shutdown()
            self._thread.join()
            self.server_close()
