"""What a watch leads to, second by second."""

from dataclasses import replace
from typing import Any

import pytest

from lbswitch.core.bake import (
    Advance,
    Bake,
    BakeState,
    Freeze,
    OnBreach,
    OnInsufficient,
    RollBack,
    Sight,
    Tell,
    decide,
)
from lbswitch.core.criteria import Criterion, Outcome, Severity, Verdict
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color, Route
from lbswitch.core.rollback import RollbackDecision

HEALTHY = PoolFacts(PoolState.HEALTHY, "1 of 1")
CALM = RollbackDecision(False, "no breach", Severity.LOW, 0.0)
BREACH = RollbackDecision(True, "error_ratio 0.2 >= 0.05 (100 requests)", Severity.CRITICAL, 1.0)
BAKE = Bake("shop", 7, Color.GREEN, 42, since=1000.0, until=1300.0, stepped_at=1000.0)


def verdict(outcome: Outcome, *, trigger: bool = True) -> Verdict:
    criterion = Criterion("error_ratio", "error_ratio", threshold=0.05, trigger=trigger)
    return Verdict(criterion, outcome, 0.0, 0.05, 100, f"error_ratio is {outcome}")


PASS, LACKING = (verdict(Outcome.PASS),), (verdict(Outcome.INSUFFICIENT),)


def sight(**changes: Any) -> Sight:
    base = Sight(Route(Color.GREEN), 42, HEALTHY, CALM, PASS)
    return replace(base, **changes)


def states(actions: tuple[object, ...]) -> list[str]:
    return [action.what if isinstance(action, Tell) else type(action).__name__ for action in actions]


def test_it_passes_when_the_time_is_over() -> None:
    """Not before, and only if there was anything to judge."""
    bake, actions = decide(BAKE, sight(), 1299.0)
    assert (bake.state, actions) == (BakeState.BAKING, ())
    bake, actions = decide(bake, sight(), 1300.0)
    assert (bake.state, states(actions)) == (BakeState.PASSED, ["bake-passed"])
    assert decide(bake, sight(decision=BREACH), 1301.0) == (bake, ())


@pytest.mark.parametrize("burst", [None, "5 >= 5 requests in a row failed on green"])
def test_a_breach_rolls_back(burst: str | None) -> None:
    """Once, with the reason; a burst needs no criterion."""
    decision = BREACH if burst is None else CALM
    bake, actions = decide(BAKE, sight(decision=decision, burst=burst), 1001.0)
    assert bake.state is BakeState.ROLLED_BACK
    (action,) = actions
    assert isinstance(action, RollBack)
    assert action.reason == (burst or BREACH.reason)
    assert bake.breaches == (action.reason,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rescue": PoolFacts(PoolState.UNHEALTHY, "0 of 1")}, "blue is unhealthy, too: 0 of 1"),
        ({"rescue": PoolFacts(PoolState.UNKNOWN, "?")}, "blue is not known yet"),
        ({"quarantined": "error_ratio"}, "blue is quarantined: error_ratio"),
        ({"frozen": "migration"}, "frozen: migration"),
    ],
)
def test_it_never_makes_things_worse(changes: dict[str, Any], words: str) -> None:
    """It holds and says why, once; it rolls back when that is over, and says when the breach ended by itself."""
    bake, actions = decide(BAKE, sight(decision=BREACH, **changes), 1001.0)
    assert (bake.state, states(actions)) == (BakeState.BAKING, ["holding"])
    assert words in str(bake.holding)
    again, actions = decide(bake, sight(decision=BREACH, **changes), 1002.0)
    assert actions == ()
    _, actions = decide(again, sight(decision=BREACH), 1003.0)
    assert states(actions) == ["RollBack"]
    calm, actions = decide(again, sight(), 1003.0)
    assert (states(actions), calm.holding) == (["recovered"], None)
    over, actions = decide(calm, sight(), 1300.0)
    assert (over.state, states(actions)) == (BakeState.BREACHED, ["bake-breached"])


def test_flapping_latches() -> None:
    """Past the limit an hour the service is frozen, and the watch holds until a person has released it."""
    bake, actions = decide(BAKE, sight(decision=BREACH, limit="there were 3 automatic switches"), 1001.0)
    assert (bake.state, states(actions)) == (BakeState.BAKING, ["Freeze", "holding"])
    frozen = sight(decision=BREACH, limit="there were 3 automatic switches", frozen="there were 3")
    bake, actions = decide(bake, frozen, 1002.0)
    assert (bake.holding, states(actions)) == ("frozen: there were 3", ["holding"])
    assert decide(bake, frozen, 1003.0) == (bake, ())
    assert states(decide(bake, sight(decision=BREACH), 1004.0)[1]) == ["RollBack"]


