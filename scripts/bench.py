"""The measurements behind `scripts/bench`.

Every figure is a list of samples, shown as median, 5th and 95th percentile and number. What is compared is measured in
turns (one of this, one of that), so that a busy moment of the machine meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tests.support.agent import Agent
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

from lbswitch import __version__

ROOT = Path(__file__).resolve().parents[1]
_SWITCH = "Switch: "
STEPS = ("gates", "render", "commit", "verify", "total")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity. `case` says of what, `of` compares it with the figure of that case in the same group."""

    group: str
    case: str
    unit: str
    samples: tuple[float, ...]
    of: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, share: float) -> float:
        """Nearest rank."""
        return sorted(self.samples)[max(0, math.ceil(share * len(self.samples)) - 1)]

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "case": self.case,
            "unit": self.unit,
            "median": round(self.median, 3),
            "p5": round(self.quantile(0.05), 3),
            "p95": round(self.quantile(0.95), 3),
            "samples": len(self.samples),
            "compared_with": self.of,
        }


class Bench:
    """Runs the suites and collects the figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.figures: list[Figure] = []
        self.versions: dict[str, str] = {}
        self.load_before = os.getloadavg()[0]

    def add(self, group: str, case: str, unit: str, samples: Sequence[float], of: str | None = None) -> None:
        self.figures.append(Figure(group, case, unit, tuple(samples), of))
        print(_line(self.figures[-1], self.figures), file=sys.stderr, flush=True)

    # -- (a) command start-up

    def startup(self) -> None:
        """A command asks a running agent, next to Python that imports click and does nothing."""
        group = "Start-up of a command"
        with App("blue") as blue, App("green") as green, Agent(None, _config("nginx", 1, blue, green)) as agent:
            self._remember_version("nginx", agent)
            commands = {
                "python -c 'import click'": [sys.executable, "-c", "import click"],
                "lbswitch --version": [*agent.argv, "--version"],
                "lbswitch status": [*agent.argv, "status"],
                "lbswitch status --json": [*agent.argv, "status", "--json"],
            }
            rounds = 5 if self.options.quick else 25
            samples = _in_turns({name: _command(argv, agent) for name, argv in commands.items()}, rounds)
        for name, taken in samples.items():
            self.add(group, name, "ms", taken, of=next(iter(commands)) if name != next(iter(commands)) else None)

    # -- (b) what a switch costs

    def switch(self) -> None:
        """One service of many is switched over the API; then all of them at once."""
        counts = (1, 10, 100) if self.options.quick else (1, 10, 100, 1000)
        with App("blue") as blue, App("green") as green:
            for balancer in self.options.balancer:
                for count in counts:
                    self._switch_among(balancer, count, blue, green)
                self._switch_by_reload(balancer, blue, green)

    def _switch_among(self, balancer: str, count: int, blue: App, green: App) -> None:
        way = "pointer" if balancer == "nginx" else "map"
        with self._agent(balancer, count, blue, green) as agent:
            rounds = 6 if self.options.quick else 30
            one = [_switch(agent, "/v1/services/s0/switch", to) for to in _alternately(rounds)]
            self._add_switches(f"{balancer} {way}: switch 1 of {count}", one)
            if count > 1:
                rounds = 4 if self.options.quick else 10
                everything = [_switch(agent, "/v1/switch", to) for to in _alternately(rounds)]
                self._add_switches(f"{balancer} {way}: switch all {count}", everything)

    def _switch_by_reload(self, balancer: str, blue: App, green: App) -> None:
        """The other way of switching, which the first one is there to avoid."""
        with self._agent(balancer, 1, blue, green, switching="reload") as agent:
            rounds = 4 if self.options.quick else 20
            taken = [_switch(agent, "/v1/services/s0/switch", to) for to in _alternately(rounds)]
            way = "pointer" if balancer == "nginx" else "map"
            self._add_switches(f"{balancer} reload: switch 1 of 1", taken, of=f"{balancer} {way}: switch 1 of 1")

    def _add_switches(self, case: str, taken: Sequence[Mapping[str, float]], of: str | None = None) -> None:
        for step in ("request", *STEPS):
            self.add(f"{_SWITCH}{step}", case, "ms", [one[step] for one in taken], of=of)

    # -- (c) what the agent costs

    def agent(self) -> None:
        """Idle memory and CPU with 20 servers checked every second; start and check with many services."""
        with contextlib.ExitStack() as stack:
            apps = [stack.enter_context(App(f"app{number}")) for number in range(20)]
            for balancer in self.options.balancer:
                self._idle(balancer, apps)
        count = 100 if self.options.quick else 1000
        with App("blue") as blue, App("green") as green:
            for balancer in self.options.balancer:
                self._start_and_check(balancer, count, blue, green)

    def _idle(self, balancer: str, apps: Sequence[App]) -> None:
        seconds, windows = (2, 2) if self.options.quick else (5, 6)
        config = _config(balancer, 1, apps[0], apps[1], interval="1s")
        addresses = [app.address for app in apps]
        config["services"]["s0"] |= {"blue": {"servers": addresses[:10]}, "green": {"servers": addresses[10:]}}
        with Agent(None, config) as agent:
            self._remember_version(balancer, agent)
            wait_until(lambda: _is_healthy(agent), "all servers are healthy", 30)
            process = psutil.Process(agent.pid)
            cpu, memory = [], []
            for _ in range(windows):
                process.cpu_percent()
                time.sleep(seconds)
                cpu.append(process.cpu_percent())
                memory.append(process.memory_info().rss / 2**20)
        case = f"{balancer}, {len(apps)} servers checked every second"
        self.add("Agent at rest: CPU", case, "% of a core", cpu)
        self.add("Agent at rest: memory", case, "MiB", memory)

    def _start_and_check(self, balancer: str, count: int, blue: App, green: App) -> None:
        rounds = 2 if self.options.quick else 3
        ready, checked, memory = [], [], []
        for _ in range(rounds):
            with self._agent(balancer, count, blue, green, is_started=False) as agent:
                checked.append(_timed(_command([*agent.argv, "check"], agent, timeout_s=120)))
                ready.append(_timed(lambda agent=agent: agent.start(timeout_s=120)))  # type: ignore[misc]
                memory.append(psutil.Process(agent.pid).memory_info().rss / 2**20)
        case = f"{balancer}, {count} services"
        self.add("lbswitch check", case, "ms", checked)
        self.add("lbswitch agent until ready, balancer started", case, "ms", ready)
        self.add("Agent memory when ready", case, "MiB", memory)

    # -- shared

    @contextlib.contextmanager
    def _agent(
        self, balancer: str, count: int, blue: App, green: App, *, is_started: bool = True, switching: str | None = None
    ) -> Iterator[Agent]:
        agent = Agent(None, _config(balancer, count, blue, green, switching=switching))
        try:
            if is_started:
                agent.start(timeout_s=120)
                wait_until(lambda: _is_healthy(agent), "all servers are healthy", 60)
            self._remember_version(balancer, agent)
            yield agent
        finally:
            agent.close()

    def _remember_version(self, balancer: str, agent: Agent) -> None:
        if balancer not in self.versions:
            self.versions[balancer] = str(agent.lbswitch("check", "--json", timeout_s=120).output["version"])

    def document(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "lbswitch": __version__,
            "quick": self.options.quick,
            "machine": {
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "cpu": _cpu_model(),
                "cores": os.cpu_count(),
                "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
                "load_average": f"{self.load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
                "python": platform.python_version(),
                **self.versions,
            },
            "figures": [figure.to_json() | {"ratio": _ratio(figure, self.figures)} for figure in self.figures],
        }


# Configurations and requests


def _config(
    balancer: str, count: int, blue: App, green: App, *, interval: str = "60s", switching: str | None = None
) -> dict[str, Any]:
    service: dict[str, Any] = {
        "blue": {"servers": [blue.address]},
        "green": {"servers": [green.address]},
        "health": {"interval": interval, "timeout": "5s", "rise": 1},
        "failover": {"enabled": False},
    }
    if switching is not None:
        service["switching"] = switching
    ports = _free_ports(count)
    return {
        "balancer": {"kind": balancer},
        "services": {f"s{number}": {"bind": f"127.0.0.1:{port}", **service} for number, port in enumerate(ports)},
    }


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; too many to lock each one."""
    if count <= 10:
        return [free_port() for _ in range(count)]
    found = []
    for port in range(10000, 20000):  # below those that tests take
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"there are not {count} free ports between 10000 and 20000")


