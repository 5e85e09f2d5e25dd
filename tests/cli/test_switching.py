import json
import uuid

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, operation, problem, service, status

SWITCH, ROLLBACK = "/v1/services/shop/switch", "/v1/services/shop/rollback"


def test_a_switch_is_one_line(ask: Run, agent: FakeAgent):
    """What is live, the generation, and how long it took to see it."""
    agent.answers["POST", SWITCH] = (200, operation())
    assert ask("green") == (0, "shop: green is live (generation 43, verified in 2.1 ms)\n", "")
    assert agent.posted(SWITCH) == [{"to": "green"}]


def test_every_option_reaches_the_agent(ask: Run, agent: FakeAgent):
    """Only what was said is sent."""
    agent.answers["POST", SWITCH] = (200, operation(kind="weight", weight=10))
    ran = ask("green", "--weight", "10", "--expect", "blue", "--reason", "größer", "--force")
    assert ran.out == "shop: green gets 10%, blue 90% (generation 43, verified in 2.1 ms)\n"
    assert agent.posted(SWITCH) == [{"to": "green", "weight": 10, "expect": "blue", "reason": "größer", "force": True}]


def test_weight_0_is_sent_and_means_the_other_color(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(weight=0))
    assert "shop: blue is live" in ask("green", "--weight", "0").out
    assert agent.posted(SWITCH) == [{"to": "green", "weight": 0}]


def test_already_there_is_success(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(state="already"))
    assert ask("green") == (0, "shop: green is already live (generation 43)\n", "")


def test_already_split_so_is_success(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(state="already", weight=10))
    assert ask("green", "--weight", "10").out == "shop: green already gets 10%, blue 90% (generation 43)\n"


def test_a_refusal_says_why_and_how_to_override(ask: Run, agent: FakeAgent):
    """The gate's own sentence on stderr, nothing on stdout, and the exit code that the agent gave."""
    gate = {"name": "health", "message": "green is unhealthy: 0 of 1 healthy; blue is still serving"}
    agent.answers["POST", SWITCH] = problem(409, 3, "no", gate=gate, operation=operation(state="refused", gate=gate))
    ran = ask("green")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        "shop: refused by health: green is unhealthy: 0 of 1 healthy; blue is still serving\n"
        "  nothing was changed; --force switches all the same\n"
    )


def test_a_gate_that_force_does_not_pass_is_not_said_to_be_passable(ask: Run, agent: FakeAgent):
    gate = {"name": "previous", "message": "nothing was serving before blue"}
    refused = operation(kind="rollback", state="refused", gate=gate)
    agent.answers["POST", ROLLBACK] = problem(409, 3, "no", gate=gate, operation=refused)
    ran = ask("rollback")
    assert ran.code == 3
    assert "--force" not in ran.err


def test_json_is_the_operation_also_when_refused(ask: Run, agent: FakeAgent):
    """One document on stdout; the message goes to stderr."""
    refused = operation(state="refused", gate={"name": "freeze", "message": "shop is frozen"})
    agent.answers["POST", SWITCH] = problem(409, 3, "no", operation=refused)
    ran = ask("green", "--json")
    assert ran.code == 3
    assert json.loads(ran.out) == refused
    assert "refused by freeze" in ran.err


def test_json_is_the_problem_when_there_is_no_operation(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = problem(409, 7, "shop: expected blue to be live, but green is")
    ran = ask("--json", "green")
    assert ran.code == 7
    assert json.loads(ran.out)["detail"] == "shop: expected blue to be live, but green is"
    assert ran.err == "lbswitch: shop: expected blue to be live, but green is\n"


@pytest.mark.parametrize(("http", "code"), [(409, 7), (423, 7), (422, 2), (404, 2), (403, 8), (500, 4), (500, 1)])
def test_the_exit_code_is_the_problem_documents(ask: Run, agent: FakeAgent, http: int, code: int):
    """No rule about exit codes lives in the client."""
    agent.answers["POST", SWITCH] = problem(http, code, "because")
    assert ask("green") == (code, "", "lbswitch: because\n")


def test_a_reverted_switch_says_what_still_serves(ask: Run, agent: FakeAgent):
    reverted = operation(state="reverted", error="not seen within 5 s; still serving: shop on blue")
    agent.answers["POST", SWITCH] = problem(500, 4, "x", operation=reverted)
    ran = ask("green")
    assert ran.code == 4
    said = "shop: switch to green failed and was reverted: not seen within 5 s; still serving: shop on blue\n"
    assert ran.err == said


def test_a_failed_way_back_is_not_called_reverted(ask: Run, agent: FakeAgent):
    failed = operation(state="failed", error="disk full; putting back failed too")
    agent.answers["POST", SWITCH] = problem(500, 4, "x", operation=failed)
    assert ask("green").err == "shop: switch to green failed: disk full; putting back failed too\n"


def test_the_words_of_the_checker_keep_their_lines(ask: Run, agent: FakeAgent):
    """But nothing in them can steer the terminal."""
    failed = operation(state="reverted", error="nginx: [emerg] line 3\n\x1b[2Jconfiguration test failed")
    agent.answers["POST", SWITCH] = problem(500, 4, "x", operation=failed)
    err = ask("green").err
    assert "\x1b" not in err
    assert err.endswith("line 3\n\\x1b[2Jconfiguration test failed\n")


def test_dry_run_says_what_would_happen(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(dry_run=True, notes=["would reload nothing"]))
    ran = ask("green", "--dry-run")
    assert ran.out == (
        "shop: dry run: all gates pass, switch would end with: green is live; would reload nothing; "
        "nothing was changed\n"
    )
    assert ran.err == ""
    assert agent.posted(SWITCH) == [{"to": "green", "dry_run": True}]


def test_dry_run_says_what_would_fail(ask: Run, agent: FakeAgent):
    failing = operation(dry_run=True, state="reverted", error="nginx says no")
    agent.answers["POST", SWITCH] = problem(500, 4, "x", operation=failing)
    assert ask("green", "--dry-run").err == "shop: dry run: switch to green would fail: nginx says no\n"


def test_notes_of_the_operation_go_to_stderr(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(notes=["forced past health: green is unknown"]))
    assert ask("green", "--force").err == "  note: forced past health: green is unknown\n"


def test_every_line_of_a_note_is_a_line(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation(notes=["nginx warns:\nline 3\x1b[2J"]))
    assert ask("green").err == "  note: nginx warns:\n    line 3\\x1b[2J\n"


def test_rollback_is_one_line(ask: Run, agent: FakeAgent):
    agent.answers["POST", ROLLBACK] = (200, operation(kind="rollback", to="blue", generation=44))
    ran = ask("rollback", "--reason", "errors")
    assert ran.out == "shop: rolled back, blue is live (generation 44, verified in 2.1 ms)\n"
    assert agent.posted(ROLLBACK) == [{"reason": "errors"}]


def test_the_only_service_needs_no_name(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, status(cart=service()))
    agent.answers["POST", "/v1/services/cart/switch"] = (200, operation(service="cart"))
    assert ask("green").code == 0


def test_several_services_need_a_name_and_are_listed(ask: Run, agent: FakeAgent):
    """Nothing is sent when it is not clear who is meant."""
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), cart=service()))
    ran = ask("green")
    assert ran.code == 2
    assert ran.err == "lbswitch: there are several services, say which with --service: cart, shop\n"
    assert [request["method"] for request in agent.requests] == ["GET"]


