"""`show` of a rollback: the story, the requests to reconcile, and a page."""

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, operation, problem

AT = 1_790_000_000.0
HOSTILE = '/x"><script>alert(1)</script>\x1b[2J'


def window(**changes: Any) -> dict[str, Any]:
    latency = {"p50": 1.5, "p95": 12.25, "p99": 40.0}
    known = {"covered_s": 10.0, "requests": 3000, "requests_per_s": 300.0, "errors": 0, "error_ratio": 0.0}
    return {**known, "latency_ms": latency, **changes}


def request(path: str, request_id: str = "r-1", at: float = AT) -> dict[str, Any]:
    known = {"at": at, "method": "POST", "path": path, "status": 500}
    return {**known, "request_id": request_id, "failure": "status"}


def record(**changes: Any) -> dict[str, Any]:
    sentence = "error_ratio of green 0.3 >= 0.05 over 10s (3 of 10 requests failed)"
    verdict = {"criterion": "error_ratio", "outcome": "breach", "value": 0.3, "operator": ">=", "threshold": 0.05}
    verdict |= {"window_s": 10.0, "samples": 10, "trigger": True, "sentence": sentence}
    decision = {"should_rollback": True, "reason": sentence, "severity": "critical", "confidence": 1.0}
    known = {
        "color": "green",
        "complete": True,
        "decision": {**decision, "cause": "error_ratio"},
        "timeline": {
            "traffic_at": AT - 2,
            "first_bad_at": AT,
            "seen_at": AT + 0.012,
            "decided_at": AT + 0.066,
            "committed_at": AT + 0.0742,
            "last_bad_at": AT + 0.066,
            "recovery_ms": 74.2,
            "bad_for_ms": 66.0,
        },
        "criteria": [verdict],
        "before": window(),
        "during": window(requests=10, requests_per_s=5.0, errors=3, error_ratio=0.3),
        "after": window(),
        "answered": {
            "requests": 10,
            "errors": 3,
            "statuses": {"200": 7, "500": 3},
            "listed": [{"method": "POST", "path": HOSTILE, "status": 500, "count": 3}],
            "unlisted": 0,
        },
        "not_idempotent_requests": 3,
        "not_idempotent": [request(HOSTILE, at=AT + 1), request("/pay", "=1+1"), request("@SUM(A1)", "-2")],
        "seconds": [[int(AT) - 2, 5, 0], [int(AT), 5, 3]],
    }
    return {**known, **changes}


@pytest.fixture
def incident(agent: FakeAgent) -> FakeAgent:
    back = operation(kind="rollback", actor="lbswitch", **{"from": "green", "to": "blue"})
    agent.answers["GET", "/v1/operations/17"] = (200, back)
    agent.answers["GET", "/v1/operations/17/incident"] = (200, record())
    return agent


@pytest.mark.usefixtures("incident")
def test_the_story_is_told(ask: Run) -> None:
    """In milliseconds from the first bad answer, with criteria, colors, plot, blast radius and what to do."""
    out = ask("show", 17).out
    for words in (
        "-2,000 ms  green got its traffic\n",
        "+0 ms      green first bad answer\n",
        "+12 ms     green first bad answer read\n",
        "+66 ms     green rollback decided\n",
        "+74 ms     green rollback committed and verified\n",
        "error_ratio  breach   0.3    >= 0.05    10s     10",
        "error ratio  0.00%        30.00%              0.00%",
        "  requests/s █ █ at most 5\n",
        "  errors/s     ▅ at most 3\n",
        "10 requests, 3 of them failed",
        "lbswitch show 17 --export requests.csv",
        "lbswitch release -s shop",
    ):
        assert words in out, out
    assert "\x1b" not in out
    assert json.loads(ask("show", 17, "--json").out)["incident"] == json.loads(json.dumps(record()))


def test_without_a_record(ask: Run, agent: FakeAgent) -> None:
    """A rollback by hand has none: null, and nothing to export."""
    agent.answers["GET", "/v1/operations/17"] = (200, operation(kind="rollback"))
    agent.answers["GET", "/v1/operations/17/incident"] = problem(404, 2, "no record")
    assert json.loads(ask("show", 17, "--json").out)["incident"] is None
    assert "timeline" not in ask("show", 17).out
    refused = ask("show", 17, "--export", "x.csv")
    assert (refused.code, refused.out) == (2, "")
    assert "operation 17 has no record of an incident" in refused.err


def test_a_record_that_is_not_complete(ask: Run, incident: FakeAgent) -> None:
    """What an agent leaves that died right after the rollback."""
    timeline = dict.fromkeys(record()["timeline"]) | {"decided_at": AT, "committed_at": AT + 0.01}
    nothing = {"requests": 0, "errors": 0, "statuses": {}, "listed": [], "unlisted": 0}
    decision = {"should_rollback": True, "reason": "why", "severity": None, "confidence": None, "cause": None}
    bare: dict[str, Any] = dict.fromkeys(("before", "during", "after"))
    bare |= {"criteria": [], "seconds": [], "not_idempotent": [], "not_idempotent_requests": 0}
    bare |= {"complete": False, "timeline": timeline, "answered": nothing, "decision": decision}
    incident.answers["GET", "/v1/operations/17/incident"] = (200, record(**bare))
    out = ask("show", 17).out
    assert "the record is not complete" in out
    assert "decided: why" in out


@pytest.mark.usefixtures("incident")
def test_csv_holds_no_formula(ask: Run, tmp_path: Path) -> None:
    """In order of time, safe for a spreadsheet; a file is overwritten only with --force."""
    file = tmp_path / "requests.csv"
    assert ask("show", 17, "--export", file).code == 0
    rows = list(csv.reader(io.StringIO(file.read_text())))
    assert rows[0] == ["time", "method", "path", "status", "request_id", "failure"]
    assert rows[1] == ["2026-09-21T14:13:20.000Z", "POST", "/pay", "500", "'=1+1", "status"]
    assert rows[2][2:5] == ["'@SUM(A1)", "500", "'-2"]
    assert rows[3][2] == '/x"><script>alert(1)</script>\\x1b[2J'
    again = ask("show", 17, "--export", file)
    assert (again.code, "is there already" in again.err) == (2, True)
    assert ask("show", 17, "--export", file, "--force").code == 0


@pytest.mark.usefixtures("incident")
def test_json_lines_hold_what_was_asked_for(ask: Run) -> None:
    """Exactly, one a line."""
    lines = [json.loads(line) for line in ask("show", 17, "--export", "-", "--format", "jsonl").out.splitlines()]
    assert [line["path"] for line in lines] == ["/pay", "@SUM(A1)", HOSTILE]
    assert ask("show", 17, "--export", "-").code == 2


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href"}, attrs


@pytest.mark.usefixtures("incident")
def test_the_page_needs_nothing_and_trusts_nobody(ask: Run, tmp_path: Path) -> None:
    """No script, no link, and what clients wrote is text."""
    file = tmp_path / "incident.html"
    assert ask("show", 17, "--html", file).code == 0
    text, tags = file.read_text(), _Tags()
    tags.feed(text)
    assert "svg" in tags.tags
    assert not tags.tags & {"script", "link", "img", "iframe"}
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "options", [("--format", "csv"), ("--force",), ("--html", "-"), ("--json", "--html", "x"), ("--export", "x.txt")]
)
@pytest.mark.usefixtures("incident")
def test_options_that_make_no_sense(ask: Run, options: tuple[str, ...]) -> None:
    """Exit code 2, and nothing is written."""
    assert ask("show", 17, *options).code == 2
