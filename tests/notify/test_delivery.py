"""Alerts reach real HTTP servers, once and in order, whatever happens in between."""

import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.alert_config import AlertsConfig
from lbswitch.core.alerts import Alert, Level
from lbswitch.core.model import Color, Kind, Operation, OperationState
from lbswitch.errors import InvalidRequest
from lbswitch.events import Event, Events
from lbswitch.notify.delivery import Alerts
from lbswitch.notify.outbox import Outbox, State
from tests.notify.receiver import Receiver
from tests.support.wait import wait_until

SECRET = "a-secret-of-the-test-0123456789"


class Desk:
    """Alerts with what they told the log."""

    def __init__(self, directory: Path, config: AlertsConfig) -> None:
        self.directory, self.config = directory, config
        self.told: list[Event] = []
        self.events = Events(time.time)
        self.events.listen(self.told.append)
        self.alerts = Alerts(directory / "alerts.db", lambda: self.config, self.events)
        self.events.listen(self.alerts.heard)
        self.alerts.begin()

    def tell(self, *identities: str) -> None:
        for identity in identities:
            self.alerts.tell(alert(identity))

    def states(self) -> dict[str, str]:
        document = self.alerts.document(100)
        return {each["id"]: each["deliveries"][0]["state"] for each in document["alerts"] if each["deliveries"]}


def alert(identity: str, level: Level = Level.ERROR, service: str | None = "shop") -> Alert:
    return Alert(identity, time.time(), "drift", service, level, "shop: drift", f"sentence {identity}", "do this")


def ids(receiver: Receiver) -> list[str]:
    return [json.loads(each.body)["id"] for each in receiver.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver().start()
    yield server
    server.stop()


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "hook.secret"
    path.touch(0o600)
    path.write_text(f"{SECRET}\n")
    return str(path)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(targets: dict[str, Any], **more: Any) -> Desk:
        made.append(Desk(tmp_path, AlertsConfig.model_validate({"targets": targets, "timeout": "2s", **more})))
        return made[-1]

    yield make
    for each in made:
        each.alerts.stop()


def test_a_target_that_is_down_at_first_gets_each_alert_once_and_in_order(
    desk: Callable[..., Desk], receiver: Receiver, secret: str
) -> None:
    """Told while nobody listens; then one delivery each, and the log says that it failed and that it worked."""
    receiver.stop()
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}})
    site.tell("one", "two", "three")
    wait_until(lambda: any(each.type == "alert-not-delivered" for each in site.told), "the log tells")
    assert site.alerts.notes()
    receiver.start()
    wait_until(lambda: set(site.states().values()) == {"sent"}, "all are sent")
    assert ids(receiver) == ["one", "two", "three"]
    assert any(each.type == "alert-delivered-late" for each in site.told)
    assert site.alerts.notes() == []


def test_a_receiver_can_verify_what_it_got(desk: Callable[..., Desk], receiver: Receiver, secret: str) -> None:
    """As docs/alerts.md shows it; the id of the delivery stays in every attempt, and so do the bytes."""
    receiver.statuses = [503]
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}})
    site.tell("one")
    wait_until(lambda: site.states() == {"one": "sent"}, "it is sent")
    first, second = receiver.got
    assert first.body == second.body
    assert first.headers["X-Lbswitch-Delivery"] == second.headers["X-Lbswitch-Delivery"]
    assert [each.headers["X-Lbswitch-Attempt"] for each in receiver.got] == ["1", "2"]
    verify = example("verify")
    assert verify(SECRET, first.headers["X-Lbswitch-Signature"], first.body)
    assert not verify("another", first.headers["X-Lbswitch-Signature"], first.body)
    assert not verify(SECRET, first.headers["X-Lbswitch-Signature"], first.body + b" ")
    at = int(first.headers["X-Lbswitch-Signature"].partition(",")[0].removeprefix("t="))
    digest = hmac.new(SECRET.encode(), f"{at}.".encode() + first.body, hashlib.sha256).hexdigest()
    assert first.headers["X-Lbswitch-Signature"] == f"t={at},v1={digest}"
    document = json.loads(first.body)
    assert (document["sentence"], document["advice"], document["level"]) == ("sentence one", "do this", "error")


