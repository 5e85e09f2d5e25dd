"""Bringing back a snapshot, against fakes: all of it or nothing, whatever fails and whenever the agent dies."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lbswitch import configfile
from lbswitch.core.config import Config, ServiceConfig
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color, Intent, Kind, Operation, OperationState, Route, ServiceIntent
from lbswitch.edits import refuse_what_needs_a_restart
from lbswitch.errors import Busy, Conflict, Refused, StateError
from lbswitch.events import Events
from lbswitch.ports import Rendered, RenderedFile
from lbswitch.restore import STEPS, Restorer
from lbswitch.serving import Serving
from lbswitch.snapshots import Snapshots
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth

BLUE, GREEN = Color.BLUE, Color.GREEN


class Face:
    """One configuration's view of the fake balancer: what it renders depends on the configuration, too."""

    def __init__(self, fake: FakeBalancer, config: Config) -> None:
        self._fake, self._config = fake, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def render(self, intent: Intent) -> Rendered:
        files = self._fake.render(intent).files
        settings = {name: service.model_dump(mode="json") for name, service in self._config.services.items()}
        return Rendered.of([*files, RenderedFile("services", json.dumps(settings, indent=1).encode())])


class Health(FakeHealth):
    """Also tells what a trial of servers that are not checked would give."""

    def try_out(self, services: Mapping[str, ServiceConfig]) -> dict[tuple[str, Color], PoolFacts]:
        return {
            (name, color): self._facts_of(service.pool(color).servers)
            for name, service in services.items()
            for color in Color
        }

    def _facts_of(self, servers: tuple[str, ...]) -> PoolFacts:
        dead = [server for server in servers if server in self.dead]
        return PoolFacts(PoolState.UNHEALTHY, f"{dead[0]} is dead") if dead else PoolFacts(PoolState.HEALTHY, "1 of 1")

    dead: tuple[str, ...] = ()


