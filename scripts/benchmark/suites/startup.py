"""What a command takes in a shell, next to Python that imports click and does nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

from scripts.benchmark import programs, services, timing
from scripts.benchmark.bench import Bench

GROUP = "A command in a shell"
GREEN = "lbswitch green / blue"
_BASE = "python -c 'import click'"


def run(bench: Bench) -> None:
    """`green` and `blue` in turn, so that each of them is a switch."""
    balancer = bench.balancers[0]
    with (
        bench.servers() as servers,
        services.agent(bench, services.many(balancer, 1, servers)) as agent,
    ):
        lbswitch = [*_console_script(), "--config", str(agent.config_path)]
        colors = itertools.cycle(("green", "blue"))

        def run_of(*arguments: str) -> Callable[[], None]:
            return timing.command([*lbswitch, *arguments], agent.env)

        calls = {
            _BASE: timing.command([sys.executable, "-c", "import click"], agent.env),
            "lbswitch --version": run_of("--version"),
            "lbswitch status": run_of("status"),
            "lbswitch status --json": run_of("status", "--json"),
            GREEN: lambda: run_of(next(colors))(),
        }
        samples = timing.in_turns(calls, 5 if bench.is_quick else 30)
    for name, taken in samples.items():
        bench.record.add(GROUP, name, "ms", taken, of=None if name == _BASE else _BASE)


def _console_script() -> list[str]:
    """The program that pip installed."""
    found = programs.beside_python("lbswitch")
    if found is None:
        raise RuntimeError("lbswitch is not installed beside this Python")
    return [found]
