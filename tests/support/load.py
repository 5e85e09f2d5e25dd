"""A client that sends requests all along, accounts for every single one, and never retries.

    load = Load("127.0.0.1", 8080, rate=500, connections=8, new_connections=0.5).start()
    load.mark("switch")                  # from here on counters and times belong to the phase "switch"
    ...
    report = load.stop()                 # every request has ended: report.sent == report.answered + report.lost
    report.phase("switch").lost          # 0
    report.phase("switch").by("blue").last_ms    # when the last answer of blue came, ms after the mark

The client is a process of its own, so that what is measured shares no interpreter lock with it, and ends by
itself after `duration_s` or when its parent is gone.

What counts as what:
- A request is *sent* when its first byte, or the connection made for it alone, is asked of the kernel.
- It is *answered* when a complete response with a status below 400 came. Everything else is *lost*, by kind: `refused`,
  `reset`, `closed` (the connection ended before the first byte of an answer), `truncated` (or in the middle of it),
  `timeout`, `garbled`, `unreachable`, `http_502` and so on.
- A keep-alive connection that the server closed while it was idle is opened again and counts as *reopened*, not as a
  loss. Whether it was closed is asked of the kernel right before the request is written (recv with MSG_PEEK): an end
  that arrived before is "while idle". One that arrives after the write costs the request: it is lost.
- A request belongs to the phase in which it ended, so those in flight at a mark count after it.
- Requests that were due while every kept connection was busy are sent as soon as one is free; past one second's worth
  they are given up and counted as `skipped`: never sent, so neither answered nor lost.

Memory does not grow with the number of requests: counters, first and last times per answering application, a histogram,
and the last failures. Times are `time.monotonic()`, which all processes of a Linux machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from tests.support.load_client import Plan
from tests.support.load_report import Answers, Failure, Phase, Report

__all__ = ["Answers", "Failure", "Load", "Phase", "Plan", "Report"]

_ROOT = Path(__file__).resolve().parents[2]


class Load:
    """The client, driven from another process. `start`, `mark`, `report`, `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        rate: float = 300.0,
        connections: int = 8,
        new_connections: float = 0.5,
        path: str = "/",
        timeout_s: float = 2.0,
        duration_s: float = 120.0,
    ) -> None:
        """`rate` is in requests a second; the share `new_connections` (0..1) of them get a connection of their own."""
        self.plan = Plan(host, port, rate, connections, new_connections, path, timeout_s, duration_s)
        self._process: subprocess.Popen[str] | None = None
        self._last: Report | None = None

    def start(self) -> Self:
        """Begin to send; the first phase is called "start"."""
        argv = [sys.executable, "-m", "tests.support.load_client", "--control", "--plan", json.dumps(asdict(self.plan))]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # a Ctrl-C is the parent's to handle
        )
        self._answer()  # it is ready
        return self

    def mark(self, name: str) -> float:
        """Begin a phase; returns its `time.monotonic()`. When this returns, what ends now belongs to the phase."""
        answer = self._ask(f"mark {name}")
        if "at_s" not in answer:
            raise RuntimeError(f"the load client ended after its {self.plan.duration_s:g} s")
        return float(answer["at_s"])

    def report(self) -> Report:
        """Everything so far; after `stop` the final report."""
        if self._last is not None:
            return self._last
        return Report.from_json(self._ask("report"))

    def stop(self) -> Report:
        """Send no more, wait until every request has ended, and return the final report."""
        if self._last is None:
            self._last = Report.from_json(self._ask("stop"))
        self.close()
        return self._last

    def close(self) -> None:
        """End the process without asking for its report."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if self._last is None:
            process.kill()
        process.wait(timeout=30)
        process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, line: str) -> dict[str, Any]:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the load client does not run")
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load client ended with {self._process.wait()}; was its duration too short?")
        document: dict[str, Any] = json.loads(line)
        return document
