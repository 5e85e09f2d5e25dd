"""From verdicts to a decision. Pure; `docs/criteria.md` has a worked example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lbswitch.core.criteria import Outcome, Severity, Verdict

Trigger = Literal["any", "confidence"]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Policy:
    """How many breached criteria it takes: `any`, or the share `alert_threshold` (0..1] of those that decide.

    Raises: ValueError.
    """

    trigger: Trigger = "any"
    alert_threshold: float = 0.8

    def __post_init__(self) -> None:
        if self.trigger not in ("any", "confidence"):
            raise ValueError(f"trigger {self.trigger} is neither any nor confidence")
        if not 0 < self.alert_threshold <= 1:
            raise ValueError(f"alert_threshold {self.alert_threshold} is not above 0 and 1 at most")

    def needed(self, deciding: int) -> int:
        """How many of so many deciding criteria must be breached; one at least."""
        if self.trigger == "any":
            return 1
        return max(1, math.ceil(self.alert_threshold * deciding - _ROUNDING))


@dataclass(frozen=True, slots=True)
class RollbackDecision:
    """Whether to roll back, and why.

    `severity` is the worst of the breached criteria (low without any), `confidence` the share of the deciding criteria
    that are breached. `alerts` are the sentences of breaches that don't lead to this rollback.
    """

    should_rollback: bool
    reason: str
    severity: Severity
    confidence: float
    alerts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As API and history show it."""
        return {
            "should_rollback": self.should_rollback,
            "reason": self.reason,
            "severity": str(self.severity),
            "confidence": round(self.confidence, 4),
            "alerts": list(self.alerts),
        }


@dataclass(frozen=True, slots=True)
class RollbackMonitor:
    """Decides by a policy. Remembers nothing: what must hold for a while is the criteria's business."""

    policy: Policy = Policy()

    def decide(self, verdicts: Iterable[Verdict]) -> RollbackDecision:
        """What these verdicts of one moment lead to.

        Criteria that only alert never lead to a rollback. An insufficient one counts among those that decide but not
        as breached, so that ignorance never makes a rollback likelier.
        """
        judged = tuple(verdicts)
        deciding = [verdict for verdict in judged if verdict.criterion.trigger]
        breached = [verdict for verdict in judged if verdict.outcome is Outcome.BREACH]
        causes = [verdict for verdict in breached if verdict.criterion.trigger]
        confidence = len(causes) / len(deciding) if deciding else 0.0
        needed = self.policy.needed(len(deciding))
        if len(causes) >= needed:
            rest = [verdict for verdict in breached if not verdict.criterion.trigger]
            return RollbackDecision(True, _sentences(causes), _worst(causes), confidence, _alerts(rest))
        reason = _watching(judged, breached, len(causes), len(deciding), needed)
        return RollbackDecision(False, reason, _worst(breached), confidence, _alerts(breached))


def _sentences(verdicts: Sequence[Verdict]) -> str:
    worst_first = sorted(verdicts, key=lambda verdict: _rank(verdict.criterion.severity), reverse=True)
    return "; ".join(verdict.sentence for verdict in worst_first)


def _alerts(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return tuple(verdict.sentence for verdict in verdicts)


def _watching(judged: Sequence[Verdict], breached: Sequence[Verdict], causes: int, deciding: int, needed: int) -> str:
    if causes:
        return f"{causes} of {deciding} deciding criteria breached, {needed} needed: {_sentences(breached)}"
    if breached:
        return f"breached, but set to alert only: {_sentences(breached)}"
    counts = {outcome: sum(verdict.outcome is outcome for verdict in judged) for outcome in Outcome}
    return f"no breach: {counts[Outcome.PASS]} pass, {counts[Outcome.INSUFFICIENT]} insufficient"


def _worst(verdicts: Sequence[Verdict]) -> Severity:
    return max((verdict.criterion.severity for verdict in verdicts), key=_rank, default=Severity.LOW)


def _rank(severity: Severity) -> int:
    return list(Severity).index(severity)


__all__ = ["Policy", "RollbackDecision", "RollbackMonitor", "Severity", "Trigger"]
