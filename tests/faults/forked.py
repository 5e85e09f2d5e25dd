"""An agent whose every step can be struck, and that starts in a moment: see `zygote`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.faults.shim import CONTROL_SIZE, library
from tests.support.agent import Agent, Said
from tests.support.wait import wait_until

_ROOT = Path(__file__).resolve().parents[2]


class Forked(Agent):
    """An `Agent` of a zygote with the shim; `lbswitch` runs commands as forks of it, too."""

    def __init__(self, directory: Path, config: Mapping[str, Any], below: list[Path]) -> None:
        """`below` are the directories in which files may be made to fail."""
        self.control = directory / "control"
        self.control.write_bytes(bytes(CONTROL_SIZE))
        self._tmp = directory / "tmp"
        self._tmp.mkdir()
        extra = {
            "FAULTS_CONTROL": str(self.control),
            "FAULTS_BELOW": ":".join(map(str, below)),
            "LD_PRELOAD": str(library(directory)),
            "TMPDIR": str(self._tmp),
        }
        super().__init__(directory, config, env=extra)
        self._pid: int | None = None
        self._zygote: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        if self._pid is None:
            raise RuntimeError("the agent does not run")
        return self._pid

    def start(self, timeout_s: float = 40.0) -> Self:
        """Start the agent and wait until it is ready. Raises: AssertionError with the end of its log."""
        since = len(self.log())
        self._pid = self._run({"run": "agent", "config": str(self.config_path), "out": str(self.log_path)})
        try:
            wait_until(self._is_there, "the agent is ready", timeout_s)
        except BaseException as error:
            self._end(signal.SIGKILL)
            raise AssertionError(f"{error}\n--- log of the agent\n{self.log()[since:]}") from error
        return self

    def _is_there(self) -> bool:
        if self._pid is None or not self.is_alive():
            raise _Ended("the agent ended")
        return self.http("GET", "/readyz")[0] == 200

    def is_alive(self) -> bool:
        """Whether the agent runs; one that ended is forgotten."""
        if self._pid is not None and self._ask({"poll": self._pid})["code"] is not None:
            self._pid = None
        return self._pid is not None

    def lbswitch(self, *arguments: str, timeout_s: float = 60.0) -> Said:
        """Run a command of lbswitch. Raises: AssertionError when it does not end in time."""
        with tempfile.TemporaryDirectory(dir=self._tmp) as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            words = ["--config", str(self.config_path), *arguments]
            pid = self._run({"run": "cli", "arguments": words, "out": str(out), "err": str(err)})
            code = self._code(pid, timeout_s)
            text = out.read_text()
            try:
                return Said(code, json.loads(text))
            except ValueError:
                return Said(code, text + err.read_text())

    def _code(self, pid: int, timeout_s: float) -> int:
        found: list[int] = []

        def has_ended() -> bool:
            code = self._ask({"poll": pid})["code"]
            if code is not None:
                found.append(code)
            return bool(found)

        try:
            wait_until(has_ended, "the command ends", timeout_s)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        return found[0]

    def _end(self, number: int) -> None:
        pid, self._pid = self._pid, None
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        try:
            self._code(pid, 30.0)
        except AssertionError:
            raise AssertionError(
                f"the agent did not end within 30 s of signal {number}\n{self.log()[-4000:]}"
            ) from None

    def close(self) -> None:
        try:
            super().close()
        finally:
            zygote, self._zygote = self._zygote, None
            if zygote is not None:
                zygote.communicate(timeout=30)

    # -- the zygote ------------------------------------------------------------------------------------------

    def _run(self, request: dict[str, Any]) -> int:
        return int(self._ask(request)["pid"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._zygote is None:
            self._zygote = self._begun()
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return self._answer(self._zygote)

    def _begun(self) -> subprocess.Popen[str]:
        environment = {**self.env, "PYTHONPATH": os.pathsep.join([str(_ROOT), self.env.get("PYTHONPATH", "")])}
        argv = [sys.executable, "-m", "tests.faults.zygote"]
        zygote = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self._answer(zygote)
        return zygote

    @staticmethod
    def _answer(zygote: subprocess.Popen[str]) -> dict[str, Any]:
        assert zygote.stdout is not None
        line = zygote.stdout.readline()
        if not line:
            raise RuntimeError(f"the zygote ended with {zygote.wait()}")
        document: dict[str, Any] = json.loads(line)
        return document


class _Ended(BaseException):
    """Not worth waiting any longer; passes through `wait_until`."""
