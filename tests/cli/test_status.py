import json

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, operation, pool, service, status


def lines(ask: Run, agent: FakeAgent, document: dict) -> list[str]:
    agent.answers["GET", "/v1/services"] = (200, document)
    ran = ask("status")
    assert ran.code == 0
    assert ran.err == ""
    return ran.out.splitlines()


def test_all_well_is_a_table_and_nothing_else(ask: Run, agent: FakeAgent):
    assert lines(ask, agent, status()) == [
        "SERVICE  LIVE   GENERATION  VERIFIED  BLUE         GREEN        FROZEN",
        "shop     green  43          yes       1/1 healthy  1/1 healthy  no",
    ]


def test_columns_are_aligned_for_all_services(ask: Run, agent: FakeAgent):
    split = service(live="blue", weight=90, generation=1044)
    assert lines(ask, agent, status(**{"a": service(), "long-name": split})) == [
        "SERVICE    LIVE                  GENERATION  VERIFIED  BLUE         GREEN        FROZEN",
        "a          green                 43          yes       1/1 healthy  1/1 healthy  no",
        "long-name  blue 90% / green 10%  1044        yes       1/1 healthy  1/1 healthy  no",
    ]


def test_what_is_wrong_stands_below_with_its_numbers(ask: Run, agent: FakeAgent):
    sick = service(
        blue=pool("127.0.0.1:9101", "connection refused"),
        frozen="3 switches in an hour",
        verified=False,
        problem="shop: the listener runs an older configuration",
        operation={"kind": "failover", "actor": "agent"},
    )
    document = status(shop=sick)
    document["agent"]["config"] |= {"valid": False, "error": "lbswitch.yaml:3: oops"}
    document["agent"]["balancer"]["running"] = False
    document["agent"]["notes"] = ["the template is yours"]
    assert lines(ask, agent, document)[1:] == [
        "shop     green  43          NO        0/1 unhealthy  1/1 healthy  yes",
        "shop: the listener runs an older configuration",
        "shop: frozen: 3 switches in an hour; lbswitch release -s shop ends that",
        "shop: a failover by agent is running",
        "shop: blue 127.0.0.1:9101 is unhealthy: connection refused (3 of 40 checks failed)",
        "configuration /etc/lbswitch/lbswitch.yaml is not in use: lbswitch.yaml:3: oops",
        "nginx is not running, there is no traffic: lbswitch balancer start",
        "note: the template is yours",
    ]


def test_every_line_of_an_error_is_a_line(ask: Run, agent: FakeAgent):
    """The further ones are indented, so that none can look like another trouble; nothing else can steer."""
    document = status(shop=service(problem="nginx said:\n[emerg] a\x1b[2J\n"))
    document["agent"]["config"] |= {"valid": False, "error": "/x.yaml:3: a\r\n/x.yaml:9: b"}
    document["agent"]["notes"] = ["first\nsecond"]
    assert lines(ask, agent, document)[2:] == [
        "shop: nginx said:",
        "    [emerg] a\\x1b[2J",
        "configuration /etc/lbswitch/lbswitch.yaml is not in use: /x.yaml:3: a",
        "    /x.yaml:9: b",
        "note: first",
        "    second",
    ]


def test_a_template_that_fails_is_not_blamed_on_the_configuration_file(ask: Run, agent: FakeAgent):
    document = status()
    document["agent"]["config"] |= {"valid": False, "files_error": "nginx.conf.j2:26: 'nosuch' is undefined"}
    assert lines(ask, agent, document)[2:] == [
        "the rendered files were not applied: nginx.conf.j2:26: 'nosuch' is undefined"
    ]
    document["agent"]["config"]["error"] = "x.yaml:1: oops"
    assert [line.partition(": ")[0] for line in lines(ask, agent, document)[2:]] == [
        "configuration /etc/lbswitch/lbswitch.yaml is not in use",
        "the rendered files were not applied",
    ]


def test_an_agent_that_does_not_know_of_files_errors_is_understood(ask: Run, agent: FakeAgent):
    document = status()
    del document["agent"]["config"]["files_error"]
    assert len(lines(ask, agent, document)) == 2