def services(*names: str, **settings: Any) -> dict[str, Any]:
    """A document with these services; `settings` are of the first."""
    verify = {"verify": {"answers": 1, "deadline": "30ms"}}
    found: dict[str, Any] = {
        name: {
            "bind": f"127.0.0.1:{8080 + number}",
            "blue": {"servers": [f"127.0.0.1:91{number}1"]},
            "green": {"servers": [f"127.0.0.1:91{number}2"]},
            **verify,
        }
        for number, name in enumerate(names)
    }
    found[names[0]] |= settings
    return {"balancer": {"kind": "nginx"}, "services": found}


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class Desk:
    """An agent's parts on fakes, with a real store, a real configuration file and real snapshots."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / "etc" / "lbswitch.yaml"
        self.path.parent.mkdir()
        self.fake, self.health = FakeBalancer(), Health()
        self.steps: list[str] = []
        self.die_at: str | None = None
        self.at: dict[str, Callable[[], None]] = {}
        self.write(services("shop", "blog"))
        self.store = SqliteStore(directory / "lbswitch.db")
        self.boot(first=True)

    def write(self, document: Mapping[str, Any]) -> None:
        self.path.write_text(json.dumps(document))

    def boot(self, *, first: bool = False) -> None:
        """As an agent starts: read the file, then the journal, then serve."""
        config = configfile.load(self.path)
        events = Events(time.time)
        self.serving = Serving(config, Face(self.fake, config), events, self.step)
        self.snapshots = Snapshots(self.directory / "snapshots", self.path, self.serving, self.store, time.time)
        self.switcher = Switcher(
            self.serving, self.store, self.health, events, on_step=self.step, snapshots=self.snapshots
        )
        self.restorer = Restorer(
            *(self.path, self.serving, self.store, self.switcher, self.snapshots),
            *(self.load, refuse_what_needs_a_restart, self.health.try_out),
            on_step=self.step,
        )
        recoveries = self.switcher.recover()
        known = {**self.store.services(), **{each.service: each.serves for each in recoveries}}
        new = ServiceIntent(Route(BLUE), 1)
        self.serving.start(Intent({name: known.get(name, new) for name in config.services}, self.store.generation()))
        self.switcher.conclude(recoveries)
        self.restorer.clean()
        self.store.save_services(self.serving.intent.services, self.serving.intent.generation)

    def load(self, text: str) -> tuple[Config, Face]:
        config = configfile.load_text(text, "the snapshot")
        return config, Face(self.fake, config)

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.die_at:
            raise Killed
        if name in self.at:
            self.at[name]()

    def reconfigure(self, document: Mapping[str, Any]) -> None:
        """As an edit is applied."""
        self.snapshots.take("configuration")
        self.write(document)
        config = configfile.load(self.path)
        self.serving.reconfigure(config, Face(self.fake, config))
        self.store.save_services(self.serving.intent.services, self.serving.intent.generation)

    def switch(self, to: Color, *names: str, **more: Any) -> list[Operation]:
        done = self.switcher.run(Request(Kind.SWITCH, names or ("shop",), to=to, actor="test", **more))
        assert {operation.state for operation in done} == {"done"}, done
        return done

    def restore(self, number: int, **more: Any) -> list[Operation]:
        self.steps.clear()
        return self.restorer.run(number, Request(Kind.RESTORE, (), actor="test", **more))

    def facts(self) -> tuple[object, ...]:
        """Everything that must never disagree: intended, recorded, on disk, served, installed, and the file."""
        assert self.serving.intent.services == self.store.services() == self.fake.on_disk.services
        assert self.fake.on_disk.services == self.fake.serves.services
        assert self.fake.revision == self.serving.balancer.render(self.serving.intent).revision
        assert set(self.serving.intent.services) == set(self.serving.config.services)
        assert self.serving.config == configfile.load(self.path)
        assert not self.store.unfinished()
        assert [path.name for path in self.path.parent.iterdir()] == [self.path.name]
        return self.routes(), self.path.read_text()

    def routes(self) -> dict[str, Route]:
        return {name: each.route for name, each in self.serving.intent.services.items()}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def ten_back(desk: Desk) -> tuple[int, tuple[object, ...]]:
    """A state, its snapshot, and then ten operations with edits in between."""
    desk.switch(GREEN)
    wanted = desk.facts()
    number = desk.switch(BLUE)[0].snapshot
    for _ in range(4):
        desk.switch(GREEN)
        desk.switch(BLUE)
    edited = services("shop", "cart", bind="127.0.0.1:8099")
    desk.reconfigure(edited)
    desk.switch(GREEN, "cart")
    return number, wanted


def test_ten_operations_and_an_edit_back(desk: Desk) -> None:
    """Routes and configuration are those of then: a bind moved back, a service gone and one back again."""
    number, wanted = ten_back(desk)
    done = desk.restore(number, reason="the edit was a mistake")
    assert [(each.service, each.kind, each.state) for each in done] == [
        ("shop", "restore", "done"),
        ("blog", "restore", "done"),
    ]
    shop = done[0]
    assert (shop.source, shop.target, shop.weight, shop.generation) == (BLUE, GREEN, 100, 12)
    assert shop.notes == (f"snapshot {number} is restored", "cart was removed: the snapshot does not have it")
    assert shop.timings.total > 0
    assert desk.facts() == wanted
    assert desk.store.operation(shop.id).to_json() == shop.to_json()
    order = ["gates", "render", "check", "intent", "prepare", "install", "reload", "commit", "verify", "file", "done"]
    assert desk.steps == order


def test_a_restore_can_be_undone_by_a_restore(desk: Desk) -> None:
    """What there was before is a snapshot, too, with the file as it was."""
    number, _ = ten_back(desk)
    before = desk.facts()
    taken = desk.restore(number)[0].snapshot
    assert desk.store.snapshot(taken).restores == number
    desk.restore(taken)
    assert desk.facts() == before


def test_the_same_again_is_already(desk: Desk) -> None:
    """Same routes and configuration, on disk and seen: nothing is committed. Not seen: it is done for real."""
    number, _ = ten_back(desk)
    desk.restore(number)
    commits = len(desk.fake.commits)
    assert {each.state for each in desk.restore(number)} == {"already"}
    assert len(desk.fake.commits) == commits
    desk.fake.serves = Intent(dict.fromkeys(desk.routes(), ServiceIntent(Route(BLUE), 1)), 1)
    assert {each.state for each in desk.restore(number)} == {"done"}
    desk.facts()


def test_only_routes_leave_the_file_alone(desk: Desk) -> None:
    """The configuration is the same: neither render nor file changes, and only what moves takes part."""
    number = desk.switch(GREEN)[0].snapshot
    stamp = desk.path.stat()
    (done,) = desk.restore(number)
    assert (done.service, done.source, done.target) == ("shop", GREEN, BLUE)
    assert desk.path.stat() == stamp
    assert "install" not in desk.steps
    desk.facts()


def test_a_dry_run_changes_nothing_and_says_what_it_would(desk: Desk) -> None:
    """Files, services and outcome, without a row."""
    number, _ = ten_back(desk)
    before, history = desk.facts(), desk.store.history(100)
    done = desk.restore(number, dry_run=True)
    assert {(each.state, each.id) for each in done} == {("done", 0)}
    assert done[0].notes == (
        "would change rendered files and reload",
        f"would replace {desk.path}",
        "would remove cart",
    )
    assert (desk.facts(), desk.store.history(100)) == (before, history)


def refused(desk: Desk, number: int, gate: str, words: str, **more: Any) -> None:
    """A restore is refused for this reason, is in the history, and changed nothing."""
    before = desk.facts()
    done = desk.restore(number, **more)
    assert {(each.state, each.gate.name) for each in done} == {("refused", gate)}, done
    assert any(words in each.gate.message for each in done), done
    assert desk.store.history(1)[0].state == "refused"
    assert desk.facts() == before


def test_gates_refuse_and_force_passes_some(desk: Desk) -> None:
    """Freeze, health and clients can be forced, and the operation says so; a balancer that is down can't."""
    number, wanted = ten_back(desk)
    desk.store.freeze("blog", "inventory")
    refused(desk, number, "freeze", "inventory")
    desk.store.release("blog", 0.0)
    desk.health.dead = ("127.0.0.1:9102",)
    desk.health.sick["shop", GREEN] = "127.0.0.1:9102 is dead"
    refused(desk, number, "health", "127.0.0.1:9102 is dead")
    desk.fake.running = False
    refused(desk, number, "balancer", "not running", force=True)
    desk.fake.running = True
    done = desk.restore(number, force=True)
    assert "forced past health" in done[0].notes[0]
    assert desk.facts() == wanted


