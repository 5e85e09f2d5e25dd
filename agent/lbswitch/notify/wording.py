"""An alert as each kind of receiver gets it."""

from __future__ import annotations

import json
from typing import Any

from lbswitch.core.alerts import Alert, Level

_COLORS = {Level.INFO: "#2eb67d", Level.WARNING: "#ecb22e", Level.ERROR: "#e01e5a"}


def plain(alert: Alert, host: str) -> tuple[str, str]:
    """Title and body in plain text."""
    lines = [alert.sentence]
    if alert.advice:
        lines.append(f"Next: {alert.advice}")
    return f"[{alert.level}] {alert.title}", "\n".join([*lines, f"Host: {host}"])


def as_json(alert: Alert, host: str, delivery: str) -> bytes:
    """The body of a webhook; the same bytes in every attempt."""
    return json.dumps({**alert.to_json(), "host": host, "delivery": delivery}, default=str, sort_keys=True).encode()


def as_slack(alert: Alert, host: str) -> bytes:
    """The body of an incoming webhook of Slack's kind: a fallback text, and one attachment in the level's color."""
    blocks: list[dict[str, Any]] = [_section(f"*{_escaped(alert.title)}*\n{_escaped(alert.sentence)[:2900]}")]
    if alert.advice:
        blocks.append(_section(f"*Next:* {_escaped(alert.advice)[:2900]}"))
    context = f"{alert.level} | {alert.type} | {host}"
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _escaped(context)}]})
    attachment = {"color": _COLORS[alert.level], "fallback": _escaped(alert.sentence), "blocks": blocks}
    return json.dumps({"text": _escaped(f"[{alert.level}] {alert.title}"), "attachments": [attachment]}).encode()


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _escaped(text: str) -> str:
    """What Slack reads as markup (its "Formatting text", escaping), and only that."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
