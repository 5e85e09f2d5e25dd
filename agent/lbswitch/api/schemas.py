"""What requests may say; unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lbswitch.core.durations import DURATION, parse_duration
from lbswitch.core.model import Color


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _over(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("is no time to spread anything over: write 1s or longer")
    return seconds


Spread = Annotated[
    float, BeforeValidator(_over, json_schema_input_type=Annotated[str, Field(pattern=DURATION.pattern)])
]


def _watch_time(value: object) -> float:
    seconds = parse_duration(value)
    if not 1.0 <= seconds <= _LONGEST_WATCH_S:
        raise ValueError("is not within 1s-24h")
    return seconds


WatchTime = Annotated[
    float, BeforeValidator(_watch_time, json_schema_input_type=Annotated[str, Field(pattern=DURATION.pattern)])
]
Reason = Annotated[str, Field(max_length=500), AfterValidator(_printable)]

_LONGEST_WATCH_S = 86_400.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SwitchBody(_Body):
    """Where traffic should go. `weight` is the percentage that `to` gets; `expect` the color that must be live now."""

    to: Annotated[Color, Field(strict=False)]
    weight: int = Field(100, ge=0, le=100)
    expect: Annotated[Color | None, Field(strict=False)] = None
    reason: Reason = ""
    force: bool = False
    dry_run: bool = False


class CanaryBody(SwitchBody):
    """With `steps` such as [1, 10, 50, 100] the first step now, and each next one `every` so long without a breach."""

    steps: list[Annotated[int, Field(ge=1, le=100)]] | None = Field(None, min_length=1, max_length=50)
    every: WatchTime = 60.0

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.steps is None:
            return self
        if sorted(set(self.steps)) != self.steps:
            raise ValueError("steps: each must be larger than the one before")
        if self.weight != 100:
            raise ValueError("steps and weight exclude each other")
        return self


class SwitchManyBody(SwitchBody):
    """The same for several services at one instant; without `services` for all."""

    services: list[str] | None = Field(None, min_length=1)


class RollbackBody(_Body):
    """Back to what was serving before."""

    reason: Reason = ""
    force: bool = False
    dry_run: bool = False


class MonitorBody(_Body):
    """Watch what is live for `duration`, such as 5m; `auto_rollback` rolls back on a breach."""

    duration: WatchTime
    auto_rollback: bool = False


class ApplyBody(_Body):
    """Read the configuration again. `force` allows what would empty a pool or cut off clients."""

    force: bool = False
    dry_run: bool = False


class RestoreBody(RollbackBody):
    """Bring back a snapshot. `expect` is the color that must be live now where traffic would move."""

    expect: Annotated[Color | None, Field(strict=False)] = None


class DrainBody(_Body):
    """Close what is left on the color without traffic, spread `over` a time such as 10s.

    With `color` only if it is that one.
    """

    close: Literal[True]
    over: Spread | None = Field(None, description="By default the service's `drain.close_over`.")
    color: Annotated[Color | None, Field(strict=False)] = None


class ReasonBody(_Body):
    """Why."""

    reason: Reason = ""


class EmptyBody(_Body):
    """Nothing to say."""
