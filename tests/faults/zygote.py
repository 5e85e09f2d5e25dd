"""Starts agents and commands at once: all of lbswitch is imported here one time, and each of them is a fork.

    python -m tests.faults.zygote          reads requests from stdin, one JSON document a line, and answers each

    {"run": "agent", "config": PATH, "out": PATH}                     -> {"pid": N}
    {"run": "cli", "arguments": [...], "out": PATH, "err": PATH}      -> {"pid": N}
    {"poll": N}                                                       -> {"code": N or null}; negative for a signal

An agent's `on_step` (the injected port of `run_agent`, which normal operation does not have) reads `faults.json` beside
its configuration at each step, and does what is ordered there:

    {"id": N, "orders": [{"step": "commit", "nth": 1, "do": "kill"}, ...], "patience": {"MODULE.NAME": SECONDS}}

`nth` counts the steps of that name in one operation, which begins with `gates`. `do` is `kill` (SIGKILL), `bug` (an
exception that nobody foresaw), `disk` with `control` (what `arm` takes), `stop` with `pid` (SIGSTOP), or `write` with
`files` (contents by path). The operation's steps are written to `steps.log`, and those at which an order was carried
out to `struck.log`. `patience` are constants of the product for how long it waits for something that hangs: minutes are
for operators, and a test of what comes after them needs only that they pass.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn


class Bug(Exception):
    """Of the kind that nobody foresaw."""


class Hook:
    """What `on_step` calls."""

    def __init__(self, directory: Path) -> None:
        self._orders = directory / "faults.json"
        self._steps = directory / "steps.log"
        self._struck = directory / "struck.log"
        self._lock = threading.Lock()
        self._id = 0
        self._transaction: FrameType | None = None
        self._seen: Counter[str] = Counter()

    def __call__(self, step: str) -> None:
        with self._lock:
            try:
                document = json.loads(self._orders.read_text())
            except FileNotFoundError:
                return
            if document["id"] != self._id and step == "gates":
                self._id, self._transaction, self._seen = document["id"], _transaction(), Counter()
            if document["id"] != self._id or _transaction() is not self._transaction:
                return  # of what the agent does by itself, maybe in the thread that did the operation
            self._seen[step] += 1
            _append(self._steps, step)
            orders = [each for each in document["orders"] if (each["step"], each["nth"]) == (step, self._seen[step])]
            if orders:
                _be_impatient(document["patience"])
            for order in orders:
                _append(self._struck, f"{step} {order['do']}")
                _do(order)


def _transaction() -> FrameType | None:
    """The call that does the whole operation in which a step is announced; None elsewhere."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_globals["__name__"] in ("lbswitch.switch", "lbswitch.restore"):
            found = frame
        frame = frame.f_back
    return found


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def _be_impatient(patience: dict[str, float]) -> None:
    for name, seconds in patience.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, seconds)
    if patience:
        from lbswitch.balancers.haproxy_runtime import Runtime

        for each in gc.get_objects():
            if type(each) is Runtime:
                each._timeout_s = min(each._timeout_s, min(patience.values()))


def _do(order: dict[str, Any]) -> None:
    match order["do"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bug":
            raise Bug("of the test")
        case "disk":
            arm(Path(os.environ["FAULTS_CONTROL"]), *order["control"])
        case "stop":
            os.kill(order["pid"], signal.SIGSTOP)
        case "write":
            for path, content in order["files"].items():
                Path(path).write_text(content)
        case other:
            raise ValueError(other)


def arm(control: Path, armed: int, error: int, once: int, skip: int) -> None:
    """Order the shim; the word that arms is written last."""
    descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, struct.pack("=6i", 0, error, once, skip, 0, 0), 0)
        os.pwrite(descriptor, struct.pack("=i", armed), 0)
    finally:
        os.close(descriptor)


def _import_all() -> None:
    """Everything that an agent or a command would import later."""
    import lbswitch

    for module in pkgutil.walk_packages(lbswitch.__path__, "lbswitch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("crossplane", "httpx", "psutil", "uvicorn.protocols.http.h11_impl", "watchdog.observers", "yaml"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _agent(request: dict[str, Any]) -> None:
    from lbswitch.wiring import run_agent

    config = Path(request["config"])
    run_agent(config, on_step=Hook(config.parent))


def _cli(request: dict[str, Any]) -> None:
    from lbswitch.cli.main import main

    sys.argv = ["lbswitch", *request["arguments"]]
    sys.exit(main())


def _fork(request: dict[str, Any], run: Callable[[dict[str, Any]], None]) -> int:
    pid = os.fork()
    if pid == 0:
        _be_child(request, run)
    return pid


def _be_child(request: dict[str, Any], run: Callable[[dict[str, Any]], None]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        err = os.open(request.get("err", request["out"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(old, new)
            os.close(old)
        run(request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _poll(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -1
    return None if found == 0 else os.waitstatus_to_exitcode(status)


def main() -> None:
    """Until stdin ends; then agents that are left are ended, too."""
    _import_all()
    children: set[int] = set()
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            code = _poll(request["poll"])
            if code is not None:
                children.discard(request["poll"])
            answer: dict[str, Any] = {"code": code}
        else:
            pid = _fork(request, {"agent": _agent, "cli": _cli}[request["run"]])
            children.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
