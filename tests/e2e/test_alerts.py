"""A real agent tells real HTTP servers what it did."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Site
from tests.notify.receiver import Receiver
from tests.support.wait import wait_until

TOKEN = "T0KENt0kenT0KENt0ken"


@pytest.fixture
def chat() -> Iterator[Receiver]:
    """Nobody listens there until the test says so."""
    receiver = Receiver()
    yield receiver
    receiver.stop()


def titles(receiver: Receiver) -> list[str]:
    return [json.loads(each.body)["text"] for each in receiver.got]


def secret_file(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.touch(0o600)
    path.write_text(text)
    return str(path)


def with_alerts(site: Site, targets: dict[str, Any]) -> None:
    site.config["alerts"] = {"targets": targets, "timeout": "5s"}
    site.agent.write_config(site.config)


def test_alerts_survive_a_dead_network_and_a_killed_agent(
    make_site: Callable[..., Site], chat: Receiver, kind: str
) -> None:
    """Switched and rolled back while nobody took alerts, then killed: the next agent delivers both, once, in order.

    Log, status and outbox hold no secret, and the sentence is the one that the command line prints.
    """
    if kind != "nginx":
        pytest.skip("alerts do not know which balancer it is")
    site = make_site(start=False)
    url = secret_file(site.agent.directory, "chat.url", f"http://127.0.0.1:{chat.port}/services/{TOKEN}\n")
    with_alerts(site, {"chat": {"webhook_file": url, "format": "slack", "types": ["switch", "rollback"]}})
    site.agent.start()
    site.until_known()
    failed = site.agent.lbswitch("alerts", "test")
    assert failed.code == 1, failed.output
    assert "chat: not delivered: " in failed.output
    assert site.agent.lbswitch("green").code == 0
    back = site.agent.lbswitch("rollback", "--reason", "it was a test")
    assert back.code == 0, back.output

    def both_wait() -> bool:
        return bool(site.agent.http("GET", "/v1/alerts")[1]["targets"]["chat"]["waiting"] == 2)

    wait_until(both_wait, "both alerts are in the outbox")
    assert "2 alerts wait" in site.agent.lbswitch("status").output
    site.agent.kill()
    chat.start()
    site.agent.start()
    wait_until(lambda: len(chat.got) == 2, "both are delivered", 60)
    wait_until(lambda: site.agent.http("GET", "/v1/alerts")[1]["targets"]["chat"]["waiting"] == 0, "nothing waits")
    assert titles(chat) == ["[info] shop: green is live", "[warning] shop: rolled back to blue"]
    body = chat.got[1].body.decode()
    assert back.output.strip() in body
    assert "because it was a test" in body
    tested = site.agent.lbswitch("alerts", "test", "chat", "--json")
    assert (tested.code, tested.output["delivered"]) == (0, True)
    listed = site.agent.lbswitch("alerts", "list").output
    print(listed)
    assert "chat sent" in listed
    shown = [site.agent.log(), listed, json.dumps(site.agent.http("GET", "/v1/alerts")[1])]
    shown += [str(site.agent.lbswitch("status", "--detail").output), failed.output]
    assert TOKEN not in "".join(shown)
    assert site.agent.lbswitch("alerts", "test", "nobody").code == 2


def test_a_wrong_target_is_a_clear_error(make_site: Callable[..., Site], kind: str) -> None:
    """All of it at once with the key, and never with the secret that somebody wrote into the file."""
    if kind != "nginx":
        pytest.skip("alerts do not know which balancer it is")
    site = make_site(start=False)
    with_alerts(
        site,
        {
            "both": {"webhook": f"https://hooks.slack.com/services/{TOKEN}", "url_file": "/etc/x"},
            "query": {"webhook": f"https://h.example/?token={TOKEN}", "secret_file": "/etc/x"},
            "open": {"webhook": "https://h.example/x"},
            "typo": {"url_file": "/etc/x", "types": ["rolback"]},
        },
    )
    said = site.agent.lbswitch("check")
    assert said.code == 2
    for words in (
        "alerts.targets.both",
        "exactly one of url_file",
        "alerts.targets.query.webhook",
        "webhook_file",
        "alerts.targets.open.secret_file",
        "alerts.targets.typo.types",
        "'rolback'",
    ):
        assert words in said.output, (words, said.output)
    assert TOKEN not in said.output
