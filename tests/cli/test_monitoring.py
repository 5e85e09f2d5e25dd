"""`monitor` against a stand-in agent: what it prints, and how it ends."""

import time
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, operation, problem, service, status

SHOP, MONITOR = "/v1/services/shop", "/v1/services/shop/monitor"
SENTENCE = "error_ratio of green 0.07 >= 0.05 over 10s (31 of 430 requests failed)"


def verdict(outcome: str, **changes: Any) -> dict[str, Any]:
    document = {"criterion": "error_ratio", "outcome": outcome, "value": 0.01, "operator": ">=", "threshold": 0.05}
    return {**document, "window_s": 10.0, "samples": 430, "sentence": f"error_ratio is {outcome}", **changes}


def bake(state: str = "baking", **changes: Any) -> dict[str, Any]:
    """A watch on green that began a minute ago and goes on for four."""
    now = time.time()
    document = {"operation": 17, "color": "green", "generation": 43, "since": now - 60, "until": now + 240}
    document |= {"on_breach": "rollback", "on_insufficient": "alert", "steps": [], "every_s": 60.0}
    document |= {"stepped_at": now - 60, "duration_s": 300.0, "state": state, "has_evidence": True, "breaches": []}
    document |= {"holding": None, "told": [], "verdicts": [verdict("pass")], "decision": None}
    return {**document, "ended_at": None if state == "baking" else now, **changes}


def looks(agent: FakeAgent, *bakes: dict[str, Any], **changes: Any) -> None:
    """The watch as it is when `monitor` begins, and then look by look."""
    agent.answers["POST", MONITOR] = (200, bakes[0])
    agent.answers["GET", SHOP] = [
        (200, service(bake={**each, "since": bakes[0]["since"]}, **changes)) for each in bakes
    ]


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        (bake("passed"), 0, "shop: green passed its watch\n"),
        (bake("rolled-back", breaches=[SENTENCE]), 5, f"shop: green was rolled back: {SENTENCE}\nlbswitch show 18 "),
        (bake("superseded"), 7, "shop: green is not watched any more: something else is served now\n"),
        (bake("insufficient"), 9, "shop: green was watched without enough evidence\n"),
        (bake("breached", breaches=[SENTENCE]), 10, f"and no rollback was asked for: {SENTENCE}\n"),
        (bake(on_breach="alert", breaches=[SENTENCE]), 10, "lbswitch rollback -s shop goes back\n"),
        (bake("breached", on_breach="freeze", breaches=[SENTENCE]), 10, "and the service was frozen: "),
    ],
    ids=["passed", "rolled-back", "superseded", "insufficient", "breached", "breach-at-once", "frozen"],
)
def test_how_a_watch_ends(ask: Run, agent: FakeAgent, last: dict[str, Any], code: int, words: str):
    """In words with what to do next and in the exit code, and with --json in one document."""
    agent.answers["GET", "/v1/history?limit=1&service=shop"] = (
        200,
        {"operations": [operation(id=18, kind="rollback")]},
    )
    looks(agent, bake(), last)
    ran = ask("monitor", "--duration", "300", "--auto-rollback-on-failure")
    assert ran.code == code
    assert words in ran.out
    assert agent.posted(MONITOR) == [{"duration": "300s", "auto_rollback": True}]
    looks(agent, last)
    ran = ask("monitor", "--duration", "5m", "--json")
    assert (ran.code, ran.err) == (code, "")
    assert agent.posted(MONITOR)[1] == {"duration": "300s", "auto_rollback": False}


def test_a_line_for_each_change(ask: Run, agent: FakeAgent):
    """A verdict with its sentence when its outcome changes, a breach once, and why nothing is done about it."""
    breach = [verdict("breach", sentence=SENTENCE)]
    still = [verdict("breach", sentence=SENTENCE.replace("31", "32"))]
    held = {"breaches": [SENTENCE], "holding": "blue is unhealthy, too: 0 of 1"}
    looks(agent, bake(), bake(verdicts=breach, **held), bake(verdicts=still, **held), bake("passed", verdicts=still))
    lines = [line.partition(" ")[2] for line in ask("monitor", "--duration", "300").out.splitlines()]
    assert lines[:-1] == [
        "shop: green has 100% of the traffic",
        "shop: pass: error_ratio is pass",
        f"shop: breach: {SENTENCE}",
        f"shop: breach: {SENTENCE}",
        "shop: no rollback: blue is unhealthy, too: 0 of 1",
    ]


def test_another_switch_ends_it(ask: Run, agent: FakeAgent):
    """The watch that the other switch began is not this one."""
    first = bake()
    agent.answers["POST", MONITOR] = (200, first)
    agent.answers["GET", SHOP] = (200, service(bake=bake(since=first["since"] + 30)))
    ran = ask("monitor", "--duration", "300")
    assert (ran.code, ran.out) == (7, "shop: green is not watched any more: something else is served now\n")


def test_a_service_that_is_gone_is_said(ask: Run, agent: FakeAgent):
    agent.answers["POST", MONITOR] = (200, bake())
    agent.answers["GET", SHOP] = problem(404, 2, "there is no service 'shop'; known: blog")
    ran = ask("monitor", "--duration", "300")
    assert (ran.code, ran.out, ran.err) == (2, "", "lbswitch: there is no service 'shop'; known: blog\n")


def test_a_switch_may_be_monitored_at_once(ask: Run, agent: FakeAgent):
    agent.answers["POST", f"{SHOP}/switch"] = (200, operation())
    looks(agent, bake("passed"))
    ran = ask("green", "--monitor", "30")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "shop: green is live (generation 43, verified in 2.1 ms)")
    assert agent.posted(MONITOR) == [{"duration": "30s", "auto_rollback": True}]


def test_status_shows_the_watch_in_a_line(ask: Run, agent: FakeAgent):
    """How long it goes on and the values beside their thresholds, what is quarantined, and why nothing is known."""
    evidence = {"green": {"traffic": {"problem": "the log can't be read"}}}
    watched = service(bake=bake(), quarantined={"blue": SENTENCE}, evidence=evidence)
    agent.answers["GET", "/v1/services"] = (200, status(shop=watched))
    out = ask("status").out
    assert "shop: green is watched, 4:00 left; error_ratio pass at 0.01 (>= 0.05 is bad)\n" in out
    assert f"shop: blue is quarantined: {SENTENCE}; lbswitch release -s shop ends that\n" in out
    assert "shop: real traffic is not known: the log can't be read\n" in out
    stepping = bake(steps=[50, 100], every_s=90.0, holding="frozen: x")
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(bake=stepping)))
    out = ask("status").out
    assert "green is watched, 50%, then 100% in 0:30;" in out
    assert "shop: green breached and keeps the traffic, frozen: x\n" in out
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(bake=bake("passed"))))
    assert "watched" not in ask("status").out
