"""The agent's log: one line an event on stderr, as text or JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from lbswitch.events import Event

LOGGER = logging.getLogger("lbswitch")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _iso(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03d}Z"


def _one_line(text: str) -> str:
    """No value of an event can begin a second log line or move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\n", " | "))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    event = getattr(record, "event", None)
    if not isinstance(event, Event):
        return {"type": record.name, "message": record.getMessage()}
    service = {"service": event.service} if event.service else {}
    return {"type": event.type, **service, "message": event.message, **event.data}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """`at`, `level`, then the event's fields; a traceback, if any, as a string."""
        document = {"at": _iso(record.created), "level": record.levelname.lower(), **_fields(record)}
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class TextFormatter(logging.Formatter):
    """`time LEVEL type service: message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback, if any, follows on lines of its own."""
        fields = _fields(record)
        message = _one_line(str(fields["message"]))
        service = fields.get("service")
        where = f" {service}" if service and not message.startswith(f"{service}: ") else ""
        line = f"{_iso(record.created)} {record.levelname.lower():7} {fields['type']}{where}: {message}"
        more = self.formatException(record.exc_info) if record.exc_info else str(fields.get("traceback", "")).rstrip()
        return f"{line}\n{more}" if more else line


def set_up(log_format: str, log_level: str) -> None:
    """Send everything to stderr. `log_format` is `text` or `json`, `log_level` one of debug, info, warning, error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=_LEVELS[log_level], handlers=[handler], force=True)
    for noisy in ("uvicorn", "asyncio", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_event(event: Event) -> None:
    """An `events.Listener` that writes the log."""
    LOGGER.log(_LEVELS[event.level], event.message, extra={"event": event})