def test_a_named_service_costs_one_request(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation())
    assert ask("green", "-s", "shop").code == 0
    assert len(agent.requests) == 1


def test_a_name_can_not_leave_its_place_in_the_path(ask: Run, agent: FakeAgent):
    ask("green", "-s", "../x?y")
    assert agent.requests[0]["path"] == "/v1/services/..%2Fx%3Fy/switch"


def test_all_is_one_request_and_a_line_each(ask: Run, agent: FakeAgent):
    answer = {"operations": [operation(), operation(service="cart", state="already")]}
    agent.answers["POST", "/v1/switch"] = (200, answer)
    ran = ask("green", "--all")
    assert ran.out.splitlines() == [
        "shop: green is live (generation 43, verified in 2.1 ms)",
        "cart: green is already live (generation 43)",
    ]
    assert len(agent.requests) == 1
    assert json.loads(ask("green", "--all", "--json").out) == answer


def test_all_refused_says_so_for_each(ask: Run, agent: FakeAgent):
    operations = [
        operation(service=name, state="refused", gate={"name": "health", "message": f"{name} is sick"})
        for name in ("shop", "cart")
    ]
    more = {"operation": operations[0], "operations": operations}
    agent.answers["POST", "/v1/switch"] = problem(409, 3, "x", **more)
    ran = ask("green", "--all", "--json")
    assert ran.code == 3
    assert json.loads(ran.out) == {"operations": operations}
    assert "shop: refused by health" in ran.err
    assert "cart: refused by health" in ran.err


def test_all_and_one_exclude_each_other(ask: Run, agent: FakeAgent):
    assert ask("green", "--all", "-s", "shop").code == 2
    assert agent.requests == []


def test_every_post_has_a_key_of_its_own(ask: Run, agent: FakeAgent):
    """A retry on the way counts once; two commands count twice."""
    agent.answers["POST", SWITCH] = (200, operation())
    ask("green", "-s", "shop")
    ask("green", "-s", "shop")
    keys = {request["headers"]["idempotency-key"] for request in agent.requests}
    assert len({uuid.UUID(key) for key in keys}) == 2


@pytest.mark.parametrize("reason", ["two\nlines", "esc\x1b[0m", "caf\udce9"])
def test_a_reason_is_one_line_of_text(ask: Run, agent: FakeAgent, reason: str):
    assert ask("green", "-s", "shop", "--reason", reason).code == 2
    assert agent.requests == []


def test_freeze_and_release_say_how_the_service_is(ask: Run, agent: FakeAgent):
    agent.answers["POST", "/v1/services/shop/freeze"] = (200, service(frozen="migration (frozen by alice)"))
    agent.answers["POST", "/v1/services/shop/release"] = (200, service())
    frozen = "shop: frozen: migration (frozen by alice); green is live (generation 43)\n"
    assert ask("freeze", "--reason", "migration") == (0, frozen, "")
    assert agent.posted("/v1/services/shop/freeze") == [{"reason": "migration"}]
    assert ask("release") == (0, "shop: not frozen, nothing quarantined; green is live (generation 43)\n", "")
    assert json.loads(ask("release", "--json").out) == service()


def test_a_value_that_looks_like_an_option_is_a_value(ask: Run, agent: FakeAgent):
    agent.answers["POST", SWITCH] = (200, operation())
    assert ask("green", "--reason=--json").out.startswith("shop: green is live")
    assert ask("green", "--reason", "--json").out.startswith("shop: green is live")
