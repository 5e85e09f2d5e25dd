"""An hour of healthy traffic, whatever its shape, leads to no rollback; what is worse is found, for the right reason.

Evidence, criteria, bursts and decisions together, with a simulated clock and seeded noise. With
`LBSWITCH_TEST_EXAMPLES=20` it is twenty hours of each kind.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from lbswitch.core.burst import burst
from lbswitch.core.criteria import Checks, Criterion, Facts, MetricReading, Outcome, Verdict, judge
from lbswitch.core.evidence import Batch, Evidence, Failure, Window
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.rollback import RollbackMonitor
from tests.unit.properties.search import TIMES

START = 1_700_000_000.0
HOUR_S = 3600
STEP_S = 0.5
LOOK_S = 2.0
GREEN, BLUE = PoolKey("shop", Color.GREEN), PoolKey("shop", Color.BLUE)

CRITERIA = (
    Criterion("error_ratio", "error_ratio", threshold=0.05, window_s=10, min_samples=20),
    Criterion("error_rate", "error_rate", threshold=5, window_s=60),
    Criterion("response_time", "response_time", threshold=500, window_s=120, quantile=0.95),
    Criterion("health_check", "health_check", threshold=3, window_s=10, min_samples=1),
    Criterion("memory", "memory", threshold=0.9, window_s=30, for_s=20),
    Criterion("errors-against-other", "error_ratio", window_s=60, baseline="other"),
    Criterion("slower-than-other", "response_time", window_s=60, baseline="other", quantile=0.5),
    Criterion("slower-than-before", "response_time", window_s=120, baseline="before"),
)

Course = Callable[[float], float]


def constant(value: float) -> Course:
    return lambda _: value


NONE, FEW, SAME, LITTLE = constant(0.0), constant(0.001), constant(1.0), constant(0.4)


@dataclass
class Behavior:
    """How one color behaves, by seconds since the switch: failing share, factor on the latency, used memory."""

    failing: Course = FEW
    slowness: Course = SAME
    memory: Course = LITTLE
    failed_checks: Course = NONE


@dataclass
class Simulation:
    """A service whose traffic goes to both colors, half and half, and an agent that watches green."""

    requests_per_s: Course
    green: Behavior = field(default_factory=Behavior)
    blue: Behavior = field(default_factory=Behavior)
    seed: int = 1

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._evidence = Evidence()
        self._before: dict[float, Window] = {}
        self.verdicts: tuple[Verdict, ...] = ()

    def run(self, seconds: float) -> tuple[float, str] | None:
        """When green would have been rolled back, in seconds since the switch, and why; None: not at all."""
        self._advance(-130, 0)
        self._before = {window_s: self._evidence.window(BLUE, START, window_s) for window_s in (60, 120)}
        state, monitor = {}, RollbackMonitor()
        looks = round(LOOK_S / STEP_S)
        for step in range(1, round(seconds / STEP_S) + 1):
            at = step * STEP_S
            self._advance(at - STEP_S, at)
            found = burst(self._evidence, GREEN, START + at, since=START)
            if found is not None:
                return at, f"burst: {found}"
            if step % looks == 0:
                state, self.verdicts = judge(state, CRITERIA, self._facts(at))
                decision = monitor.decide(self.verdicts)
                if decision.should_rollback:
                    return at, decision.reason
        return None

    def _facts(self, at: float) -> Facts:
        now = START + at
        memory = MetricReading("memory", self.green.memory(at) + self._chance.gauss(0, 0.01), now - 0.5)
        checks = Checks(round(self.green.failed_checks(at)), 10)
        more = {"before": self._before.__getitem__, "readings": {"memory": memory}, "checks": lambda _: checks}
        return Facts.of(self._evidence, GREEN, now, START, **more)

    def _advance(self, start: float, end: float) -> None:
        for step in range(round((end - start) / STEP_S)):
            at = start + (step + 1) * STEP_S
            self._evidence.watched(START + at)
            for pool, color in ((GREEN, self.green), (BLUE, self.blue)):
                if at > 0 or pool is BLUE:
                    self._evidence.add(pool, START + at, self._batch(color, at))

    def _batch(self, color: Behavior, at: float) -> Batch:
        made, load = Batch(), self.requests_per_s(at)
        for _ in range(_poisson(self._chance, load * STEP_S / 2)):
            self._request(made, color, at, load)
        return made

    def _request(self, made: Batch, color: Behavior, at: float, load: float) -> None:
        """Slower under load, as queues are; failures are noise, or what the color has."""
        failed = self._chance.random() < color.failing(at)
        made.requests += 1
        made.statuses[500 if failed else 200] += 1
        made.latency.add(20 * color.slowness(at) * (1 + load / 200) * self._chance.lognormvariate(0, 0.5))
        made.streak = made.streak + 1 if failed else 0
        made.unbroken = made.unbroken and failed
        if failed:
            made.failures[Failure.STATUS] += 1


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        count, product = count + 1, product * chance.random()
    return count


def bursty(at: float) -> float:
    """Ten times the traffic for five seconds out of forty."""
    return 160.0 if at % 40 < 5 else 16.0


@pytest.mark.parametrize("seed", range(TIMES))
@pytest.mark.parametrize(
    ("shape", "failing"),
    [
        (constant(40.0), 0.002),
        (bursty, 0.002),
        (constant(3.0), 0.01),  # some twenty requests in the window of error_ratio, one of a hundred fails
        (constant(0.2), 0.05),
        (constant(0.0), 0.0),
    ],
    ids=["healthy", "bursty", "low", "trickle", "zero"],
)
def test_an_hour_of_healthy_traffic_leads_to_no_rollback(shape: Course, failing: float, seed: int):
    same = {"failing": constant(failing), "memory": lambda at: 0.6 + 0.2 * math.sin(at / 300)}
    simulation = Simulation(shape, Behavior(**same), Behavior(**same), seed)
    assert simulation.run(HOUR_S) is None
    if shape(20.0) >= 10:
        assert {verdict.outcome for verdict in simulation.verdicts} == {Outcome.PASS}


@pytest.mark.parametrize("seed", range(TIMES))
@pytest.mark.parametrize(
    ("green", "within_s", "reason"),
    [
        (Behavior(slowness=constant(10.0)), 10, "slower-than-"),
        (Behavior(failing=constant(0.02)), 60, "errors-against-other: error_ratio of green 0.0"),
        (Behavior(failing=constant(1.0)), 1, "burst: "),
        (Behavior(failing=constant(0.12)), 20, "error_ratio of green 0."),
        (Behavior(memory=lambda at: 0.4 + at / 1000), 560, "memory of green 0.9"),
        (Behavior(slowness=lambda at: 1 + at / 60), 600, "slower-than-"),
        (Behavior(failed_checks=lambda at: float(at > 30) * 4), 32, "health_check of green 4 >= 3"),
    ],
    ids=["slow", "2%-against-0.1%", "all-fail", "12%", "leak", "ever-slower", "checks-fail"],
)
def test_what_is_worse_is_found_for_the_right_reason(green: Behavior, within_s: float, reason: str, seed: int):
    found = Simulation(constant(100.0), green, seed=seed).run(within_s)
    assert found is not None
    assert reason in found[1]


def test_a_regression_of_latency_alone_is_found_by_its_threshold_too():
    """Where there is nothing to compare with."""
    simulation = Simulation(constant(100.0), Behavior(slowness=constant(25.0)), Behavior(slowness=constant(25.0)))
    found = simulation.run(20)
    assert found is not None
    assert found[1].startswith("response_time p95 of green ")


def test_when_both_are_equally_bad_the_comparison_says_nothing():
    """It is not the release."""
    both = constant(0.03)
    assert Simulation(constant(100.0), Behavior(failing=both), Behavior(failing=both)).run(300) is None
