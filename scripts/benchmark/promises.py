"""What was promised, next to what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from scripts.benchmark.figures import Record
from scripts.benchmark.suites import agent, cost, scale, startup, switch, zero
from scripts.benchmark.systems.agents import (
    HaproxyMap,
    HaproxyReload,
    Lbswitch,
    NewNginxReload,
    NginxPointer,
    NginxReload,
)
from scripts.benchmark.systems.nginx import NginxByHand

_NAMES = {"nginx": "nginx", "haproxy": "HAProxy"}


class Promise(NamedTuple):
    """One limit. `is_kept` is None when it was not measured in this run."""

    what: str
    limit: str
    measured: str
    is_kept: bool | None

    @property
    def verdict(self) -> str:
        if self.is_kept is None:
            return "a quick run is too short" if self.measured else "not measured"
        return "ok" if self.is_kept else "MISSED"


def judge(record: Record, *, is_quick: bool = False) -> list[Promise]:
    """All of them, in the order in which they were made. A quick run says nothing of how many requests there were."""
    return [*_nothing_lost(record, is_quick), *_last_old(record), *_command(record), *_choice(record), *_agent(record)]


def _at_most(record: Record, what: str, limit: float, group: str, case: str, share: float = 0.5) -> Promise:
    """Of a figure's median, or of another quantile."""
    figure = record.find(group, case)
    if figure is None:
        return Promise(what, f"<= {limit:g}", "", None)
    value = figure.median if share == 0.5 else figure.quantile(share)
    return Promise(what, f"<= {limit:g} {figure.unit}", f"{value:.2f} {figure.unit}", value <= limit)


def _nothing_lost(record: Record, is_quick: bool) -> Iterator[Promise]:
    counted = [
        count.numbers
        for count in record.counts
        if count.group in (zero.WITHOUT_RELOAD, switch.LOST) and count.case in (NginxPointer.name, HaproxyMap.name)
    ]
    requests, switches, lost = (sum(int(one[name]) for one in counted) for name in ("requests", "switches", "lost"))
    broken = sum(int(one[name]) for one in counted for name in ("streams_broken", "websockets_broken"))
    said = f"{lost} lost, {broken} broken of {requests:,} requests in {switches:,} switches"
    what = "pointer and map: requests lost, streams and WebSockets broken"
    yield Promise(what, "0", said if counted else "", lost + broken == 0 if counted else None)
    what = "pointer and map: requests and switches in all"
    is_enough = None if is_quick else requests >= 1_000_000 and switches >= 200
    yield Promise(
        what,
        ">= 1,000,000 and >= 200",
        f"{requests:,} and {switches:,}" if counted else "",
        is_enough if counted else None,
    )
    yield _no_loss_by_reload(record, HaproxyReload)
    yield _no_loss_by_reload(record, NewNginxReload)
    yield _less_than_by_hand(record)


def _lost_by_reload(record: Record, case: str) -> tuple[int, int] | None:
    """Lost and sent, in both suites that reload; None when nothing was measured."""
    counted = [
        count.numbers
        for count in record.counts
        if count.case == case and count.group in (zero.WITH_RELOAD, switch.LOST)
    ]
    if not counted:
        return None
    return sum(int(one["lost"]) for one in counted), sum(int(one["requests"]) for one in counted)


def _no_loss_by_reload(record: Record, system: type[Lbswitch]) -> Promise:
    found = _lost_by_reload(record, system.name)
    said = f"{found[0]} of {found[1]:,}" if found else ""
    return Promise(f"{system.name}: requests lost", "0", said, found[0] == 0 if found else None)


def _less_than_by_hand(record: Record) -> Promise:
    ours, by_hand = _lost_by_reload(record, NginxReload.name), _lost_by_reload(record, NginxByHand.name)
    what = f"{NginxReload.name}: requests lost, next to by hand"
    if ours is None or by_hand is None:
        return Promise(what, "fewer", "", None)
    shares = ours[0] / max(1, ours[1]), by_hand[0] / max(1, by_hand[1])
    said = f"{ours[0]} of {ours[1]:,}, by hand {by_hand[0]} of {by_hand[1]:,}"
    return Promise(what, "fewer, or both 0", said, shares[0] < shares[1] or shares == (0, 0))


def _last_old(record: Record) -> Iterator[Promise]:
    for system in (NginxPointer, HaproxyMap):
        what = f"{system.name}: from the request to the last old answer"
        yield _at_most(record, f"{what}, median", 3, switch.LAST_OLD, system.name)
        yield _at_most(record, f"{what}, p95", 6, switch.LAST_OLD, system.name, 0.95)


def _command(record: Record) -> Iterator[Promise]:
    yield _at_most(record, "`lbswitch green` in a shell", 60, startup.GROUP, startup.GREEN)


def _choice(record: Record) -> Iterator[Promise]:
    for color in ("blue", "green"):
        case = f"{NginxPointer.name}, {color} live"
        yield _at_most(record, f"the pointer's cost a request, {color} live", 5, cost.DIFFERENCE, case)


def _agent(record: Record) -> Iterator[Promise]:
    for balancer, name in _NAMES.items():
        twenty = agent.at_rest(balancer, 20)
        yield _at_most(record, f"{name}: idle agent, 20 servers at 1 s: CPU", 2, agent.CPU, twenty)
        yield _at_most(record, f"{name}: idle agent, 20 servers at 1 s: memory", 80, agent.MEMORY, twenty)
        yield _at_most(record, f"{name}: 200 servers at 1 s: CPU", 25, agent.CPU, agent.at_rest(balancer, 200))
        yield _at_most(record, f"{name}: start with 1,000 services", 5000, agent.READY, f"{balancer}, 1000 services")
        yield _grows(record, balancer)


def _grows(record: Record, balancer: str) -> Promise:
    group = f"{scale.GROUP}request"
    one, many = (record.find(group, scale.case_one(balancer, count)) for count in (1, 1000))
    what = f"{_NAMES[balancer]}: a switch with 1,000 services, next to one with 1"
    if one is None or many is None:
        return Promise(what, "<= 2 x", "", None)
    said = f"{many.median / one.median:.2f} x ({many.median:.2f} ms and {one.median:.2f} ms)"
    return Promise(what, "<= 2 x", said, many.median <= 2 * one.median)
