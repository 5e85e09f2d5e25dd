"""`drain`: shows, waits, closes, and says with its exit code how that ended."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, operation, problem, service, status
from tests.cli.test_terminal import in_terminal

ALL, SHOP = "/v1/drain", "/v1/services/shop/drain"


def drain(name: str = "shop", count: int | None = 0, state: str | None = None, **changes: Any) -> dict[str, Any]:
    """As the agent answers: so many connections are open to blue, two of them in an old worker."""
    old = min(2, count or 0)
    found = [{"pid": 812, "old": True, "open": old}, {"pid": 901, "old": False, "open": (count or 0) - old}]
    document = {
        "service": name,
        "color": "blue",
        "state": state or ("draining" if count else "drained"),
        "open": count,
        "workers": [worker for worker in found if worker["open"]],
        "most": count or 0,
        "closed": 0,
        "drained_ms": None,
        "operation": 17,
        "closing": None,
        "note": None,
    }
    return {**document, **changes}


def answer(*drains: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"services": {found["service"]: found for found in drains}}


def test_what_is_open_is_shown_by_worker(ask: Run, agent: FakeAgent) -> None:
    """One line a service; a note goes to stderr."""
    unknown = drain("blog", None, "unknown", operation=None)
    split = drain("docs", None, "none", color=None, operation=None)
    agent.answers["GET", ALL] = answer(drain(count=5, note="not closed: needs root"), unknown, split)
    ran = ask("drain")
    assert ran.code == 0
    header, shop, blog, docs = ran.out.splitlines()
    assert header.split() == ["SERVICE", "COLOR", "STATE", "OPEN", "CLOSED", "AFTER", "WORKERS"]
    assert shop.split() == ["shop", "blue", "draining", "5", "0", "operation", "17", "812", "(old):", "2,", "901:", "3"]
    assert blog.split() == ["blog", "blue", "unknown", "-", "0", "-", "-"]
    assert docs.split() == ["docs", "-", "both", "have", "traffic", "-", "0", "-", "-"]
    assert ran.err == "shop: not closed: needs root\n"


def test_one_service_and_json(ask: Run, agent: FakeAgent) -> None:
    """The same shape as for all of them."""
    agent.answers["GET", SHOP] = (200, drain(count=5))
    ran = ask("drain", "-s", "shop", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"services": {"shop": drain(count=5)}})


def test_wait_tells_each_change_until_nothing_is_open(ask: Run, agent: FakeAgent) -> None:
    """Of all services; 0 at the end."""
    agent.answers["GET", ALL] = [
        answer(drain(count=5), drain("blog", 0)),
        answer(drain(count=5), drain("blog", 0)),
        answer(drain(count=1), drain("blog", 0)),
        answer(drain(count=0, closed=1), drain("blog", 0)),
    ]
    ran = ask("drain", "--wait", "--timeout", "60s")
    assert (ran.code, ran.err) == (0, "")
    assert [line.partition(" ")[2] for line in ran.out.splitlines()] == [
        "shop: 5 connections open to blue (2 in old workers)",
        "blog: blue is drained",
        "shop: 1 connection open to blue (1 in old workers)",
        "shop: blue is drained, 1 was closed",
    ]


def test_wait_has_nothing_to_do_while_both_colors_have_traffic(ask: Run, agent: FakeAgent) -> None:
    """That is no failure."""
    agent.answers["GET", ALL] = answer(drain(count=None, state="none", color=None))
    ran = ask("drain", "--wait")
    assert (ran.code, "nothing drains, both colors get traffic" in ran.out) == (0, True)


def test_the_timeout_is_said_with_what_is_left(ask: Run, agent: FakeAgent) -> None:
    """Exit 1, and what to do."""
    agent.answers["GET", ALL] = answer(drain(count=3), drain("blog", 0))
    ran = ask("drain", "--wait", "--timeout", "10ms")
    assert ran.code == 1
    assert ran.err == (
        "lbswitch: shop: not drained after 10ms: 3 connections open to blue (2 in old workers); "
        "lbswitch drain --close -s shop ends them\n"
    )
    ran = ask("drain", "--wait", "--timeout", "0s", "--json")
    assert (ran.code, json.loads(ran.out)["services"]["shop"]["open"]) == (1, 3)


def test_unknown_is_said_and_has_its_own_exit_code(ask: Run, agent: FakeAgent) -> None:
    """When it stays so; one answer of it is not believed."""
    agent.answers["GET", SHOP] = [(200, drain(count=None, state="unknown")), (200, drain(count=0))]
    assert ask("drain", "-s", "shop", "--wait").code == 0
    agent.answers["GET", SHOP] = (200, drain(count=None, state="unknown"))
    ran = ask("drain", "-s", "shop", "--wait")
    assert ran.code == 9
    assert "it can't be known from this host how many connections are open to blue" in ran.err
    assert "unknown how many connections are open to blue" in ran.out


def test_wait_bears_a_restart_of_the_agent(agent: FakeAgent, run: Run) -> None:
    """It goes on when somebody answers again."""
    agent.answers["GET", ALL] = [answer(drain(count=1)), b"", b"", answer(drain(count=0))]
    ran = run("--socket", agent.socket_path, "drain", "--wait")
    assert (ran.code, ran.out.splitlines()[-1].endswith("shop: blue is drained")) == (0, True)


def test_progress_on_a_terminal_is_one_line(agent: FakeAgent) -> None:
    """It is written over, not added to."""
    agent.answers["GET", ALL] = [answer(drain(count=5)), answer(drain(count=1)), answer(drain(count=0))]
    code, seen = in_terminal("drain", "--wait", "--socket", agent.socket_path)
    assert code == 0
    assert seen.count("\n") == 1
    assert seen.count("\r\x1b[?7l") == 3


def test_ctrl_c_ends_the_waiting(agent: FakeAgent) -> None:
    """As everywhere."""
    agent.answers["GET", ALL] = answer(drain(count=5))
    code, _ = in_terminal("drain", "--wait", "--socket", agent.socket_path, until="5 connections open")
    assert code == 130


def test_close_asks_for_the_color_that_was_seen(ask: Run, agent: FakeAgent) -> None:
    """And says how many, over which time."""
    agent.answers["GET", SHOP] = (200, drain(count=5))
    agent.answers["POST", SHOP] = (200, drain(count=5, closing={"total": 5, "over_s": 30.0}))
    ran = ask("drain", "--close", "--over", "30s")
    assert (ran.code, ran.out) == (0, "shop: closing 5 connections to blue, spread over 30 s\n")
    assert agent.posted(SHOP) == [{"close": True, "color": "blue", "over": "30s"}]
    agent.answers["GET", SHOP] = agent.answers["POST", SHOP] = (200, drain(count=0))
    assert ask("drain", "--close").out == "shop: nothing is open to blue\n"
    assert agent.posted(SHOP)[-1] == {"close": True, "color": "blue"}


def test_close_and_wait_is_one_document(ask: Run, agent: FakeAgent) -> None:
    """The last one."""
    agent.answers["GET", SHOP] = [(200, drain(count=5)), (200, drain(count=3)), (200, drain(count=0, closed=5))]
    agent.answers["POST", SHOP] = (200, drain(count=5, closing={"total": 5, "over_s": 10.0}))
    ran = ask("drain", "--close", "--wait", "--json")
    assert (ran.code, json.loads(ran.out)["services"]["shop"]["closed"]) == (0, 5)


@pytest.mark.parametrize(
    ("code", "status_code", "words"),
    [(3, 409, "blue gets 100% of the traffic"), (7, 423, "a switch by ann is running")],
)
def test_a_refusal_to_close_is_the_agents(ask: Run, agent: FakeAgent, code: int, status_code: int, words: str) -> None:
    """Its words and its exit code."""
    agent.answers["GET", SHOP] = (200, drain(count=5))
    agent.answers["POST", SHOP] = problem(status_code, code, words)
    ran = ask("drain", "--close")
    assert (ran.code, words in ran.err) == (code, True)


def test_close_is_about_one_service(ask: Run, agent: FakeAgent) -> None:
    """Which has to be said when there are several."""
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), blog=service()))
    ran = ask("drain", "--close")
    assert (ran.code, "blog, shop" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timeout", "5s"], "--timeout is for --wait"),
        (["--over", "5s"], "--over is for --close"),
        (["--wait", "--timeout", "5"], "is not a duration: write a number and a unit"),
        (["--close", "--over", "fast"], "is not a duration: write a number and a unit"),
    ],
)
def test_options_that_make_no_sense(ask: Run, arguments: list[str], words: str) -> None:
    """Exit 2."""
    ran = ask("drain", *arguments)
    assert (ran.code, words in ran.err) == (2, True)


def test_show_status_and_history_tell_of_it(ask: Run, agent: FakeAgent) -> None:
    """Each in its way; operations from before have none."""
    left = {key: value for key, value in drain(count=5).items() if key not in ("service", "operation", "closing")}
    agent.answers["GET", "/v1/operations/17"] = (200, operation(drain={**left, "note": "not closed: why"}))
    assert ask("show", 17).out.splitlines()[-6:-1] == [
        "ended       " + ask("show", 17).out.partition("ended       ")[2].partition("\n")[0],
        "drain       blue draining, 5 open",
        "            worker 812 (old): 2",
        "            worker 901: 3",
        "            not closed: why",
    ]
    done = {**left, "state": "drained", "open": 0, "workers": [], "drained_ms": 1234.5, "closed": 2}
    operations = [operation(drain=left), operation(drain=done), operation(drain=None)]
    agent.answers["GET", "/v1/history?limit=20"] = (200, {"operations": operations})
    rows = [line.split() for line in ask("history").out.splitlines()[1:]]
    assert [(row[11:13] if "open" in row else row[11:12]) for row in rows] == [["5", "open"], ["drained"], ["-"]]
    shop = service(drain=drain(count=5))
    document = status(shop=shop)
    lingering = [{"pid": 7, "age_s": 7200.0, "connections": 3}, {"pid": 8, "age_s": 3.0, "connections": None}]
    document["agent"]["balancer"] |= {"old_workers": 2, "lingering": lingering}
    agent.answers["GET", "/v1/services"] = (200, document)
    told = ask("status").out
    assert "shop: 5 open to blue still; lbswitch drain -s shop shows them" in told
    assert "nginx: 2 workers from before reloads still run, the oldest for 120 min" in told
