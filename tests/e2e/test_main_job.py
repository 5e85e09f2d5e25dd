"""The main job on real balancers: switch, see it, go back, fail over, survive."""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Site
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]


def test_green_already_rollback(site: Site) -> None:
    """`green --json` is the Operation, the front answers green; again is `already`; rollback brings blue back."""
    said = site.agent.lbswitch("green", "--json")
    operation = said.output
    assert said.code == 0
    assert (operation["state"], operation["from"], operation["to"]) == ("done", "blue", "green")
    assert site.app() == "green"
    again = site.agent.lbswitch("green", "--json")
    assert (again.code, again.output["state"], again.output["generation"]) == (0, "already", operation["generation"])
    back = site.agent.lbswitch("rollback", "--json")
    assert (back.code, back.output["kind"], back.output["to"]) == (0, "rollback", "blue")
    assert site.app() == "blue"
    status = site.agent.lbswitch("status", "--json").output["services"]["shop"]
    history = site.agent.lbswitch("history", "--json").output["operations"]
    assert (status["live"], status["generation"], status["verified"]) == ("blue", history[0]["generation"], True)
    assert [entry["kind"] for entry in history] == ["rollback", "switch", "switch"]


def test_no_request_is_lost_by_switches(site: Site) -> None:
    """Forty switches one after another under load on kept and on new connections: 0 lost, and no reload."""
    site.until_known()
    masters = {process.pid for process in site.agent.balancer_processes()}
    with Load("127.0.0.1", site.port, rate=400, connections=8, new_connections=0.5) as load:
        for _ in range(20):
            for color in ("green", "blue"):
                assert site.agent.http("POST", "/v1/services/shop/switch", {"to": color})[0] == 200
        report = load.stop()
    assert report.sent > 0
    assert report.lost == 0, report.lost_by_kind
    assert report.answered_by("green") > 0
    assert {process.pid for process in site.agent.balancer_processes()} == masters


def test_after_a_switch_no_new_request_reaches_the_old_color(site: Site) -> None:
    """A request sent after the command returned is answered by the new color, on kept connections too."""
    site.until_known()
    with Load("127.0.0.1", site.port, rate=300, connections=8, new_connections=0.3) as load:
        wait_until(lambda: load.report().answered_by("blue") > 20, "the load is under way")
        assert site.agent.lbswitch("green").code == 0
        load.mark("after")
        wait_until(lambda: load.report().phase("after").answered_by("green") > 50, "green answers")
        after = load.stop().phase("after")
    old = after.by("blue")
    assert old is None or old.last_sent_ms < 0
    assert after.lost == 0


def test_a_killed_agent_changes_nothing(site: Site) -> None:
    """SIGKILL: the front stays green, also when the balancer is restarted meanwhile; the next agent finds it so."""
    generation = site.agent.lbswitch("green", "--json").output["generation"]
    site.agent.kill()
    assert site.app() == "green"
    assert site.agent.lbswitch("balancer", "stop").code == 0
    with pytest.raises(OSError, match="refused"):
        site.front()
    assert site.agent.lbswitch("balancer", "start").code == 0
    assert site.app() == "green"
    site.agent.start()
    status = site.status()
    assert (status["live"], status["verified"], status["generation"]) == ("green", True, generation)
    assert site.agent.lbswitch("history", "--json").output["operations"][0]["state"] == "done"


def test_the_balancer_outlives_the_agents_process_group(site: Site) -> None:
    """SIGKILL to the agent's whole process group and session leaves the balancer serving."""
    os.killpg(site.agent.pid, signal.SIGKILL)
    site.agent.kill()
    assert site.app() == "blue"
    sessions = {os.getsid(process.pid) for process in site.agent.balancer_processes()}
    assert sessions


def test_failover_when_the_live_application_dies(site: Site) -> None:
    """Killed while live: blue answers by itself, and the history holds the failed checks."""
    site.agent.lbswitch("green")
    site.green.stop()
    site.until_live("blue")
    assert site.app() == "blue"
    operation = site.agent.lbswitch("history", "--json").output["operations"][0]
    assert (operation["kind"], operation["state"], operation["actor"]) == ("failover", "done", "lbswitch")
    assert re.search(rf"{site.green.address}: \d+ failed checks, connect refused", operation["reason"])


def test_both_dead_is_no_switch(site: Site) -> None:
    """Nothing to go to: hold, and the status says why."""
    site.until_known()
    site.green.stop()
    wait_until(lambda: site.status()["green"]["state"] == "unhealthy", "green is unhealthy")
    site.blue.stop()
    wait_until(lambda: "both colors are unhealthy" in (site.status()["problem"] or ""), "the status says why")
    assert site.status()["live"] == "blue"
    assert site.agent.lbswitch("history", "--json").output["operations"] == []
    site.blue.start()
    wait_until(lambda: site.status()["problem"] is None, "blue is back and so is peace")
    assert site.app() == "blue"


