"""From verdicts to a decision: severity is the worst, confidence is a share, and ignorance never makes it likelier."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbswitch.core.criteria import Criterion, Outcome, Verdict
from lbswitch.core.rollback import Policy, RollbackMonitor, Severity
from tests.unit.properties.search import searching

PASS, BREACH, INSUFFICIENT = Outcome.PASS, Outcome.BREACH, Outcome.INSUFFICIENT
LOW, MEDIUM, CRITICAL = Severity


def verdict(outcome: Outcome, name: str = "m", *, trigger: bool = True, severity: Severity = MEDIUM) -> Verdict:
    criterion = Criterion(name, "error_ratio", threshold=0.05, trigger=trigger, severity=severity)
    return Verdict(criterion, outcome, 0.1, 0.05, 100, f"{name} {outcome}")


def five(breached: int) -> list[Verdict]:
    return [verdict(BREACH if n < breached else PASS, f"c{n}") for n in range(5)]


def test_any_needs_one():
    decision = RollbackMonitor().decide(five(1))
    assert (decision.should_rollback, decision.reason, decision.confidence) == (True, "c0 breach", 0.2)
    assert decision.alerts == ()


@pytest.mark.parametrize(("breached", "should"), [(0, False), (1, False), (3, False), (4, True), (5, True)])
def test_confidence_needs_a_share(breached: int, should: bool):
    """The worked example of docs/criteria.md: four of five are 0.8."""
    decision = RollbackMonitor(Policy("confidence", 0.8)).decide(five(breached))
    assert (decision.should_rollback, decision.confidence) == (should, breached / 5)


def test_one_breach_below_the_share_alerts_and_keeps_watching():
    decision = RollbackMonitor(Policy("confidence", 0.8)).decide(five(1))
    assert not decision.should_rollback
    assert decision.reason == "1 of 5 deciding criteria breached, 4 needed: c0 breach"
    assert decision.alerts == ("c0 breach",)


def test_the_severity_is_the_worst_and_comes_first():
    verdicts = [verdict(BREACH, "a", severity=LOW), verdict(BREACH, "b", severity=CRITICAL), verdict(PASS, "c")]
    decision = RollbackMonitor().decide(verdicts)
    assert (decision.severity, decision.reason) == (CRITICAL, "b breach; a breach")
    assert RollbackMonitor().decide([verdict(PASS, severity=CRITICAL)]).severity is LOW


def test_what_only_alerts_never_rolls_back():
    decision = RollbackMonitor().decide([verdict(BREACH, "a", trigger=False, severity=CRITICAL), verdict(PASS, "b")])
    assert (decision.should_rollback, decision.alerts, decision.confidence) == (False, ("a breach",), 0.0)
    assert (decision.severity, decision.reason) == (CRITICAL, "breached, but set to alert only: a breach")


def test_what_only_alerts_is_told_beside_a_rollback():
    decision = RollbackMonitor().decide([verdict(BREACH, "a", trigger=False), verdict(BREACH, "b", severity=LOW)])
    assert (decision.should_rollback, decision.reason, decision.alerts) == (True, "b breach", ("a breach",))
    assert decision.severity is LOW


def test_ignorance_counts_among_those_that_decide():
    """One breach and four sources that are down are no certainty."""
    unknown = [verdict(INSUFFICIENT, f"c{n}") for n in range(4)]
    decision = RollbackMonitor(Policy("confidence", 0.5)).decide([verdict(BREACH), *unknown])
    assert (decision.should_rollback, decision.confidence) == (False, 0.2)


def test_nothing_to_judge_is_nothing_to_do():
    decision = RollbackMonitor(Policy("confidence", 0.1)).decide([])
    assert (decision.should_rollback, decision.confidence) == (False, 0.0)
    assert decision.to_json()["reason"] == "no breach: 0 pass, 0 insufficient"


@pytest.mark.parametrize("share", [0.0, 1.01, -1.0])
def test_a_share_that_makes_no_sense_is_refused(share: float):
    with pytest.raises(ValueError, match="alert_threshold"):
        Policy("confidence", share)


verdicts = st.builds(verdict, st.sampled_from(Outcome), trigger=st.booleans(), severity=st.sampled_from(Severity))
policies = st.builds(Policy, st.sampled_from(["any", "confidence"]), st.sampled_from([0.1, 0.2, 0.5, 0.8, 1.0]))


@searching(200)
@given(st.lists(verdicts, max_size=6), policies)
def test_what_holds_for_all_decisions(judged: list[Verdict], policy: Policy):
    """Never without a breach that may decide; and one more pass never makes a rollback of none."""
    decision = RollbackMonitor(policy).decide(judged)
    causes = [one for one in judged if one.criterion.trigger and one.outcome is BREACH]
    assert 0 <= decision.confidence <= 1
    assert decision.should_rollback <= bool(causes)
    if policy.trigger == "confidence" and causes:
        assert decision.should_rollback == (decision.confidence >= policy.alert_threshold - 1e-9)
    for outcome in (PASS, INSUFFICIENT):
        more = RollbackMonitor(policy).decide([*judged, verdict(outcome)])
        assert more.should_rollback <= decision.should_rollback
