"""An agent as a guest of somebody's nginx: the main job, crashes of the agent, and the owner's own doings."""

import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.balancers.nginx.owner import Owner
from tests.balancers.nginx.site import binaries
from tests.support.agent import Agent, short_directory
from tests.support.app import App
from tests.support.load import Load
from tests.support.wait import wait_until

FAST = {"interval": "100ms", "timeout": "500ms"}


class Site:
    """The owner's nginx, two applications and an agent."""

    def __init__(self, owner: Owner, blue: App, green: App, **service: Any) -> None:
        self.owner, self.blue, self.green = owner, blue, green
        self.agent = Agent(
            None,
            {
                "balancer": owner.balancer(binary=owner.binary, control="signal"),
                "services": {
                    "shop": {
                        "bind": f"127.0.0.1:{owner.port}",
                        "blue": {"servers": [blue.address]},
                        "green": {"servers": [green.address]},
                        "verify": {"host": "shop.example"},
                        "health": FAST,
                        **service,
                    }
                },
            },
        )

    def app(self) -> str:
        """Which application answers at the owner's listener."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.owner.port}/", timeout=5) as answer:
            return str(answer.read().decode().split()[0])

    def verified(self) -> bool:
        status = self.agent.status("shop")
        return bool(status["verified"]) and all(status[color]["state"] == "healthy" for color in ("blue", "green"))


@pytest.fixture
def site() -> Iterator[Site]:
    """The owner's nginx does not run yet, and nothing of lbswitch is installed."""
    if not binaries():
        pytest.skip("no nginx on this machine")
    with short_directory() as base, App("blue", "v1") as blue, App("green", "v2") as green:
        owner = Owner(base, binaries()[0])
        made = Site(owner, blue, green)
        try:
            yield made
        finally:
            made.agent.close()
            owner.stop()


def test_the_main_job(site: Site) -> None:
    """Switch, weight and rollback under load lose nothing, reload nothing, and leave the owner's files alone."""
    before = owners_files(site.owner)
    site.agent.start()  # installs; the owner's nginx starts when its owner starts it
    assert "somebody else's to start" in site.agent.log()
    refused = site.agent.lbswitch("green")
    assert (refused.code, "somebody else's to start" in refused.output) == (3, True)
    site.owner.start()
    wait_until(site.verified, "blue is seen")
    with Load("127.0.0.1", site.owner.port, rate=300, connections=8, new_connections=0.5) as load:
        wait_until(lambda: load.report().answered_by("blue") > 20, "the load is under way")
        workers = site.owner.workers()
        said = site.agent.lbswitch("green", "--json")
        assert (said.code, said.output["state"]) == (0, "done")
        assert site.app() == "green"
        assert site.agent.lbswitch("rollback").code == 0
        assert site.app() == "blue"
        assert site.agent.lbswitch("green").code == 0
        report = load.stop()
    assert report.lost == 0, report.lost_by_kind
    assert report.answered_by("green") > 0
    assert site.owner.workers() == workers
    assert site.agent.lbswitch("blue", "--weight", "30").code == 0  # the first weight reloads
    assert site.agent.status("shop")["weights"] == {"blue": 30, "green": 70}
    assert owners_files(site.owner) == before


def test_life_without_the_agent(site: Site) -> None:
    """A killed agent, the owner's reload and his restart change nothing of what is served; the next agent agrees."""
    site.agent.start()
    site.owner.start()
    wait_until(site.verified, "blue is seen")
    assert site.agent.lbswitch("green").code == 0
    site.agent.kill()
    assert site.app() == "green"
    workers = site.owner.workers()
    os.kill(site.owner.pid() or 0, signal.SIGHUP)
    wait_until(lambda: site.owner.workers() and not site.owner.workers() & workers, "the owner has reloaded")
    assert site.app() == "green"
    site.owner.stop()
    site.owner.start()
    assert site.app() == "green"
    workers = site.owner.workers()
    site.agent.start()
    assert site.agent.status("shop")["live"] == "green"
    wait_until(site.verified, "green is seen")
    assert site.owner.workers() == workers  # nothing to reload


def test_owner_breaks_his_own_file(site: Site) -> None:
    """A switch by pointer needs no check, and works; what needs a reload is refused and nothing is lost."""
    site.agent.start()
    site.owner.start()
    wait_until(site.verified, "blue is seen")
    broken = site.owner.write("conf.d/broken.conf", "nonsense;\n")
    assert site.agent.lbswitch("green").code == 0
    refused = site.agent.lbswitch("blue", "--weight", "10")
    assert refused.code == 4
    assert f'unknown directive "nonsense" in {broken}:1' in refused.output
    assert site.app() == "green"
    broken.unlink()
    assert site.agent.lbswitch("blue", "--weight", "10").code == 0


def test_before_the_owner_has_written_his_lines(site: Site) -> None:
    """An agent whose files nobody includes yet changes nothing, reloads nothing, and asks for the lines."""
    for name in ("shop", "default"):
        site.owner.site(name, "server {{ listen 127.0.0.1:{port}; return 200 hello; }}\n" if name == "shop" else "")
    (site.owner.etc / "conf.d" / "lbswitch.conf").unlink()
    site.owner.start()
    workers = site.owner.workers()
    site.agent.start()
    said = site.agent.lbswitch("status").output
    assert f"`include {site.owner.output}/current/shop.server.conf;` to the server block of shop" in said
    assert site.owner.workers() == workers
    assert site.app() == "hello"


def test_commands_without_an_agent(site: Site) -> None:
    """`check` judges the whole, `render` shows our files, and `balancer start` says whose it is."""
    before = owners_files(site.owner)
    checked = site.agent.lbswitch("check", "--json")
    assert (checked.code, checked.output["installed"]) == (0, None)
    rendered = site.agent.lbswitch("render", "--json")
    assert [file["name"] for file in rendered.output["files"]] == ["http.conf", "shop.server.conf", "traffic.conf"]
    for verb in ("start", "stop"):
        said = site.agent.lbswitch("balancer", verb)
        assert said.code == 1
        assert f"so lbswitch does not {verb} it:" in said.output
    status = site.agent.lbswitch("balancer", "status", "--json")
    assert (status.code, status.output["running"], status.output["revision"]) == (0, False, None)
    site.owner.start_without_us()
    assert site.agent.lbswitch("balancer", "status", "--json").output["running"] is True
    assert owners_files(site.owner) == before
    assert not site.owner.output.exists()


def test_service_that_the_owner_still_includes(site: Site) -> None:
    """A service removed from lbswitch.yaml before the owner's include is: refused, told, and nothing changes."""
    site.agent.start()
    site.owner.start()
    wait_until(site.verified, "blue is seen")
    document = yaml.safe_load(site.agent.config_path.read_text())
    document["services"]["other"] = document["services"].pop("shop")
    site.agent.write_config(document)
    wait_until(lambda: "shop.server.conf" in site.agent.log(), "the agent says which file is still included")
    assert site.app() == "blue"
    assert (site.owner.output / "current" / "shop.server.conf").exists()


def owners_files(owner: Owner) -> dict[str, tuple[str, int]]:
    """Digests and times of what is the owner's."""
    return {path: stamp for path, stamp in owner.fingerprint().items() if not Path(path).is_relative_to(owner.output)}