def _is_healthy(agent: Agent) -> bool:
    _, document = agent.http("GET", "/v1/services")
    return all(
        service[color]["healthy"] == service[color]["total"]
        for service in document["services"].values()
        for color in ("blue", "green")
    )


def _alternately(rounds: int) -> Iterator[str]:
    for number in range(rounds):
        yield ("green", "blue")[number % 2]


def _switch(agent: Agent, path: str, to: str) -> dict[str, float]:
    """Milliseconds of the request and of the steps in it (the slowest of the operations). Raises: RuntimeError."""
    began = time.perf_counter()
    code, document = agent.http("POST", path, {"to": to})
    request = (time.perf_counter() - began) * 1000
    operations = document.get("operations", [document])
    if code != 200 or any(operation["state"] != "done" for operation in operations):
        raise RuntimeError(f"POST {path} to {to}: HTTP {code}: {json.dumps(document)[:500]}")
    return {"request": request} | {step: max(one["timings_ms"][step] for one in operations) for step in STEPS}


# Measuring


def _command(argv: Sequence[str], agent: Agent, timeout_s: float = 30) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(argv, capture_output=True, env=agent.env, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{argv[-2:]} ended with {done.returncode}: {done.stderr.decode()[-500:]}")

    return run


def _timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def _in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, one of each per round; the first round warms up and does not count."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken = _timed(call)
            if turn:
                samples[name].append(taken)
    return samples


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


# Showing


def _ratio(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Its median divided by that of what it is compared with."""
    for other in figures:
        if other.group == figure.group and other.case == figure.of and other.median:
            return round(figure.median / other.median, 2)
    return None


def _line(figure: Figure, figures: Sequence[Figure]) -> str:
    ratio = _ratio(figure, figures)
    return (
        f"{figure.group}: {figure.case}: {figure.median:.2f} {figure.unit} "
        f"({figure.quantile(0.05):.2f}-{figure.quantile(0.95):.2f}, n={len(figure.samples)})"
        + (f", {ratio:g}x {figure.of}" if ratio is not None else "")
    )


def _markdown(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    lines = [
        f"# Measurements of lbswitch {document['lbswitch']}",
        "",
        "Written by `scripts/bench`; the figures as JSON are in the file beside this one. Times on a shared machine",
        "say what is cheap, what is not, and how it grows; they are no promise for another machine.",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
    ]
    for group in dict.fromkeys(figure["group"] for figure in document["figures"]):
        mine = [figure for figure in document["figures"] if figure["group"] == group]
        if group == f"{_SWITCH}request":
            lines += _switch_table([one for one in document["figures"] if one["group"].startswith(_SWITCH)])
        elif not group.startswith(_SWITCH):
            lines += [f"## {group} ({mine[0]['unit']})", ""]
            lines += ["| | median | p5 | p95 | samples | ratio |", "|---|---:|---:|---:|---:|---|"]
            lines += [*(_row(figure) for figure in mine), ""]
    return "\n".join(lines)


def _switch_table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each case: the request with its spread, and the medians of the steps in it."""
    lines = [
        "## A switch (ms)",
        "",
        "The request is a POST to the agent's unix socket; the steps are the operation's own `timings_ms` (medians; of",
        "several services the slowest). `verify` ends when the listener showed the new generation three times.",
        "",
        "| | request: median (p5-p95) | " + " | ".join(STEPS) + " | samples | ratio |",
        "|---|---:|" + "---:|" * len(STEPS) + "---:|---|",
    ]
    cells = {(figure["group"].removeprefix(_SWITCH), figure["case"]): figure for figure in figures}
    for case in dict.fromkeys(figure["case"] for figure in figures):
        request = cells["request", case]
        steps = " | ".join(f"{cells[step, case]['median']:.1f}" for step in STEPS)
        spread = f"{request['median']:.1f} ({request['p5']:.1f}-{request['p95']:.1f})"
        lines.append(f"| {case} | {spread} | {steps} | {request['samples']} | {_against(request)} |")
    return [*lines, ""]


def _against(figure: Mapping[str, Any]) -> str:
    return "" if figure["ratio"] is None else f"{figure['ratio']:g}x {figure['compared_with']}"


def _row(figure: Mapping[str, Any]) -> str:
    numbers = " | ".join(f"{figure[name]:.1f}" for name in ("median", "p5", "p95"))
    return f"| {figure['case']} | {numbers} | {figure['samples']} | {_against(figure)} |"


def main() -> None:
    options = _options()
    bench = Bench(options)
    for suite in options.only:
        getattr(bench, suite)()
    document = bench.document()
    output = options.output or (None if options.quick else ROOT / "docs" / "bench")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{__version__}.json").write_text(json.dumps(document, indent=1) + "\n")
        (output / f"{__version__}.md").write_text(_markdown(document))
    print(_markdown(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=("startup", "switch", "agent"))
    parser.add_argument("--balancer", action="append", choices=("nginx", "haproxy"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.only = options.only or ["startup", "switch", "agent"]
    options.balancer = options.balancer or ["nginx", "haproxy"]
    return options


if __name__ == "__main__":
    main()
