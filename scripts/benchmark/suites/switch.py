"""The comparison: what clients see of a switch, by lbswitch, by hand and by others, under the same load."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from scripts.benchmark.bench import Bench
from scripts.benchmark.systems.catalog import SYSTEMS, of_balancers
from scripts.benchmark.systems.system import System, other
from scripts.benchmark.traffic import RATE, Seen, Totals, Traffic

COMMAND = "Switch: command"
FIRST_NEW = "Switch: first new answer"
LAST_OLD = "Switch: last old answer"
WORST = "Switch: slowest request"
LOST = "Switch: lost and broken"

_WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many switches in a turn. Those that warm up come first, and count only for what is lost.

    `pace` shortens the pause after each; `rate` is in requests a second.
    """

    switches: int
    warm_up: int = 2
    pace: float = 1.0
    rate: int = RATE


@dataclass(slots=True)
class Taken:
    """All switches of one system."""

    command_ms: list[float] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    switches: int = 0


def run(bench: Bench) -> None:
    """A few switches of each system, then of each again: a busy moment of the machine meets several of them."""
    turns, plan = (1, Plan(4, 1, 0.6)) if bench.is_quick else (2, Plan(12))
    systems = of_balancers(SYSTEMS, bench.balancers)
    taken = {system: Taken() for system in systems}
    try:
        with bench.servers() as servers:
            for _ in range(turns):
                for system in systems:
                    if system.name not in bench.record.left_out:
                        with bench.survive(system.name), bench.running(system, servers) as running:
                            turn(running, plan, taken[system])
    finally:  # also what was measured until time was over
        for system, all_of_it in taken.items():
            _record(bench, system.name, all_of_it)


def turn(system: System, plan: Plan, taken: Taken) -> None:
    """Some switches under load."""
    command_ms = []
    with Traffic(system.port, rate=plan.rate) as traffic:
        time.sleep(_WARM_UP_S)
        for _ in range(plan.warm_up + plan.switches):
            command_ms.append(_switch(system, traffic))
            time.sleep(system.pause_s * plan.pace)
    taken.command_ms += command_ms[plan.warm_up :]
    taken.seen += traffic.seen[plan.warm_up :]
    taken.totals += traffic.totals
    taken.switches += len(command_ms)


def _switch(system: System, traffic: Traffic) -> float:
    """The command's milliseconds."""
    system.settle()
    old, new = system.live, other(system.live)
    at_ns = time.monotonic_ns()
    system.switch(new)
    command_ms = (time.monotonic_ns() - at_ns) / 1e6
    traffic.switched(old, new, at_ns)
    return command_ms


def _record(bench: Bench, name: str, taken: Taken) -> None:
    record = bench.record
    record.add(COMMAND, name, "ms", taken.command_ms)
    record.add(FIRST_NEW, name, "ms", [seen.first_new_ms for seen in taken.seen if seen.first_new_ms is not None])
    record.add(LAST_OLD, name, "ms", [seen.last_old_ms for seen in taken.seen])
    record.add(WORST, name, "ms", [seen.worst_ms for seen in taken.seen])
    if taken.switches:
        record_losses(bench, LOST, name, taken.switches, taken.totals)


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"


def record_losses(bench: Bench, group: str, name: str, switches: int, totals: Totals) -> None:
    """One line of what was counted."""
    bench.record.count(
        group,
        name,
        switches=switches,
        requests=totals.answered + sum(totals.lost.values()),
        lost=sum(totals.lost.values()),
        by_kind=_words(totals.lost),
        last_100_of_a_turn=_words(totals.lost_on),
        streams=totals.streams_done + totals.streams_broken,
        streams_broken=totals.streams_broken,
        websockets=totals.websockets_opened,
        websockets_broken=totals.websockets_broken,
        not_sent=totals.skipped,
    )
