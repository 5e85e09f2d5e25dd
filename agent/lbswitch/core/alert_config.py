"""The `alerts` section of the configuration: who is told what, and where the secrets lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from lbswitch.core.alerts import TYPES, Level, Wishes
from lbswitch.core.sections import Misfit, Section, refuse
from lbswitch.core.values import Duration, FilePath, ServiceName, Token

_WEBHOOK = re.compile(
    r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?"
)
_LONGEST = 2000
_SECRET_HOSTS = ("slack.com", "discord.com", "office.com", "logic.azure.com", "googleapis.com", "pagerduty.com")


class Format(StrEnum):
    """What a webhook is sent."""

    JSON = "json"
    SLACK = "slack"


class AlertTarget(Section):
    """One place that alerts go to: an apprise URL, or a webhook. Secrets are only ever in files."""

    url_file: FilePath | None = Field(None, description="File with an apprise URL, such as slack://... on one line.")
    webhook: str | None = Field(
        None, description="http:// or https:// URL that is no secret itself; alerts are POSTed there."
    )
    webhook_file: FilePath | None = Field(None, description="File with the webhook's URL, where that is a secret.")
    secret_file: FilePath | None = Field(None, description="File with the secret that signs what a webhook is sent.")
    format: Format = Field(Format.JSON, description="json (signed), or slack for an incoming webhook of Slack's kind.")
    level: Level = Field(Level.INFO, description="The least level: info, warning or error.")
    services: tuple[ServiceName, ...] | None = Field(
        None, min_length=1, description="Only of these services, and what concerns all. By default of all."
    )
    types: tuple[str, ...] | None = Field(
        None, min_length=1, description="Only these, such as [rollback, drift]. By default all."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        """No message repeats an address: it may hold a secret by mistake."""
        ways = [key for key in ("url_file", "webhook", "webhook_file") if getattr(self, key) is not None]
        if len(ways) != 1:
            said = "nothing" if not ways else " and ".join(ways)
            yield Misfit((), f"names {said}, but exactly one of url_file, webhook and webhook_file is needed")
        if self.webhook is not None and (why := _why_no_webhook(self.webhook)) is not None:
            yield Misfit(("webhook",), why)
        if self.is_webhook and self.format is Format.JSON and self.secret_file is None:
            yield Misfit(
                ("secret_file",), "is missing: what a webhook is sent is signed, so that its receiver can trust it"
            )
        if self.secret_file is not None and (not self.is_webhook or self.format is Format.SLACK):
            yield Misfit(("secret_file",), "is for webhooks with format: json")
        if not self.is_webhook and self.format is Format.SLACK:
            yield Misfit(("format",), "is for webhooks; apprise formats by the URL's kind")
        unknown = [each for each in self.types or () if each not in TYPES]
        if unknown:
            yield Misfit(("types",), f"holds {unknown[0][:60]!a}, which is none of {', '.join(TYPES)}")

    @property
    def is_webhook(self) -> bool:
        """Whether lbswitch itself speaks HTTP to it."""
        return self.webhook is not None or self.webhook_file is not None

    @property
    def wishes(self) -> Wishes:
        """What it wants to hear."""
        return Wishes(self.level, self.services, self.types)


def _why_no_webhook(url: str) -> str | None:
    if "@" in url or "?" in url or "#" in url:
        return "holds a user, a query or a fragment, which are likely secrets: put the URL into a file (webhook_file)"
    if len(url) > _LONGEST or not _WEBHOOK.fullmatch(url):
        return "is not an http:// or https:// URL"
    host = url.partition("://")[2].partition("/")[0].partition(":")[0].lower()
    if any(host == known or host.endswith(f".{known}") for known in _SECRET_HOSTS):
        return f"is an address at {host}, which is a secret as a whole: put it into a file (webhook_file)"
    return None


class AlertsConfig(Section):
    """Who is alerted. Without targets nobody is, and nothing is kept."""

    targets: dict[Token, AlertTarget] = Field({}, max_length=50, description="One section for each, under its name.")
    timeout: Duration = Field(10.0, description="How long one attempt may take.")
    give_up_after: Duration = Field(86400.0, description="How long an alert that can't be delivered is tried.")
    keep: int = Field(1000, ge=10, le=100_000, description="Alerts that may wait for one target; the oldest give way.")