def test_a_health_check_that_fails_with_words_is_quoted(site: Site) -> None:
    """`HTTP 503 "db down"` in the status and in the refusal; exit 3; --force goes all the same."""
    site.until_known()
    site.green.fail(health=503, text="db+down")
    wait_until(lambda: site.status()["green"]["state"] == "unhealthy", "green is unhealthy")
    assert site.status()["green"]["servers"][0]["last_error"] == 'HTTP 503 "db down"'
    said = site.agent.lbswitch("green")
    assert said.code == 3
    assert 'HTTP 503 "db down"' in said.output
    assert site.app() == "blue"


def template_of(kind: str, directory: Path) -> Path:
    """A copy of the stock main template in a directory of overrides, broken."""
    name = {"nginx": "nginx.conf.j2", "haproxy": "haproxy.cfg.j2"}[kind]
    stock = Path(__file__).resolve().parents[2] / "templates" / kind / name
    target = directory / kind
    target.mkdir(parents=True)
    copy = target / name
    copy.write_text(stock.read_text())
    return copy


def files_under(directory: Path) -> dict[str, bytes]:
    """What the balancer reads: rendered files, pointer and maps."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if directory / "snapshots" in path.parents:  # written ahead, whenever there is time
            continue
        if path.is_symlink():
            found[str(path)] = bytes(path.readlink())
        elif path.is_file() and not path.name.startswith(("lbswitch.db", "agent.lock")) and path.suffix != ".log":
            found[str(path)] = path.read_bytes()
    return found


def test_a_template_that_renders_nonsense_stops_a_switch(make_site: MakeSite, kind: str) -> None:
    """Exit 4 with the checker's words; the old color serves, files on disk are unchanged; it heals when mended."""
    site = make_site(start=False)
    template = template_of(kind, site.agent.directory / "templates")
    site.config["balancer"]["templates"] = str(site.agent.directory / "templates")
    site.agent.write_config(site.config)
    site.agent.start()
    site.until_known()
    good, before = template.read_text(), files_under(site.agent.state_dir)
    template.write_text(good + "\nnonsense_directive on;\n")
    said = site.agent.lbswitch("green", "--json")
    assert (said.code, said.output["state"]) == (4, "reverted")
    assert "nonsense_directive" in said.output["error"]
    assert site.app() == "blue"
    assert files_under(site.agent.state_dir) == before
    wait_until(lambda: not about(site)["config"]["valid"], "the status says so")
    assert "nonsense_directive" in about(site)["config"]["files_error"]
    template.write_text(good)
    assert site.agent.lbswitch("green").code == 0
    assert site.app() == "green"
    wait_until(lambda: about(site)["config"]["valid"], "healed")


def test_a_broken_template_does_not_stop_the_way_back(make_site: MakeSite, kind: str) -> None:
    """Rollback and failover by pointer or map need no template."""
    site = make_site(start=False)
    template = template_of(kind, site.agent.directory / "templates")
    site.config["balancer"]["templates"] = str(site.agent.directory / "templates")
    site.agent.write_config(site.config)
    site.agent.start()
    assert site.agent.lbswitch("green").code == 0
    template.write_text("{{ nothing.of.the.sort }}")
    said = site.agent.lbswitch("rollback", "--json")
    assert said.code == 0, said.output
    assert "left as they are" in said.output["notes"][0]
    assert site.app() == "blue"


def about(site: Site) -> dict[str, Any]:
    return dict(site.agent.http("GET", "/v1/services")[1]["agent"])


def test_an_invalid_configuration_on_disk_is_reported_and_changes_nothing(site: Site) -> None:
    """The running one stays; status says what and where; a mended file is taken up by itself."""
    site.until_known()
    config = site.agent.config_path.read_text()
    site.agent.config_path.write_text(config.replace("blue:", "bluu:"))
    wait_until(lambda: not about(site)["config"]["valid"], "the status says so")
    assert "bluu" in about(site)["config"]["error"]
    assert site.agent.lbswitch("green").code == 0, "the running configuration switches on"
    site.agent.config_path.write_text(config)
    wait_until(lambda: about(site)["config"]["valid"], "healed")
    assert site.app() == "green"


def test_a_new_server_in_the_configuration_is_taken_up(site: Site) -> None:
    """An edited pool is rendered, checked, reloaded and served; the route stays; nothing is lost on HAProxy."""
    site.until_known()
    site.agent.lbswitch("green")
    service = site.config["services"]["shop"]
    service["green"]["servers"] = [site.blue.address]
    service["blue"]["servers"] = [site.green.address]
    site.agent.write_config(site.config)
    wait_until(lambda: site.app() == "blue", "green's pool is now the other application")
    wait_until(lambda: site.status()["verified"] and site.status()["live"] == "green", "and green is still live")