def example(name: str) -> Callable[[str, str, bytes], bool]:
    """The function of that name in the documentation."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()
    code = next(part for part in text.split("```python\n")[1:] if f"def {name}" in part).partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    found: Callable[[str, str, bytes], bool] = names[name]
    return found


def test_a_target_that_hangs_delays_nobody_else(desk: Callable[..., Desk], receiver: Receiver, secret: str) -> None:
    """The other target has all its alerts while the first attempt at the hanging one goes on."""
    slow = Receiver()
    slow.hang = threading.Event()
    slow.start()
    try:
        targets = {
            name: {"webhook": each.url, "secret_file": secret} for name, each in (("slow", slow), ("hook", receiver))
        }
        site = desk(targets, timeout="50s")
        site.tell("one", "two")
        wait_until(lambda: len(receiver.got) == 2, "the other one has both")
        assert len(slow.got) <= 1
        states = [
            each["state"] for each in site.alerts.document(9)["alerts"][-1]["deliveries"] if each["target"] == "slow"
        ]
        assert set(states) <= {"pending", "sending"}
    finally:
        slow.stop()


def test_what_was_told_and_not_sent_is_sent_by_the_next_agent(
    desk: Callable[..., Desk], receiver: Receiver, secret: str
) -> None:
    """Also what was under way, which may have arrived: with the same id. What was sent is not sent again."""
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}})
    site.tell("one")
    wait_until(lambda: site.states() == {"one": "sent"}, "it is sent")
    site.alerts.stop()
    outbox = Outbox(site.directory / "alerts.db")
    outbox.add(alert("two"), ["hook"], 100)
    begun = outbox.next("hook")
    assert begun is not None
    outbox.change(
        type(begun)(**{**{k: getattr(begun, k) for k in begun.__slots__}, "state": State.SENDING, "attempts": 1})
    )
    outbox.close()
    again = desk(dict(site.config.model_dump(exclude_none=True)["targets"]))
    wait_until(lambda: again.states() == {"one": "sent", "two": "sent"}, "the second is sent")
    assert ids(receiver) == ["one", "two"]
    assert receiver.got[1].headers["X-Lbswitch-Delivery"] == begun.id


def test_a_file_that_cannot_be_written_loses_nothing_while_the_agent_lives(tmp_path: Path) -> None:
    """In memory, said; and in the file as soon as that can be written again."""
    path = tmp_path / "alerts.db"
    outbox = Outbox(path)
    with sqlite3.connect(path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON alert BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    other.close()
    outbox.add(alert("one"), ["hook"], 100)
    assert "disk is full" in str(outbox.problem)
    assert outbox.unwritten == 1
    first = outbox.next("hook")
    assert first is not None
    assert first.alert.id == "one"
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER full")
    other.close()
    outbox.write_late()
    assert outbox.problem is None
    outbox.close()
    again = Outbox(path)
    assert again.next("hook") == first
    again.close()


def test_a_file_that_cannot_be_opened_is_taken_when_it_can(tmp_path: Path) -> None:
    """A directory in its place at first; what was told meanwhile is in the file afterwards."""
    path = tmp_path / "alerts.db"
    path.mkdir()
    outbox = Outbox(path)
    outbox.add(alert("one"), ["hook"], 100)
    assert outbox.problem is not None
    path.rmdir()
    outbox.write_late()
    assert outbox.problem is None
    outbox.close()
    again = Outbox(path)
    assert again.targets() == {"hook"}
    again.close()


def test_the_oldest_give_way(desk: Callable[..., Desk], receiver: Receiver, secret: str) -> None:
    """No more than `keep` wait, and that it happened is said."""
    receiver.stop()
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}}, keep=10)
    site.tell(*(f"n{number}" for number in range(14)))
    assert site.alerts.document(1)["targets"]["hook"]["waiting"] in (10, 11)  # one may be under way
    assert any(each.type == "alerts-dropped" for each in site.told)
    assert "dropped" in site.states().values()


def test_an_alert_that_stays_undeliverable_is_given_up(
    desk: Callable[..., Desk], receiver: Receiver, secret: str
) -> None:
    """After the configured time, or when the receiver refuses just this one; those behind it go on."""
    receiver.stop()
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}}, give_up_after="1ms")
    site.tell("one")
    wait_until(lambda: site.states() == {"one": "given-up"}, "it is given up")
    assert any(each.type == "alert-given-up" for each in site.told)


def test_a_test_alert_says_how_it_ended(desk: Callable[..., Desk], receiver: Receiver, tmp_path: Path) -> None:
    """Delivered or why not; it is tried once, and goes before what waits."""
    site = desk({"chat": {"webhook": receiver.url, "format": "slack", "level": "error"}})
    assert site.alerts.test(None) == [{"target": "chat", "delivered": True, "error": None}]
    assert "a test alert" in json.loads(receiver.got[0].body)["text"]
    receiver.statuses = [302]
    [failed] = site.alerts.test("chat")
    assert not failed["delivered"]
    assert "302" in failed["error"]
    assert "redirects are not followed" in failed["error"]
    with pytest.raises(InvalidRequest, match="known: chat"):
        site.alerts.test("nobody")


def test_secrets_are_in_no_message(desk: Callable[..., Desk], receiver: Receiver, tmp_path: Path) -> None:
    """A webhook's URL that is a secret, and an apprise URL: neither in events nor in what the API shows."""
    token, password = "T0KENt0kenT0KEN", "passw0rdpassw0rd"
    for name, text in (
        ("hook.url", f"http://127.0.0.1:{receiver.port}/{token}"),
        ("mail.url", f"json://u:{password}@127.0.0.1:1/{token}"),
    ):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(text)
    receiver.statuses = [404, 404]
    site = desk(
        {
            "chat": {"webhook_file": str(tmp_path / "hook.url"), "format": "slack"},
            "mail": {"url_file": str(tmp_path / "mail.url")},
        }
    )
    site.tell("one")
    wait_until(lambda: sum(each.type == "alert-not-delivered" for each in site.told) >= 2, "both fail", 60)
    (tmp_path / "hook.url").chmod(0o644)
    said = repr(
        [site.told, site.alerts.document(9), site.alerts.notes(), site.alerts.test("chat"), site.alerts.test("mail")]
    )
    assert "0644" in said
    assert token not in said
    assert password not in said
    content = b"".join(each.read_bytes() for each in tmp_path.glob("alerts.db*"))
    assert token.encode() not in content
    assert (tmp_path / "alerts.db").stat().st_mode & 0o077 == 0


