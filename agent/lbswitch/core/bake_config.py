"""The sections `bake`, `criteria` and `policy`: what is watched after a switch, and what a breach leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from lbswitch.core.bake import OnBreach, OnInsufficient
from lbswitch.core.criteria import (
    DATABASE_CONNECTIONS,
    ERROR_RATE,
    ERROR_RATIO,
    HEALTH_CHECK,
    REQUESTS_RATE,
    RESPONSE_TIME,
    Criterion,
    Severity,
)
from lbswitch.core.sections import Misfit, Section
from lbswitch.core.values import Duration, DurationOrZero, Token

METRICS = (ERROR_RATE, ERROR_RATIO, RESPONSE_TIME, REQUESTS_RATE, HEALTH_CHECK, DATABASE_CONNECTIONS)
_LONGEST_WINDOW_S = 3600.0
_FEW = {HEALTH_CHECK: 1, DATABASE_CONNECTIONS: 1}  # by default as many samples as one look gives
_DEFAULT_SAMPLES = 20


class BakeConfig(Section):
    """The watch that every switch begins. `shield` has requests that fail on the new color repeated on the old one."""

    duration: Duration = Field(300.0, description="How long the new color is watched.")
    shield: bool = Field(True, description="Whether the old color steps in for requests that the new one fails.")
    on_breach: OnBreach = Field(OnBreach.ROLLBACK, description="What a breach leads to: rollback, freeze or alert.")
    on_insufficient: OnInsufficient = Field(
        OnInsufficient.ALERT, description="What a watch without enough evidence leads to: alert, rollback or freeze."
    )
    burst: bool = Field(True, description="Whether a burst of failures decides at once, whatever the criteria say.")


class CriterionConfig(Section):
    """One criterion: `metric operator threshold` over `window`."""

    model_config = ConfigDict(serialize_by_alias=True)

    metric: Token | None = Field(None, description="What is judged; by default what the criterion is called.")
    operator: Literal[">=", ">", "<=", "<"] = Field(">=", description="Which side of the threshold is bad.")
    threshold: float | None = Field(None, allow_inf_nan=False, ge=0, description="What may not be reached.")
    window: Duration = Field(description="How far back the metric looks, such as 30s; an hour at most.")
    min_samples: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Requests (or checks) without which nothing is said; by default 20."
    )
    for_: DurationOrZero = Field(0.0, alias="for", description="How long it must hold before it is a breach.")
    trigger: bool = Field(True, description="Whether it decides; false only alerts.")
    severity: Severity = Field(Severity.MEDIUM, description="low, medium or critical.")
    quantile: float | None = Field(None, gt=0, lt=1, description="response_time: which one, by default 0.95.")
    baseline: Literal["other", "before"] | None = Field(
        None, description="Compare with the other color now (other), or the live one just before the switch (before)."
    )
    effect: float | None = Field(None, gt=0, lt=1, description="baseline: the least difference that counts.")
    confidence: float = Field(
        0.99, gt=0.5, lt=1, description="How sure a breach must be, before chance is no explanation."
    )
    factor: float = Field(1.25, ge=1, description="baseline of response_time: how many times the old quantile.")
    source: Token | None = Field(None, description="The entry of `sources` that gives the metric.")


class PolicyConfig(Section):
    """How criteria become a decision."""

    trigger: Literal["any", "confidence"] = Field(
        "any", description="any: one breach decides; confidence: a share of breached criteria does."
    )
    alert_threshold: float = Field(0.8, gt=0, le=1, description="confidence: the share from which on it is decided.")


Criteria = Annotated[dict[Token, CriterionConfig], Field(max_length=50)]

DEFAULT_CRITERIA: Mapping[str, CriterionConfig] = {
    ERROR_RATIO: CriterionConfig(threshold=0.05, window=10.0, min_samples=20, severity=Severity.CRITICAL)
}
"""What is watched where a service names no criteria."""


def criteria_of(configured: Mapping[str, CriterionConfig] | None) -> tuple[Criterion, ...]:
    """As they are judged; those of services without any by default. Raises: ValueError."""
    return tuple(
        _criterion(name, one) for name, one in (DEFAULT_CRITERIA if configured is None else configured).items()
    )


def _criterion(name: str, one: CriterionConfig) -> Criterion:
    metric = one.metric or (name if name in METRICS or one.source is None else one.source)
    return Criterion(
        name=name,
        metric=metric,
        operator=one.operator,
        threshold=one.threshold,
        window_s=one.window,
        min_samples=_FEW.get(metric, _DEFAULT_SAMPLES if metric in METRICS else 1)
        if one.min_samples is None
        else one.min_samples,
        for_s=one.for_,
        trigger=one.trigger,
        severity=one.severity,
        quantile=one.quantile,
        baseline=one.baseline,
        source=one.source,
        effect=one.effect,
        confidence=one.confidence,
        factor=one.factor,
    )


def misfits(criteria: Mapping[str, CriterionConfig] | None) -> Iterator[Misfit]:
    """What is wrong with criteria; `at` begins at `criteria`."""
    for name, one in (criteria or {}).items():
        at = ("criteria", name)
        metric = one.metric or name
        if one.source is None and metric not in METRICS:
            close = get_close_matches(metric, METRICS, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            words = f"is no metric of its own: {meant}known: {', '.join(METRICS)}; any other needs `source`"
            yield Misfit((*at, "metric") if one.metric else at, words)
        elif one.source is None and metric == DATABASE_CONNECTIONS:
            yield Misfit((*at, "source"), "is missing: an entry of `sources`, such as one of kind postgres")
        if one.window > _LONGEST_WINDOW_S:
            yield Misfit((*at, "window"), "is longer than 1h, which is as far back as evidence is kept")
        if one.threshold is None and one.baseline is None:
            yield Misfit(at, "needs a threshold or a baseline")
        elif one.baseline is not None and metric not in (ERROR_RATIO, RESPONSE_TIME):
            yield Misfit((*at, "baseline"), f"is for {ERROR_RATIO} and {RESPONSE_TIME}")
        elif one.baseline is not None and one.operator in ("<=", "<"):
            yield Misfit((*at, "operator"), "must be >= or > with a baseline: more is worse")