@pytest.mark.parametrize("sticky", [None, "cookie:user"])
def test_weights(make_site: MakeSite, sticky: str | None) -> None:
    """`--weight 10` sends about a tenth to green; 100 makes it live; rollback of a canary takes it back."""
    site = make_site(**({} if sticky is None else {"weights": {"sticky": sticky}}))
    said = site.agent.lbswitch("green", "--weight", "30", "--json")
    assert (said.code, said.output["kind"], said.output["weight"]) == (0, "weight", 30)
    status = site.status()
    assert (status["live"], status["weight"], status["weights"]) == ("blue", 70, {"blue": 70, "green": 30})
    answers = [site.app() for _ in range(300)]
    assert 45 <= answers.count("green") <= 140, "30% of 300, within five standard deviations"
    assert site.agent.lbswitch("rollback").code == 0
    assert {site.app() for _ in range(50)} == {"blue"}
    assert site.agent.lbswitch("green", "--weight", "60").code == 0
    assert site.agent.lbswitch("green").code == 0
    assert {site.app() for _ in range(50)} == {"green"}


def test_reload_switching(make_site: MakeSite) -> None:
    """`switching: reload` renders the color, checks, reloads, and is seen."""
    site = make_site(switching="reload")
    for color in ("green", "blue"):
        said = site.agent.lbswitch(color, "--json")
        assert (said.code, said.output["state"]) == (0, "done"), said.output
        assert site.app() == color


def test_a_balancer_that_died_is_started_again(site: Site) -> None:
    """Killed behind the agent's back: back within seconds; stopped on purpose: left alone."""
    site.agent.lbswitch("green")
    dead = site.agent.balancer_processes()
    for process in dead:
        process.kill()
    psutil.wait_procs(dead, timeout=10)
    wait_until(lambda: site.app() == "green", "the agent starts it again")
    assert site.agent.lbswitch("balancer", "stop").code == 0
    wait_until(lambda: not about(site)["balancer"]["running"], "stopped")
    log = site.agent.log()
    wait_until(lambda: site.status()["green"]["servers"][0]["checks"] > 40, "some seconds pass", 30)
    assert not about(site)["balancer"]["running"], log
    assert site.agent.lbswitch("balancer", "start").code == 0
    assert site.app() == "green"


def test_a_foreground_agent_takes_ctrl_c(site: Site) -> None:
    """SIGINT ends the agent with 0 within seconds; the balancer goes on."""
    process = psutil.Process(site.agent.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) in (0, None)
    assert site.app() == "blue"
    assert not site.agent.socket.exists()


def test_the_published_example_works(make_site: MakeSite, kind: str) -> None:
    """The example configuration of the documentation, with other ports, is accepted as it is."""
    site = make_site(start=False)
    site.config["services"]["shop"] |= {
        "initial": "blue",
        "health": {"path": "/health", "interval": "1s", "timeout": "500ms", "rise": 2, "fall": 2, "min_healthy": 1},
        "failover": {"enabled": True, "cooldown": "30s", "max_per_hour": 3},
        "bake": {"duration": "5m", "shield": True, "on_breach": "rollback"},
        "criteria": {
            "error_rate": {"threshold": 5, "window": "60s"},
            "error_ratio": {"threshold": 0.05, "window": "10s", "min_samples": 20},
            "response_time": {"threshold": 500, "window": "120s", "quantile": 0.95},
            "database_connections": {"threshold": 0.9, "window": "30s", "source": "db"},
            "health_check": {"threshold": 1, "window": "10s"},
        },
        "policy": {"trigger": "any", "alert_threshold": 0.8},
    }
    site.agent.write_config(site.config)
    checked = site.agent.lbswitch("check")
    assert checked.code == 0, checked.output
    site.agent.start()
    assert site.agent.lbswitch("green").code == 0
    assert site.app() == "green"


def test_the_balancer_is_nobodys_child(site: Site) -> None:
    """It is detached: no process of it has the agent among its parents."""
    agent = site.agent.pid
    for process in site.agent.balancer_processes():
        assert agent not in [parent.pid for parent in process.parents()]


def test_the_tcp_address_serves_the_same(make_site: MakeSite) -> None:
    """`agent.listen` and `--url`: the same commands over loopback TCP; the history says where from."""
    site = make_site(start=False)
    port = free_port()
    site.config["agent"] = {"listen": f"127.0.0.1:{port}"}
    site.agent.write_config(site.config)
    site.agent.start()
    url = f"http://127.0.0.1:{port}"
    said = site.agent.lbswitch("green", "--url", url, "--json")
    assert (said.code, said.output["state"], said.output["actor"]) == (0, "done", "127.0.0.1")
    assert site.agent.lbswitch("status", "--url", url, "--json").output["services"]["shop"]["live"] == "green"


def test_a_signal_to_reload_and_a_signal_to_stop(site: Site) -> None:
    """SIGHUP reads the configuration again; SIGTERM in the middle of a switch completes it."""
    psutil.Process(site.agent.pid).send_signal(signal.SIGHUP)
    wait_until(lambda: "was read again" in site.agent.log(), "read again")
    site.until_known()
    asking = threading.Thread(target=lambda: site.agent.http("POST", "/v1/services/shop/switch", {"to": "green"}))
    asking.start()
    site.agent.stop()
    asking.join(timeout=30)
    site.agent.start()
    live = site.status()["live"]
    assert site.app() == live
    states = {entry["state"] for entry in site.agent.lbswitch("history", "--json").output["operations"]}
    assert states <= {"done"}
