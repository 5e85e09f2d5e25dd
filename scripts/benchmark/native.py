"""The load generator and the application to balance, both in C: `load.c` and `origin.c` say what they do.

    with Origin("blue") as blue, Origin("green") as green, NativeLoad(port, rate=4000) as load:
        at_ns = time.monotonic_ns()
        ...                                   # switch the balancer in front of them
        load.switch("blue", "green", at_ns)   # at once, or up to 10 s later
        ...
        report = load.stop()                  # every request has ended
    report["phases"][-1]["last_old_ms"]

They are compiled when first used, into a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Self, TypedDict, cast

from tests.support.ports import free_port

__all__ = ["Counts", "Failure", "NativeLoad", "Origin", "Phase", "Report", "Spread", "build"]

_SOURCES = Path(__file__).resolve().parent
_CACHE = _SOURCES.parents[1] / "build" / "native"
_PROGRAMS = ("load", "origin")
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
_STOP_S = 30.0


class Spread(TypedDict):
    """Milliseconds; None when nothing was measured."""

    p50: float | None
    p99: float | None
    max: float | None


class Counts(TypedDict):
    """What `load.c` counted: `answered` by color, `lost` by kind."""

    sent: int
    answered: dict[str, int]
    lost: dict[str, int]
    reopened: int
    skipped: int
    old_after: int
    streams_started: int
    streams_done: int
    streams_broken: int
    ws_opened: int
    ws_done: int
    ws_broken: int
    ws_frames: int
    latency_ms: Spread
    late_ms: Spread


# "from" is a word of Python, so these are not in the body of the class.
_Colors = TypedDict("_Colors", {"from": str | None, "to": str | None})


class Phase(Counts, _Colors):
    """From its beginning `at_ns` to the next one's, `until_ns`; `from` and `to` are the colors of a switch.

    `first_new_ms` is when the first answer of the new color came, after `at_ns`; None: there was none. `old_after`
    requests were sent after `at_ns` and answered by the old color: `last_old_ms` is when the last of them was sent,
    `last_old_answered_ms` when the last answer came.
    """

    name: str
    at_ns: int
    until_ns: int
    first_new_ms: float | None
    last_old_ms: float | None
    last_old_answered_ms: float | None


class Failure(TypedDict):
    """One lost request, or broken stream or WebSocket. `what` is kept, new, stream or websocket."""

    what: str
    kind: str
    color: str
    sent_ns: int
    at_ns: int


class Report(TypedDict):
    """Everything so far: requests sent are answered, lost, or `in_flight`. `failures` are the last 100."""

    phases: list[Phase]
    totals: Counts
    failures: list[Failure]
    in_flight: int
    duration_s: float
    cpu_s: float


def build(directory: Path | None = None) -> Path:
    """Compile what is not compiled yet; gives the directory of the programs `load` and `origin`.

    `directory` is a cache, by default `build/native` in the repository. Raises: RuntimeError.
    """
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for program in _PROGRAMS:
        digest.update((_SOURCES / f"{program}.c").read_bytes())
    built = (directory or _CACHE) / digest.hexdigest()[:16]
    for program in _PROGRAMS:
        if not (built / program).exists():
            _compile(program, built)
    return built


def _compile(program: str, into: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("the benchmark's load generator needs a C compiler: apt-get install gcc libc6-dev")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as directory:  # two that build at once do not see half a program
        made = Path(directory) / program
        argv = [compiler, *_FLAGS, "-o", str(made), str(_SOURCES / f"{program}.c")]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        if result.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed:\n{result.stderr}")
        made.replace(into / program)


class Origin:
    """An application that answers with its color: `start`, `stop`. It ends with the process that started it."""

    def __init__(self, name: str, port: int | None = None) -> None:
        self.name = name
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Raises: RuntimeError."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    def start(self) -> Self:
        """When this returns it listens. Raises: RuntimeError."""
        argv = [str(build() / "origin"), "--listen", self.address, "--name", self.name]
        self._process = process = _start(argv)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError(f"{self.name} could not listen on {self.address}")
        return self

    def mood(self, **settings: float) -> None:
        """From now on: `errors` of a thousand requests get a 500, all wait `delay_ms`, or `hang`. Raises: OSError.

        What is not named is 0. The health check knows nothing of it.
        """
        query = "&".join(f"{name}={value:g}" for name, value in settings.items())
        with urllib.request.urlopen(f"http://{self.address}/.mood?{query}", timeout=5) as answer:
            answer.read()

    def stop(self) -> None:
        """End it at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _close(process)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class NativeLoad:
    """The load generator. `start`, `switch`, `phase`, `report`, `stop`."""

    def __init__(
        self,
        port: int,
        *,
        rate: float = 4000,
        kept: int = 32,
        new_share: float = 0.5,
        streams: int = 20,
        stream_seconds: float = 5,
        websockets: int = 20,
        ws_every_ms: float = 100,
        timeout_ms: float = 5000,
        duration_s: float = 600,
        host: str | None = None,
        path: str = "/",
    ) -> None:
        """To 127.0.0.1:`port`; `rate` is in requests a second, `host` what the Host field says."""
        options: dict[str, object] = {
            "--target": f"127.0.0.1:{port}",
            "--rate": rate,
            "--kept": kept,
            "--new-share": new_share,
            "--streams": streams,
            "--stream-seconds": stream_seconds,
            "--websockets": websockets,
            "--ws-every-ms": ws_every_ms,
            "--timeout-ms": timeout_ms,
            "--duration": duration_s,
            "--path": path,
        }
        if host is not None:
            options["--host"] = host
        self._argv = [str(word) for option in options.items() for word in option]
        self._process: subprocess.Popen[str] | None = None
        self._last: Report | None = None

    @property
    def pid(self) -> int:
        """Raises: RuntimeError."""
        if self._process is None:
            raise RuntimeError("the load generator does not run")
        return self._process.pid

    def start(self) -> Self:
        """Begin to send; the first phase is called "start". Raises: RuntimeError."""
        self._process = _start([str(build() / "load"), *self._argv])
        self.now_ns()  # it runs
        return self

    def now_ns(self) -> int:
        """Its clock, which is `time.monotonic_ns()`."""
        return int(self._ask("now")["at_ns"])

    def switch(self, old: str, new: str, at_ns: int | None = None) -> int:
        """Begin a phase in which answers of `old` are late; gives the moment, which is `at_ns`, by default now.

        `at_ns` is at most 10 s ago, after the last phase's beginning and after the last `report`. Raises: RuntimeError.
        """
        return self._begin(f"switch {old} {new}", at_ns)

    def phase(self, name: str, at_ns: int | None = None) -> int:
        """Begin a phase in which no color is late; `name` has no spaces. See `switch`."""
        return self._begin(f"phase {name}", at_ns)

    def report(self) -> Report:
        """Everything so far; after `stop` the final report. Holds up the load for some ms."""
        return self._last if self._last is not None else cast("Report", self._ask("report"))

    def stop(self) -> Report:
        """Send no more, wait until every request has ended, and return the final report."""
        if self._last is None:
            self._last = cast("Report", self._ask("stop"))
        self.close()
        return self._last

    def close(self) -> None:
        """End the process without asking for its report."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._last is None:
            process.kill()
        _close(process)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, command: str, at_ns: int | None) -> int:
        return int(self._ask(command if at_ns is None else f"{command} {at_ns}")["at_ns"])

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the load generator does not run")
        with contextlib.suppress(BrokenPipeError):  # it may have ended by its duration, with a last report
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the load generator ended with {process.wait(_STOP_S)}; was its duration too short?")
        document: dict[str, Any] = json.loads(answer)
        if "error" in document:
            raise RuntimeError(f"the load generator refused `{line}`: {document['error']}")
        if "phases" in document and line not in ("report", "stop"):
            self._last = cast("Report", document)
            raise RuntimeError("the load generator has ended: its duration is over")
        return document


def _start(argv: list[str]) -> subprocess.Popen[str]:
    # A session of its own: a Ctrl-C is the parent's to handle. The pipe's end tells it when the parent is gone.
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _close(process: subprocess.Popen[str]) -> None:
    """Wait for its end, which has been asked for."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait(_STOP_S)
    process.stdout.close()