def test_apprise_delivers(desk: Callable[..., Desk], receiver: Receiver, tmp_path: Path) -> None:
    """Through its JSON kind, to a real server; the agent's process never loads it."""
    path = tmp_path / "any.url"
    path.touch(0o600)
    path.write_text(f"json://127.0.0.1:{receiver.port}/here\n")
    site = desk({"any": {"url_file": str(path)}})
    site.tell("one")
    wait_until(lambda: site.states() == {"one": "sent"}, "it is sent", 60)
    document = json.loads(receiver.got[0].body)
    assert document["title"] == "[error] shop: drift"
    assert "sentence one\nNext: do this" in document["message"]
    assert document["type"] == "failure"


def test_filters(desk: Callable[..., Desk], receiver: Receiver, secret: str) -> None:
    """By level, service and type; what concerns no service is for everybody."""
    hook = {
        "webhook": receiver.url,
        "secret_file": secret,
        "level": "warning",
        "services": ["shop"],
        "types": ["drift"],
    }
    site = desk({"hook": hook})
    site.alerts.tell(alert("low", Level.INFO))
    site.alerts.tell(alert("other", service="blog"))
    site.alerts.tell(alert("all", Level.WARNING, service=None))
    wait_until(lambda: site.states() == {"all": "sent"}, "one is sent")
    assert ids(receiver) == ["all"]


def test_operations_from_before_a_crash_are_told_once(
    desk: Callable[..., Desk], receiver: Receiver, secret: str
) -> None:
    """What ended when nobody could write the alert any more is found in the history, and nothing comes twice."""
    site = desk({"hook": {"webhook": receiver.url, "secret_file": secret}})
    now = time.time()
    done = Operation(
        *(7, Kind.ROLLBACK, "shop", Color.GREEN, Color.BLUE, 100, OperationState.DONE, 9, "errors", "lbswitch"),
        started_at=now,
        ended_at=now,
    )
    site.events.emit("rollback", "words", "shop", operation=done.to_json())
    wait_until(lambda: len(receiver.got) == 1, "it is told")
    site.alerts.stop()
    again = desk(dict(site.config.model_dump(exclude_none=True)["targets"]))
    newer = Operation(
        *(8, Kind.FAILOVER, "shop", Color.BLUE, Color.GREEN, 100, OperationState.DONE, 10, "dead", "lbswitch"),
        started_at=now,
        ended_at=now,
    )
    again.alerts.catch_up(lambda _limit: [newer, done])
    wait_until(lambda: len(receiver.got) == 2, "the other one is told")
    titles = [json.loads(each.body)["title"] for each in receiver.got]
    assert titles == ["shop: rolled back to blue", "shop: failed over to green"]
