"""What goes wrong after a switch, and what lbswitch does about it. See scripts/rollbacks."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmark.native import NativeLoad, Origin
from tests.support.agent import Agent
from tests.support.ports import free_port
from tests.support.wait import wait_until

_BALANCERS = ("nginx", "haproxy")
_PROMISED_MS = 500.0
_SETTLE_S = 1.5
_WAIT_S = 40.0


@dataclass(frozen=True)
class Case:
    """`spoil` makes green worse, until it is rolled back; `settings` are those of the service."""

    name: str
    spoil: Callable[[Sequence[Origin]], None]
    settings: dict[str, Any]
    servers: int = 1
    repeats: bool = False
    loses_nothing: bool = False
    before_s: float = _SETTLE_S


@dataclass
class Taken:
    """What came of a case, one entry a run."""

    recovery_ms: list[float] = field(default_factory=list)
    bad_ms: list[float] = field(default_factory=list)
    lost: int = 0
    sent: int = 0
    reason: str = ""
    problem: str | None = None


def _each(**mood: float) -> Callable[[Sequence[Origin]], None]:
    def spoil(green: Sequence[Origin]) -> None:
        for origin in green:
            origin.mood(**mood)

    return spoil


def _first(**mood: float) -> Callable[[Sequence[Origin]], None]:
    return lambda green: green[0].mood(**mood)


def _leak(green: Sequence[Origin]) -> None:
    """A little slower every fifth of a second, for ten seconds."""
    for step in range(50):
        for origin in green:
            origin.mood(delay_ms=1 + step)
        time.sleep(0.2)


_SHIELDED = {"bake": {"duration": "2m", "shield": True}}
_BARE = {"bake": {"duration": "2m", "shield": False}}
_RATIO = {"error_ratio": {"threshold": 0.01, "window": "10s", "min_samples": 200}}
_SLOWER = {"slower": {"metric": "response_time", "baseline": "before", "window": "5s", "factor": 3}}
_LIMIT = {"response_time": {"threshold": 25, "window": "5s", "quantile": 0.95}}
CASES = (
    Case("500 on everything, shield on", _each(errors=1000), _SHIELDED, repeats=True, loses_nothing=True),
    Case("500 on everything, shield off", _each(errors=1000), _BARE, repeats=True),
    Case("every answer 10 times slower", _each(delay_ms=10), {**_BARE, "criteria": _SLOWER}, before_s=6.0),
    Case("2% errors", _each(errors=20), {**_BARE, "criteria": _RATIO}),
    Case("a slow leak: 1 ms more every 200 ms", _leak, {**_BARE, "criteria": _LIMIT}),
    Case("accepts, never answers", _each(hang=1), {**_BARE, "timeouts": {"read": "1s"}}),
    Case("accepts, never answers, shield on", _each(hang=1), {**_SHIELDED, "timeouts": {"read": "1s"}}),
    Case("one bad server of three, shield off", _first(errors=1000), _BARE, servers=3),
    Case("one bad server of three, shield on", _first(errors=1000), _SHIELDED, servers=3, loses_nothing=True),
)


class Site:
    """Blue, green and a balancer under load, with an agent that lives through all runs of a case."""

    def __init__(self, kind: str, settings: dict[str, Any], servers: int, rate: float) -> None:
        self.port = free_port()
        self.blue = Origin("blue")
        self.green = [Origin("green") for _ in range(servers)]
        service = {
            "bind": f"127.0.0.1:{self.port}",
            "blue": {"servers": [self.blue.address]},
            "green": {"servers": [one.address for one in self.green]},
            "failover": {"max_per_hour": 1000, "cooldown": "0s"},
            **settings,
        }
        self.agent = Agent(None, {"balancer": {"kind": kind}, "services": {"shop": service}})
        self.load = NativeLoad(self.port, rate=rate, streams=0, websockets=0, duration_s=3600)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Site:
        with self._open as stack:
            for origin in (self.blue, *self.green):
                stack.enter_context(origin)
            stack.enter_context(self.agent)
            wait_until(self._is_healthy, "both colors are healthy", 30)
            stack.enter_context(self.load)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *what: object) -> None:
        self._open.close()

    def _is_healthy(self) -> bool:
        return all(self.shop()[color]["state"] == "healthy" for color in ("blue", "green"))

    def shop(self) -> dict[str, Any]:
        return dict(self.agent.http("GET", "/v1/services/shop")[1])

    def post(self, what: str, body: dict[str, Any]) -> None:
        status, document = self.agent.http("POST", f"/v1/services/shop/{what}", body)
        assert status == 200, document


def run(kind: str, case: Case, repeat: int, rate: float) -> Taken:
    """Green is switched to, turns bad, and is rolled back."""
    taken = Taken()
    with Site(kind, case.settings, case.servers, rate) as site:
        for _ in range(repeat if case.repeats else 1):
            try:
                _once(site, case, taken)
            except AssertionError as error:
                taken.problem = f"{error}: {site.shop()['bake']}"
                break
        report = site.load.stop()
        taken.lost, taken.sent = sum(report["totals"]["lost"].values()), report["totals"]["sent"]
    return taken


def _once(site: Site, case: Case, taken: Taken) -> None:
    time.sleep(case.before_s)  # the color before the switch has to be known
    site.post("switch", {"to": "green"})
    time.sleep(_SETTLE_S)
    began_ns = site.load.phase("bad")
    case.spoil(site.green)
    wait_until(lambda: site.shop()["live"] == "blue", "green is rolled back", _WAIT_S)
    operation = site.agent.http("GET", "/v1/history?limit=1")[1]["operations"][0]
    incident = wait_until(lambda: _incident(site, operation["id"]), "the incident is recorded", 10)
    for origin in site.green:
        origin.mood()
    late = [one["at_ns"] for one in site.load.report()["failures"] if one["at_ns"] > began_ns]
    timeline = incident["timeline"]
    taken.recovery_ms.append(timeline["recovery_ms"] or 0.0)
    taken.bad_ms.append((max(late) - began_ns) / 1e6 if late else 0.0)
    taken.reason = operation["reason"]
    assert operation["actor"] == "lbswitch", operation
    site.post("release", {})
    site.load.phase("good")


def _incident(site: Site, number: int) -> dict[str, Any] | None:
    status, document = site.agent.http("GET", f"/v1/operations/{number}/incident")
    is_whole = status == 200 and document.get("complete", True)
    return dict(document) if is_whole else None


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.95))]


def judge(case: Case, taken: Taken) -> str:
    """`ok`, or what is wrong."""
    if taken.problem is not None:
        return f"RED: {taken.problem}"
    if case.loses_nothing and taken.lost:
        return f"RED: {taken.lost} requests failed"
    if case.repeats and _p95(taken.recovery_ms) > _PROMISED_MS:
        return f"RED: {_p95(taken.recovery_ms):.0f} ms until it was rolled back (p95)"
    if case.repeats and not case.loses_nothing and _p95(taken.bad_ms) > _PROMISED_MS:
        return f"RED: bad answers for {_p95(taken.bad_ms):.0f} ms (p95)"
    return "ok"


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for kind in options.balancer:
        for case in CASES:
            if options.case and not any(word in case.name for word in options.case):
                continue
            taken = run(kind, case, options.repeat, options.rate)
            times = taken.recovery_ms
            yield (
                kind,
                case.name,
                f"{statistics.median(times):.0f} ({_p95(times):.0f})" if times else "-",
                f"{statistics.median(taken.bad_ms):.0f} ({_p95(taken.bad_ms):.0f})" if times else "-",
                f"{taken.lost:,} of {taken.sent:,}",
                str(len(times)),
                taken.reason,
                judge(case, taken),
            )


HEADER = (
    "balancer",
    "what goes wrong on green",
    "first bad answer to rollback, ms: median (p95)",
    "bad answers at clients until, ms: median (p95)",
    "requests failed",
    "runs",
    "the reason that was given",
    "",
)


def calm(kind: str, minutes: float, rate: float) -> str:
    """Healthy traffic of all sorts while green is watched; gives what came of it."""
    watch = {"bake": {"duration": f"{minutes * 60 + 60:g}s"}, "criteria": {**_RATIO, **_SLOWER}}
    patterns = ((rate, 20.0), (rate / 100, 15.0), (rate * 2, 5.0), (2.0, 20.0), (0.0, 10.0))
    sent = 0
    with Site(kind, watch, 1, rate) as site:
        time.sleep(6.0)
        site.post("switch", {"to": "green"})
        deadline = time.monotonic() + minutes * 60
        site.load.stop()
        while time.monotonic() < deadline:
            for each, seconds in patterns:
                if each:
                    with NativeLoad(site.port, rate=each, streams=0, websockets=0) as load:
                        time.sleep(seconds)
                        sent += load.stop()["totals"]["sent"]
                else:
                    time.sleep(seconds)
        shop = site.shop()
    held = shop["live"] == "green" and not shop["bake"]["breaches"]
    outcome = "ok" if held else f"RED: {shop['bake']}"
    return f"{kind}: {minutes:g} minutes, {sent:,} requests: {outcome}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/rollbacks")
    parser.add_argument("--balancer", action="append", choices=_BALANCERS)
    parser.add_argument("--case", action="append")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--calm", type=float)
    options = parser.parse_args()
    options.balancer = options.balancer or list(_BALANCERS)
    is_red = False
    if options.calm is not None:
        for kind in options.balancer:
            line = calm(kind, options.calm, options.rate)
            is_red |= "RED" in line
            print(line, flush=True)
        return int(is_red)
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for row in rows(options):
        is_red |= "RED" in row[-1]
        print("| " + " | ".join(row) + " |", flush=True)
    return int(is_red)


if __name__ == "__main__":
    sys.exit(main())