def test_servers_that_are_not_configured_now_are_checked_before(desk: Desk) -> None:
    """A service that comes back, and a color that is other servers again, must be healthy."""
    number, _ = ten_back(desk)
    desk.health.dead = ("127.0.0.1:9111",)
    refused(desk, number, "health", "127.0.0.1:9111 is dead")
    desk.health.dead = ("127.0.0.1:9112",)
    assert {each.state for each in desk.restore(number)} == {"done"}, "green of blog gets no traffic"


def test_expect_must_hold_where_traffic_moves(desk: Desk) -> None:
    """Exit 7 and nothing changed; services that keep their route don't matter."""
    number = desk.switch(GREEN)[0].snapshot
    with pytest.raises(Conflict, match="expected blue to be live, but green is"):
        desk.restore(number, expect=BLUE)
    assert desk.restore(number, expect=GREEN)[0].state == "done"


def test_templates_of_today_are_told_with_a_diff(desk: Desk) -> None:
    """What would be rendered otherwise is refused; forced it is restored with today's."""
    number, wanted = ten_back(desk)
    desk.fake.template = "two"
    desk.serving.refresh()
    refused(desk, number, "rendering", "-one ['blog', 'shop']")
    done = desk.restore(number, force=True)
    assert {each.state for each in done} == {"done"}
    assert "+two ['blog', 'shop']" in done[0].notes[0]
    assert desk.facts() == wanted


def test_what_the_checker_refuses_is_not_restored(desk: Desk) -> None:
    """No force helps."""
    number, _ = ten_back(desk)
    desk.fake.refuse = "certificate is gone"
    refused(desk, number, "check", "certificate is gone", force=True)


def test_what_needs_a_restart_is_told_how_to_do_by_hand(desk: Desk) -> None:
    """Another kind of balancer or state directory can't be had by a running agent."""
    number = desk.switch(GREEN)[0].snapshot
    desk.reconfigure(services("shop", "blog", bind="127.0.0.1:8099"))
    desk.serving.config = desk.serving.config.model_copy(
        update={"agent": desk.serving.config.agent.model_copy(update={"state_dir": "/elsewhere"})}
    )
    with pytest.raises(Refused, match=rf"restarted[^!]*lbswitch snapshots show {number} --file lbswitch.yaml"):
        desk.restore(number)


def test_a_file_that_may_not_be_written_is_told_before(desk: Desk) -> None:
    """With the way to do it by hand; the same when staging it fails."""
    number, _ = ten_back(desk)
    (desk.path.parent / ".lbswitch.yaml.lbswitch-new").mkdir()
    (desk.path.parent / ".lbswitch.yaml.lbswitch-new" / "in the way").touch()
    done = desk.restore(number)
    assert {each.state for each in done} == {"reverted"}
    assert "can't be replaced" in done[0].error
    assert "install" not in desk.steps


def no_room() -> None:
    raise StateError("No space left on device")


