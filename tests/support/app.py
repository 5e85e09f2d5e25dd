"""The example application as a process of its own."""

import contextlib
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.support.ports import free_port
from tests.support.wait import wait_until

_PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "app" / "app.py"


class App:
    """One application on a port of its own: `start`, `stop`, `fail`."""

    def __init__(self, name: str, version: str = "v1", port: int | None = None, log: Path | None = None) -> None:
        self.name, self.version, self.log = name, version, log
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "App":
        argv = [sys.executable, str(_PROGRAM), "--listen", self.address, "--name", self.name, "--version", self.version]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.log.open("ab")) if self.log else None  # None: this process's stderr
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        wait_until(lambda: self.get("/version"), f"{self.name} listens on {self.address}")
        return self

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
            return answer.read().decode()

    def fail(self, *, health: int = 0, traffic: int = 0, text: str = "failing") -> None:
        """From now on answer so; 0 heals."""
        query = f"health={health}&traffic={traffic}&text={text}"
        urllib.request.urlopen(
            urllib.request.Request(f"http://{self.address}/fail?{query}", method="POST"), timeout=5
        ).close()

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "App":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
