"""Nothing lost: many requests and many switches, also as fast as they can follow each other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from scripts.benchmark.bench import Bench
from scripts.benchmark.suites.switch import Plan, Taken, record_losses, turn
from scripts.benchmark.systems.agents import HaproxyMap, NginxPointer
from scripts.benchmark.systems.catalog import BY_RELOAD, of_balancers
from scripts.benchmark.systems.system import System, other
from scripts.benchmark.traffic import Traffic

WITHOUT_RELOAD = "Nothing lost: without a reload"
WITH_RELOAD = "Lost by reloads"
RATE = "Nothing lost: switches"

_RATE = 6000
_PAUSE_S = 0.1
_BEARABLE = 3  # failed switches
_LIMIT_S = 150.0  # for one system, however slow the machine


def run(bench: Bench) -> None:
    """Pointer and map until half a million requests each; then switches by reload, next to those by hand."""
    requests = 24_000 if bench.is_quick else 520_000
    with bench.servers() as servers:
        for system in of_balancers((NginxPointer, HaproxyMap), bench.balancers):
            with bench.survive(f"zero: {system.name}"), bench.running(system, servers) as running:
                _without_reload(bench, running, requests)
        for reloading in of_balancers(BY_RELOAD, bench.balancers) if not bench.is_quick else ():
            with bench.survive(f"zero: {reloading.name}"), bench.running(reloading, servers) as running:
                _with_reload(bench, running)


def _without_reload(bench: Bench, system: System, requests: int) -> None:
    """The first half of the requests with a pause after each switch, the second half with none."""
    switches = Switches()
    began = time.monotonic()
    with Traffic(system.port, rate=_RATE) as traffic:
        while (answered := traffic.answered()) < requests and time.monotonic() - began < _LIMIT_S:
            for _ in range(10):
                switches.make(system, _PAUSE_S if answered < requests / 2 else 0.0)
    record_losses(bench, WITHOUT_RELOAD, system.name, switches.paused + switches.at_once, traffic.totals)
    bench.record.count(RATE, system.name, after_100_ms=switches.paused, at_once=switches.at_once)
    if switches.failed:
        raise RuntimeError(f"{len(switches.failed)} switches failed, the first one: {switches.failed[0]}")


@dataclass(slots=True)
class Switches:
    """How many there were, and what those said that failed."""

    paused: int = 0
    at_once: int = 0
    failed: list[str] = field(default_factory=list)

    def make(self, system: System, pause_s: float) -> None:
        """One, and a pause after it. Raises: RuntimeError when the fourth one fails."""
        try:
            system.switch(other(system.live))
        except RuntimeError as error:
            self.failed.append(str(error))
            if len(self.failed) > _BEARABLE:
                raise
        if pause_s:
            time.sleep(pause_s)
            self.paused += 1
        else:
            self.at_once += 1


def _with_reload(bench: Bench, system: System) -> None:
    """Twenty reloads with a load that opens many connections and keeps many open."""
    taken = Taken()
    turn(system, Plan(20, warm_up=0), taken)
    record_losses(bench, WITH_RELOAD, system.name, taken.switches, taken.totals)
