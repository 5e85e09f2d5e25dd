"""What the agent says: to its log, to listeners, to systemd."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbswitch import sdnotify
from lbswitch.events import Event, Events
from lbswitch.logs import JsonFormatter, TextFormatter

AT = 1_800_000_000.25


def record(message: str, service: str | None = "shop", **data: object) -> logging.LogRecord:
    event = Event(1, AT, "switch", message, service, data=data)
    made = logging.makeLogRecord({"name": "lbswitch", "levelno": logging.INFO, "levelname": "INFO", "event": event})
    made.created = AT
    return made


def test_text_is_one_line_whatever_an_event_holds() -> None:
    """A reason with line breaks or terminal escapes can't forge a second line."""
    line = TextFormatter().format(record("release 7\n2027-01-15 error all is lost\x1b[2J"))
    assert line.startswith("2027-01-15T08:00:00.250Z info    switch shop: release 7 | 2027")
    assert "\n" not in line
    assert "\x1b" not in line


def test_the_service_is_named_once() -> None:
    """Sentences that begin with it are not given it again."""
    assert TextFormatter().format(record("shop: switch done")).endswith("switch: shop: switch done")


def test_json_is_one_document_a_line() -> None:
    """With the event's fields at the top."""
    document = json.loads(JsonFormatter().format(record("two\nlines", operation={"id": 7})))
    assert document == {
        "at": "2027-01-15T08:00:00.250Z",
        "level": "info",
        "type": "switch",
        "service": "shop",
        "message": "two\nlines",
        "operation": {"id": 7},
    }


def test_events_are_numbered_and_remembered() -> None:
    """A listener gets what comes after it; `since` gives what came before."""
    events, heard = Events(lambda: AT), []
    events.emit("a", "first")
    stop = events.listen(lambda event: heard.append(event.type))
    events.emit("b", "second", "shop", "error", number=2)
    stop()
    events.emit("c", "third")
    assert heard == ["b"]
    assert [event.type for event in events.since(1)] == ["b", "c"]
    assert events.since(1)[0].data == {"number": 2}


def test_a_loop_in_trouble_says_so_once_and_again_after_it_was_over() -> None:
    """The same words are not repeated every round."""
    events = Events(lambda: AT)

    async def fails() -> None:
        raise OSError("disk")

    async def works() -> None:
        return

    async def rounds() -> None:
        for work in (fails, fails, works, fails):
            await events.guard("writing", work())

    asyncio.run(rounds())
    assert [event.message for event in events.since(0)] == ["writing: disk", "writing: disk"]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_systemd_is_told(systemd: socket.socket) -> None:
    """One datagram with the state."""
    sdnotify.notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


def test_nobody_to_tell_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside of systemd, or with a socket that is gone."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sdnotify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    sdnotify.notify("READY=1")