def test_what_servers_say_can_not_steer_the_terminal(ask: Run, agent: FakeAgent):
    evil = status(shop=service(blue=pool("127.0.0.1:9101", "\x1b]0;x\x07\nshop: all fine")))
    said = lines(ask, agent, evil)
    assert len(said) == 3
    assert "\x1b" not in "".join(said)


def test_json_is_the_agents_document(ask: Run, agent: FakeAgent):
    assert json.loads(ask("status", "--json").out) == status()


def test_a_service_alone_keeps_the_shape(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), cart=service(live="blue")))
    assert list(json.loads(ask("status", "--json", "-s", "cart").out)["services"]) == ["cart"]
    assert "shop" not in ask("status", "-s", "cart").out


def test_an_unknown_service_is_a_usage_error_with_the_known_ones(ask: Run, agent: FakeAgent):
    ran = ask("status", "-s", "chop")
    assert (ran.code, ran.err) == (2, "lbswitch: there is no service 'chop'; known: shop\n")


def test_watch_and_json_exclude_each_other(ask: Run, agent: FakeAgent):
    ran = ask("status", "--watch", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["exit_code"] == 2


def test_history_is_a_table_newest_first(ask: Run, agent: FakeAgent, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    operations = [
        operation(id=18, kind="rollback", to="blue", **{"from": "green"}),
        operation(kind="weight", weight=10),
    ]
    agent.answers["GET", "/v1/history?limit=20"] = (200, {"operations": operations})
    ran = ask("history")
    assert ran.code == 0
    header, first, second = ran.out.splitlines()
    assert header.split() == [
        "ID",
        "TIME",
        "SERVICE",
        "KIND",
        "CHANGE",
        "STATE",
        "GENERATION",
        "TOOK",
        "DRAIN",
        "BY",
        "REASON",
    ]
    assert first.split()[0] == "18"
    assert "green -> blue " in first
    assert "blue 90% / green 10% " in second
    assert header.index("REASON") == first.index("release 2.4") == second.index("release 2.4")
    assert json.loads(ask("history", "--json").out) == {"operations": operations}


def test_history_takes_a_number_and_a_service(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/history?limit=5&service=shop"] = (200, {"operations": []})
    assert ask("history", "-n", "5", "-s", "shop") == (0, "no operations yet\n", "")


def test_history_of_a_service_that_is_no_longer_configured_is_asked_for(ask: Run, agent: FakeAgent):
    """Whether there is such a service is the agent's to say."""
    agent.answers["GET", "/v1/history?limit=20&service=web"] = (200, {"operations": [operation(service="web")]})
    ran = ask("history", "-s", "web")
    assert (ran.code, ran.err) == (0, "")
    assert " web " in ran.out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "blue -> green"),
        ({"kind": "failover", "from": "green", "to": "blue"}, "green -> blue"),
        ({"kind": "weight", "to": "green", "weight": 10}, "blue 90% / green 10%"),
        ({"kind": "weight", "to": "blue", "weight": 30, "from": "blue"}, "blue 30% / green 70%"),
        ({"kind": "weight", "to": "green", "weight": 0}, "blue 100% / green 0%"),
    ],
)
def test_a_change_is_a_direction_or_the_shares(ask: Run, agent: FakeAgent, changes: dict, text: str):
    """In the history and in what is known about one operation."""
    agent.answers["GET", "/v1/history?limit=20"] = (200, {"operations": [operation(**changes)]})
    agent.answers["GET", "/v1/operations/17"] = (200, operation(**changes))
    assert f"  {text}  done  " in ask("history").out
    assert f"change      {text}\n" in ask("show", "17").out


def test_times_are_local_and_iso(ask: Run, agent: FakeAgent):
    from datetime import datetime

    agent.answers["GET", "/v1/operations/17"] = (200, operation())
    started = next(line for line in ask("show", "17").out.splitlines() if line.startswith("started"))
    assert datetime.fromisoformat(started.split()[1]).timestamp() == 1_790_000_000


def test_show_tells_everything(ask: Run, agent: FakeAgent):
    gate = {"name": "health", "message": "green is unhealthy"}
    known = operation(state="refused", gate=gate, notes=["first\nline", "second"])
    agent.answers["GET", "/v1/operations/17"] = (200, known)
    out = ask("show", "17").out
    for fact in ("17", "shop", "blue -> green\n", "refused", "43", "alice", "release 2.4", "health: green is"):
        assert fact in out
    assert "first\n            line\n            second" in out
    assert "gates 0.1 ms, render 3.0 ms, commit 0.4 ms, verify 2.1 ms, total 5.6 ms" in out
    assert json.loads(ask("show", "17", "--json").out) == {**known, "incident": None}


