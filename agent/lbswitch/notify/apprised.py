"""Tells a target through apprise, in a process of its own.

apprise and what it needs would cost the agent 40 MB and a tenth of a second of its interpreter; and a plugin that hangs
can be ended only as a process. The URL goes through a pipe: an argument would be visible to everybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from lbswitch.notify.secrets import NotDelivered, redact
from lbswitch.procs import end_group

_START_S = 20.0  # a busy machine may need long to load apprise
_LONGEST = 500


def tell(url: str, title: str, body: str, level: str, timeout_s: float) -> None:
    """Deliver once. Raises: NotDelivered, without anything of the URL in it."""
    order = {"url": url, "title": title, "body": body, "type": {"error": "failure"}.get(level, level)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lbswitch.notify.apprised"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(json.dumps(order).encode(), timeout_s + _START_S)
    except subprocess.TimeoutExpired as error:
        end_group(process.pid)
        process.communicate()
        raise NotDelivered(f"apprise was not done within {timeout_s + _START_S:g} s and was ended") from error
    try:
        why = json.loads(output)["error"]
    except (ValueError, KeyError, TypeError) as error:
        raise NotDelivered(f"apprise ended with exit code {process.returncode} without a word") from error
    if why is not None:
        raise NotDelivered(redact(str(why), url)[:_LONGEST])


def main() -> None:
    """The other process: an order as JSON on stdin, `{"error": ...}` on stdout."""
    os.nice(10)
    order = json.load(sys.stdin)
    print(json.dumps({"error": _notify(order)}))


def _notify(order: dict[str, str]) -> str | None:
    """Why it failed, or None."""
    try:
        import apprise
    except ImportError as error:
        return f"apprise can't be loaded: {error}"
    told = apprise.Apprise()
    capture: Any = apprise.LogCapture
    with capture(level=apprise.logging.WARNING, fmt="%(message)s") as log:
        if not told.add(order["url"]):
            return f"apprise does not understand the URL: {_first(log.getvalue()) or 'no such kind of URL'}"
        try:
            is_told = bool(told.notify(body=order["body"], title=order["title"], notify_type=order["type"]))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if is_told else _first(log.getvalue()) or "the service did not take it"


def _first(log: str) -> str:
    return " ".join(log.split())


if __name__ == "__main__":
    main()
