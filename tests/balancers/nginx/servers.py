"""Small HTTP servers inside the test process: they remember what they were asked."""

import http.server
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    server: "Server"

    def address_string(self) -> str:
        return "peer"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: the test looks at `seen`."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, self.headers))
        if self.path == "/drop":  # as a server that dies after it read the request
            self.close_connection = True
            return
        body = f"{self.server.name}\n".encode()
        self.send_response(200)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the base class's names


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers its name. `GET /drop` reads the request and closes the connection. `seen` is (method, path, headers)."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, name: str, address: tuple[str, int] | Path = ("127.0.0.1", 0), **headers: str) -> None:
        self.name, self.headers, self.seen = name, {k.replace("_", "-"): v for k, v in headers.items()}, []
        if isinstance(address, Path):
            self.address_family = socket.AF_UNIX
            super().__init__(str(address), _Handler)
            address.chmod(0o666)
            self.address = f"unix:{address}"
        else:
            self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            super().__init__(address, _Handler)
            host, port = self.server_address[:2]
            self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