def test_show_of_nothing_is_what_the_agent_says(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/operations/9"] = (
        404,
        {"exit_code": 2, "status": 404, "detail": "there is no operation 9"},
    )
    assert ask("show", "9") == (2, "", "lbswitch: there is no operation 9\n")


DRIFT = {
    "where": "running",
    "what": "shop: worker 17 has changed live.map in memory and says `shop blue`, intended is `shop green`",
    "service": "shop",
    "diff": "--- live.map (intended)\n+++ live.map (found)\n-shop green\n+shop\x1b[2J blue\n",
}


def served(live: str, **changes: object) -> dict:
    return {"live": live, "weight": 100, "generation": 43, "revision": "4cb83b65a3c6", **changes}


def detailed(**changes: object) -> dict:
    """A service whose HAProxy worker was changed by hand."""
    running = served("blue", error=None, workers=[{"pid": 17, **served("blue")}])
    return service(intended=served("green"), on_disk=served("green"), running=running, drift=[DRIFT], **changes)


def test_drift_is_a_line_below_the_table_with_what_to_do(ask: Run, agent: FakeAgent):
    document = status(shop=service(drift=[DRIFT]))
    document["agent"]["drift"] = [{"where": "disk", "what": "/s/live is gone", "service": None, "diff": ""}]
    assert lines(ask, agent, document)[2:] == [
        "shop: drift running: worker 17 has changed live.map in memory and says `shop blue`, intended is `shop green`; "
        "lbswitch apply puts it back, lbswitch status --detail shows it",
        "nginx: drift on disk: /s/live is gone; lbswitch apply puts it back, lbswitch status --detail shows it",
    ]


def test_detail_shows_three_columns_and_the_diff(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services?detail=true"] = (200, status(shop=detailed()))
    ran = ask("status", "--detail")
    assert ran.code == 0
    assert ran.out.splitlines()[3:] == [
        "SERVICE  FACT        INTENDED              ON DISK       RUNNING",
        "shop     live        green                 green         blue (differs)",
        "         generation  43                    43            43",
        "         revision    4cb83b65a3c6          4cb83b65a3c6  4cb83b65a3c6",
        "         worker 17   green, generation 43                blue, generation 43 (differs)",
        "",
        DRIFT["what"],
        "    --- live.map (intended)",
        "    +++ live.map (found)",
        "    -shop green",
        "    +shop\\x1b[2J blue",
        "",
        "lbswitch apply puts it back",
    ]


def test_detail_of_one_service_asks_for_that_one(ask: Run, agent: FakeAgent):
    """Looking at a thousand listeners takes seconds."""
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), cart=service(live="blue")))
    agent.answers["GET", "/v1/services/shop?detail=true"] = (200, detailed())
    document = json.loads(ask("status", "--detail", "--json", "-s", "shop").out)
    assert list(document["services"]) == ["shop"]
    assert document["services"]["shop"]["running"]["live"] == "blue"


def test_detail_tells_of_a_listener_that_does_not_answer(ask: Run, agent: FakeAgent):
    nothing = dict.fromkeys(("live", "weight", "generation", "revision"))
    found = detailed() | {
        "on_disk": None,
        "running": {**nothing, "error": "connect refused", "workers": []},
        "drift": [],
    }
    agent.answers["GET", "/v1/services?detail=true"] = (200, status(shop=found))
    assert [line.split() for line in ask("status", "--detail").out.splitlines()[3:]] == [
        ["SERVICE", "FACT", "INTENDED", "ON", "DISK", "RUNNING"],
        ["shop", "live", "green", "-", "(differs)", "-", "(differs)"],
        ["generation", "43", "-", "(differs)", "-", "(differs)"],
        ["revision", "4cb83b65a3c6", "-", "(differs)", "-", "(differs)"],
        ["listener", "connect", "refused"],
    ]


def test_detail_and_watch_exclude_each_other(ask: Run, agent: FakeAgent):
    assert ask("status", "--watch", "--detail").code == 2