def test_what_is_asked_for_instead_of_a_rollback() -> None:
    """Freeze ends the watch; alert goes on watching, says it once, and ends as breached."""
    bake, actions = decide(replace(BAKE, on_breach=OnBreach.FREEZE), sight(decision=BREACH), 1001.0)
    assert (bake.state, states(actions)) == (BakeState.BREACHED, ["Freeze", "bake-breached"])
    assert isinstance(actions[0], Freeze)
    bake, actions = decide(replace(BAKE, on_breach=OnBreach.ALERT), sight(decision=BREACH), 1001.0)
    assert (bake.state, states(actions)) == (BakeState.BAKING, ["breach"])
    other = replace(BREACH, reason="error_ratio 0.3 >= 0.05 (200 requests)")
    bake, actions = decide(bake, sight(decision=other), 1002.0)
    assert (actions, len(bake.breaches)) == ((), 1)
    bake, _ = decide(bake, sight(), 1300.0)
    assert bake.state is BakeState.BREACHED


def test_whoever_switched_meanwhile_wins() -> None:
    """Nothing is rolled back that the watch is not about."""
    bake, actions = decide(BAKE, sight(decision=BREACH, generation=43), 1001.0)
    assert (bake.state, states(actions)) == (BakeState.SUPERSEDED, ["bake-superseded"])


@pytest.mark.parametrize(
    ("asked", "state", "said"),
    [
        (OnInsufficient.ALERT, BakeState.INSUFFICIENT, ["bake-insufficient"]),
        (OnInsufficient.ROLLBACK, BakeState.ROLLED_BACK, ["RollBack"]),
        (OnInsufficient.FREEZE, BakeState.INSUFFICIENT, ["Freeze", "bake-insufficient"]),
    ],
)
def test_no_evidence_is_neither_pass_nor_breach(asked: OnInsufficient, state: BakeState, said: list[str]) -> None:
    """What it leads to is a setting."""
    bake, actions = decide(replace(BAKE, on_insufficient=asked), sight(verdicts=LACKING), 1300.0)
    assert (bake.state, states(actions)) == (state, said)


def test_no_evidence_and_no_way_back() -> None:
    """It ends all the same."""
    ill = PoolFacts(PoolState.UNHEALTHY, "0 of 1")
    bake = replace(BAKE, on_insufficient=OnInsufficient.ROLLBACK)
    bake, actions = decide(bake, sight(verdicts=LACKING, rescue=ill), 1300.0)
    assert (bake.state, states(actions)) == (BakeState.INSUFFICIENT, ["holding", "bake-insufficient"])


def test_alerts_are_told_once() -> None:
    """Of a criterion that does not decide."""
    told = replace(CALM, alerts=("response_time of green 900 >= 500 over 2m (50 requests)",))
    bake, actions = decide(BAKE, sight(decision=told), 1001.0)
    assert states(actions) == ["criterion"]
    later = replace(CALM, alerts=("response_time of green 900 >= 500 over 2m (60 requests)",))
    _, actions = decide(bake, sight(decision=later), 1002.0)
    assert actions == ()


CANARY = replace(BAKE, steps=(50, 100), every_s=60.0)
TEN = Route(Color.BLUE, 90)


def test_a_canary_goes_on_while_all_passes() -> None:
    """Each step after its time; the last one bakes for the whole time."""
    assert decide(CANARY, sight(route=TEN), 1059.0)[1] == ()
    bake, actions = decide(CANARY, sight(route=TEN), 1060.0)
    assert (actions, bake.steps, bake.stepped_at) == ((Advance(50),), (100,), 1060.0)
    bake, actions = decide(bake, sight(route=TEN), 1119.0)
    assert actions == ()
    bake, actions = decide(bake, sight(route=TEN), 1400.0)
    assert (actions, bake.steps, bake.state) == ((Advance(100),), (), BakeState.BAKING)


def test_a_canary_waits_for_evidence() -> None:
    """For as long as it takes, and says so once."""
    bake, actions = decide(CANARY, sight(route=TEN, verdicts=LACKING), 1060.0)
    assert (states(actions), bake.steps) == (["waiting"], (50, 100))
    assert "stays at 10%" in getattr(actions[0], "message", "")
    bake, actions = decide(bake, sight(route=TEN, verdicts=LACKING), 5000.0)
    assert (actions, bake.state) == ((), BakeState.BAKING)
    assert decide(bake, sight(route=TEN), 5001.0)[1] == (Advance(50),)


def test_a_canary_goes_back_on_a_breach() -> None:
    """At whatever step."""
    bake, actions = decide(CANARY, sight(route=TEN, decision=BREACH), 1060.0)
    assert (bake.state, states(actions)) == (BakeState.ROLLED_BACK, ["RollBack"])


def test_an_agent_that_starts_knows_it() -> None:
    """All of it goes through JSON."""
    bake = replace(CANARY, breaches=("x",), holding="y", told=("z",), has_evidence=True)
    assert Bake.from_json("shop", bake.to_json()) == bake
