"""Which events are alerts, what they say, and when they are tried again."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbswitch.core.alert_config import AlertsConfig, AlertTarget
from lbswitch.core.alerts import TYPES, Alert, Level, Wishes, alert_of, alert_of_operation, is_own, retry_delay_s
from lbswitch.core.sentences import operation_sentence


def operation(state: str = "done", kind: str = "switch", actor: str = "alice", **more: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": 17,
        "kind": kind,
        "service": "shop",
        "from": "blue",
        "to": "green",
        "weight": 100,
        "state": state,
        "generation": 43,
        "reason": "release 7",
        "actor": actor,
        "gate": None,
        "error": "nobody answers" if state in ("failed", "reverted") else None,
        "timings_ms": {"verify": 2.1, "total": 5.0},
        "started_at": 1700000000.5,
        "dry_run": False,
    }
    return {**document, **more}


def of(document: dict[str, Any]) -> Alert | None:
    return alert_of_operation(document, at=1.0)


def told(document: dict[str, Any]) -> Alert:
    alert = of(document)
    assert alert is not None
    return alert


def event(type_: str, level: str, service: str | None = "shop", **data: Any) -> Alert | None:
    return alert_of(type_, "words", service, level, data, at=1.0, identity="x")


@pytest.mark.parametrize(
    ("kind", "state", "actor", "level"),
    [
        ("switch", "done", "alice", "info"),
        ("rollback", "done", "alice", "warning"),
        ("rollback", "done", "lbswitch", "error"),
        ("failover", "done", "lbswitch", "error"),
        ("switch", "reverted", "alice", "error"),
        ("switch", "failed", "alice", "error"),
        ("failover", "refused", "lbswitch", "error"),
    ],
)
def test_every_end_that_somebody_has_to_know(kind: str, state: str, actor: str, level: str) -> None:
    """With the sentence of the command line, why, by whom, and a command to go on with."""
    document = operation(state, kind, actor)
    alert = told(document)
    assert alert.level == level
    assert alert.sentence.startswith(operation_sentence(document))
    assert "because release 7" in alert.sentence
    assert ("by alice" in alert.sentence) == (actor == "alice")
    assert "lbswitch " in alert.advice


@pytest.mark.parametrize(
    "document",
    [operation("already"), operation("refused"), operation("open"), operation(dry_run=True)],
    ids=["already", "refused by hand", "open", "rehearsal"],
)
def test_what_its_author_sees_anyway_is_no_alert(document: dict[str, Any]) -> None:
    """Who asks at a terminal is answered there."""
    assert of(document) is None


def test_an_operation_is_one_alert_however_often_it_is_told() -> None:
    """By its id and its start: another state directory begins to count anew."""
    assert told(operation()).id == told(operation()).id
    assert told(operation()).id != told(operation(started_at=1700000001.0)).id


def test_events() -> None:
    """Those of the list, any error, nothing about alerts, and nothing twice."""
    latched = event("latched", "error")
    assert latched is not None
    assert (latched.title, latched.sentence) == ("shop: no automatic switch any more", "words")
    assert latched.advice.endswith("lbswitch release -s shop")
    assert event("health", "warning") is None
    assert event("ready", "info") is None
    assert event("something-new", "error") is not None
    assert event("rolled-back", "error") is None
    assert is_own("alert-given-up")
    bug = event("bug", "error", None, traceback="secret local variables")
    assert bug is not None
    assert bug.data == {}
    assert all("{" not in each.advice for name in TYPES if (each := event(name, "error")) is not None)


def test_what_others_wrote_is_harmless() -> None:
    """No control characters, and no megabytes."""
    alert = alert_of("drift", "\x1b[2J" + "x" * 10_000, None, "error", {}, at=1.0, identity="x")
    assert alert is not None
    assert "\x1b" not in alert.sentence
    assert len(alert.sentence) < 5000
    assert Alert.from_json(alert.to_json()) == alert


def test_wishes() -> None:
    """By level, service and type; what concerns no service is for everybody."""
    alert = told(operation())
    assert Wishes().want(alert)
    assert not Wishes(Level.WARNING).want(alert)
    assert not Wishes(services=("blog",)).want(alert)
    assert not Wishes(types=("rollback",)).want(alert)
    whole = event("drift", "error", None)
    assert whole is not None
    assert Wishes(services=("blog",)).want(whole)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_pause_grows_to_five_minutes(attempts: int, draw: float) -> None:
    """From 1-2 s; never more than twice the least, never longer than 5 minutes."""
    pause_s = retry_delay_s(attempts, draw)
    assert 1.0 <= pause_s <= 300.0
    assert retry_delay_s(1, 1.0) == 2.0
    assert retry_delay_s(attempts + 1, draw) >= pause_s
    assert retry_delay_s(attempts, 1.0) <= 2 * retry_delay_s(attempts, 0.0)


@pytest.mark.parametrize(
    "webhook",
    [
        "ftp://h/x",
        "https://user:geheim@h/x",
        "https://h/x?geheim=1",
        "https://hooks.slack.com/geheim",
        "https://h/ geheim",
    ],
)
def test_a_webhook_that_is_a_secret_is_refused_without_repeating_it(webhook: str) -> None:
    """The error names the key and the way out."""
    with pytest.raises(ValueError, match="webhook") as refused:
        AlertTarget.model_validate({"webhook": webhook, "secret_file": "/etc/x"})
    assert "geheim" not in str(refused.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_every_key_and_type_is_documented() -> None:
    """docs/alerts.md has them, in the form in which people search for them."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "alerts.md").read_text()
    keys = [f"alerts.targets.NAME.{key}" for key in AlertTarget.model_fields]
    keys += [f"alerts.{key}" for key in AlertsConfig.model_fields if key != "targets"]
    assert [name for name in (*keys, *TYPES) if f"`{name}`" not in text] == []