@pytest.mark.parametrize("trouble", ["commit", "deaf", "journal", "file"])
def test_what_fails_on_the_way_is_put_back(desk: Desk, trouble: str) -> None:
    """The commit, the listener, the journal's end, or the file: all as it was, the configuration file included."""
    number, _ = ten_back(desk)
    before = desk.facts()
    if trouble == "commit":
        desk.fake.break_commit = ["No space left on device"]
    elif trouble == "deaf":
        desk.fake.deaf = True
    else:
        desk.at[{"journal": "done", "file": "file"}[trouble]] = no_room
    done = desk.restore(number)
    assert {each.state for each in done} == {"reverted"}, done
    assert "all is as it was before" in done[0].error
    desk.fake.deaf = False
    assert desk.facts() == before


def test_while_it_runs_all_services_are_held(desk: Desk) -> None:
    """A switch of a service that only the snapshot knows, or only today's configuration, is refused meanwhile."""
    number, _ = ten_back(desk)
    told: list[str] = []

    def ask() -> None:
        for service in ("shop", "cart", "blog"):
            request = Request(Kind.SWITCH, (service,), to=GREEN)
            with pytest.raises(Busy, match="a restore by test is running") as busy, desk.switcher.held(request):
                pass
            told.append(str(busy.value))

    desk.at["verify"] = ask
    assert {each.state for each in desk.restore(number)} == {"done"}
    assert [each.partition(":")[0] for each in told] == ["shop", "cart", "blog"]


PREPARED: dict[str, Callable[[Desk], int]] = {
    "configuration": lambda desk: ten_back(desk)[0],
    "routes": lambda desk: desk.switch(GREEN, "shop", "blog")[0].snapshot,
}
"""What there is to restore; gives the number of the snapshot."""


@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "revert"])
@pytest.mark.parametrize("scenario", PREPARED)
def test_dying_at_any_step_restores_all_or_nothing(desk: Desk, scenario: str, step: str, sick: bool) -> None:
    """The next agent finishes the whole restore or reverts it whole, and is at peace with disk, listener and file."""
    number = PREPARED[scenario](desk)
    before = desk.facts()
    desk.die_at = step
    try:
        desk.restore(number)
    except Killed:
        pass
    else:
        assert scenario == "routes", f"{step} was not taken"
    desk.die_at = None
    if sick:
        desk.health.sick["shop", BLUE] = desk.health.sick["shop", GREEN] = "down"
    desk.boot()
    after = desk.facts()
    restored = desk.snapshots.archive.read(number)
    wanted = (
        {name: each.route for name, each in restored.intent.services.items()},
        desk.snapshots.archive.config_text(restored),
    )
    assert after in (before, wanted)
    if step == "done" and (scenario == "configuration" or not sick):
        assert after == wanted, "all was seen and the file was in its place"
    if scenario == "configuration" and step != "done":
        assert after == before
    ended = {each.state for each in desk.store.history(2) if each.kind == "restore"}
    assert ended <= {OperationState.DONE} if after == wanted else ended <= {OperationState.REVERTED}


def test_dying_again_while_recovering_changes_no_verdict(desk: Desk) -> None:
    """The operations stay open until what they decide was seen; the agent after the next one ends them the same way."""
    number, wanted = ten_back(desk)
    desk.die_at = "done"
    with pytest.raises(Killed):
        desk.restore(number)
    desk.die_at = "verify"
    for _ in range(3):
        with pytest.raises(Killed):
            desk.boot()
        assert desk.store.unfinished()
    desk.die_at = None
    desk.boot()
    assert desk.facts() == wanted


def test_the_way_there_avoids_dead_servers(desk: Desk) -> None:
    """While files change, traffic takes the route whose servers answer: here the new one on the old servers."""
    number = desk.switch(GREEN)[0].snapshot
    desk.reconfigure(services("shop", "blog", green={"servers": ["127.0.0.1:9999"]}))
    desk.health.dead = ("127.0.0.1:9102",)
    assert {each.state for each in desk.restore(number)} == {"done"}
    on_the_way = desk.fake.commits[-2].services["shop"]
    assert (on_the_way.route, desk.routes()["shop"]) == (Route(BLUE), Route(BLUE))


def test_there_may_be_no_way(desk: Desk) -> None:
    """Green as it was is dead, blue as it is now is dead: no order of steps keeps traffic alive, so it is refused."""
    number = desk.switch(GREEN)[0].snapshot
    desk.reconfigure(services("shop", "blog", green={"servers": ["127.0.0.1:9999"]}))
    desk.health.dead = ("127.0.0.1:9102",)
    desk.health.sick["shop", BLUE] = "down"
    refused(desk, number, "health", "down")
