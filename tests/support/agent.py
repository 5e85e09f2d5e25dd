"""A real agent as a process of its own, with the balancer it manages: the fixture of every end-to-end test."""

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil
import yaml

from tests.support.wait import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "import sys; sys.argv[0] = 'lbswitch'; from lbswitch.cli.main import main; sys.exit(main())"


class Said(NamedTuple):
    """What a command said: its exit code, and its output as a JSON value if it is one, else as text."""

    code: int
    output: Any


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose unix sockets have short names (the system allows 107 bytes) and that workers may enter."""
    directory = make_short_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_short_directory() -> Path:
    """As `short_directory`, for the caller to remove."""
    directory = Path(tempfile.mkdtemp(prefix="lbs", dir="/tmp"))
    directory.chmod(0o755)
    return directory


class Agent:
    """`lbswitch agent` in a directory: `start`, `lbswitch`, `http`, `kill`, `stop`, `balancer_stop`,
    `close`.

    As a context manager it starts at once, prints the agent's log when the block failed, and at the end stops agent and
    balancer and removes the directory if it made it.
    """

    def __init__(
        self, directory: Path | None, config: Mapping[str, Any], *, env: Mapping[str, str] | None = None
    ) -> None:
        """`config` is the document of lbswitch.yaml; state_dir and socket lie in `directory` unless it names them."""
        self._is_ours = directory is None
        self.directory = make_short_directory() if directory is None else directory
        self.config_path = self.directory / "lbswitch.yaml"
        self.socket = self.directory / "agent.sock"
        self.state_dir = self.directory / "state"
        self.log_path = self.directory / "agent.log"
        self.env = {**_environment(), **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace lbswitch.yaml; a running agent sees it."""
        document = {"agent": {}, **deepcopy(dict(config))}
        agent = document["agent"]
        self.state_dir = Path(agent.setdefault("state_dir", str(self.state_dir)))
        self.socket = Path(agent.setdefault("socket", str(self.socket)))
        temporary = self.config_path.with_suffix(".new")
        temporary.write_text(yaml.safe_dump(document, sort_keys=False, default_flow_style=None))
        temporary.rename(self.config_path)

    @property
    def pid(self) -> int:
        """The process id of the running agent. Raises: RuntimeError."""
        if self._process is None:
            raise RuntimeError("the agent does not run")
        return self._process.pid

    def start(self, timeout_s: float = 20.0) -> Self:
        """Start the agent and wait until it says it is ready. Raises: AssertionError with the agent's log."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.argv, "agent"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, "the agent is ready", timeout_s)
        except BaseException as error:
            text = self.log()
            self.close()
            raise AssertionError(f"{error}\n--- log of the agent\n{text}") from error
        return self

    @property
    def argv(self) -> list[str]:
        """The command line of `lbswitch` with this agent's configuration, for a command to follow."""
        return [sys.executable, "-c", _PROGRAM, "--config", str(self.config_path)]

    def lbswitch(self, *arguments: str, timeout_s: float = 60.0) -> Said:
        """Run a command of lbswitch; text is stdout with stderr after it. Raises: subprocess.TimeoutExpired."""
        done = subprocess.run(
            [*self.argv, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=timeout_s,
            check=False,
        )
        try:
            return Said(done.returncode, json.loads(done.stdout))
        except ValueError:
            return Said(done.returncode, done.stdout + done.stderr)

    def http(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and body (JSON value or text) of a request to the agent's socket. Raises: OSError."""
        with contextlib.closing(_UnixConnection(self.socket)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def status(self, service: str) -> dict[str, Any]:
        """The Status object of one service. Raises: AssertionError."""
        code, document = self.http("GET", f"/v1/services/{service}")
        assert code == 200, document
        return dict(document)

    def log(self) -> str:
        """What the agent has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def kill(self) -> None:
        """End the agent as a crash would (SIGKILL); the balancer goes on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the agent as systemd would (SIGTERM); the balancer goes on."""
        self._end(signal.SIGTERM)

    def balancer_stop(self) -> int:
        """Stop the balancer; what is left of it after that is killed, and counted in the answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.lbswitch("balancer", "stop", timeout_s=20)
        return self.balancer_kill()

    def balancer_kill(self) -> int:
        """Kill the balancer, and say how many processes that were."""
        left = self.balancer_processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        return len(left)

    def balancer_processes(self) -> list[psutil.Process]:
        """The balancer's processes: those that name this directory on their command line, and their children."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            if not any(str(self.directory) in argument for argument in process.info["cmdline"] or ()):
                continue
            if process.pid == os.getpid() or (self._process is not None and process.pid == self._process.pid):
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(("nginx", "haproxy")):
                    found |= {one.pid: one for one in [process, *process.children(recursive=True)]}
        return list(found.values())

    def close(self) -> None:
        """Stop everything and remove the directory if it is this object's own."""
        try:
            self.stop()
        finally:
            self.balancer_kill()
            if self._is_ours:
                shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            print(f"--- log of the agent\n{self.log()}", file=sys.stderr)
        self.close()

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise _Ended(f"the agent ended with {self._process and self._process.returncode}")
        return self.http("GET", "/readyz")[0] == 200

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the agent did not end within 20 s of signal {number}\n{self.log()}") from None


class _Ended(BaseException):
    """Not worth waiting any longer; passes through `wait_until`."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path
        self.sock: socket.socket

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _environment() -> dict[str, str]:
    """This process's, without settings of lbswitch, and with lbswitch importable where it is not installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LBSWITCH_")}
    if importlib.util.find_spec("lbswitch") is None or "PYTHONPATH" in environment:
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(_ROOT / "agent") + (os.pathsep + before if before else "")
    return environment
