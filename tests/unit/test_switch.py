"""The transaction against fakes: what it promises whatever the balancer does."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from lbswitch.core.model import Color, Intent, Kind, Observation, OperationState, Route, ServiceIntent
from lbswitch.errors import Busy, Conflict, NotSeen, Refused, ReloadFailed, StateError, UnknownService
from lbswitch.events import Events
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import STEPS, Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth, config_of

BLUE, GREEN = Color.BLUE, Color.GREEN


class Desk:
    """A Switcher on fakes with a real store."""

    def __init__(self, directory: Path, balancer: FakeBalancer | None = None) -> None:
        self.balancer, self.health, self.events = balancer or FakeBalancer(), FakeHealth(), Events(time.time)
        self.store = SqliteStore(directory / "lbswitch.db")
        self.steps: list[str] = []
        self.config = config_of()
        self.serving = Serving(self.config, self.balancer, self.events, self.steps.append)
        self.switcher = Switcher(self.serving, self.store, self.health, self.events, on_step=self.steps.append)
        intent = Intent({name: ServiceIntent(Route(BLUE), 1) for name in self.config.services}, 1)
        self.serving.start(intent)
        self.store.save_services(intent.services, 1)
        self.steps.clear()

    def run(self, to: Color | None, kind: Kind = Kind.SWITCH, services: tuple[str, ...] = ("shop",), **more: object):
        return self.switcher.run(Request(kind, services, to=to, actor="test", **more))

    def one(self, to: Color | None, kind: Kind = Kind.SWITCH, **more: object):
        return self.run(to, kind, **more)[0]

    def facts(self) -> tuple[object, object, object]:
        """Intended in memory, in the journal, and what is served."""
        return (
            dict(self.serving.intent.services),
            self.store.services(),
            dict(self.balancer.serves.services) if self.balancer.serves else None,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def test_a_switch_is_done_when_it_was_seen(desk: Desk) -> None:
    """Done carries generation and timings; memory, journal and balancer agree."""
    operation = desk.one(GREEN, reason="release 7")
    assert (operation.state, operation.kind, operation.source, operation.target) == ("done", "switch", BLUE, GREEN)
    assert operation.generation == 2
    assert operation.timings.total > 0
    intended, stored, served = desk.facts()
    assert intended == stored == served
    assert desk.store.operation(operation.id).to_json() == operation.to_json()
    assert desk.steps == ["gates", "render", "stage", "intent", "commit", "verify", "done"]


def test_the_same_again_is_already(desk: Desk) -> None:
    """A second switch to the same color commits nothing and keeps the generation."""
    desk.one(GREEN)
    commits = len(desk.balancer.commits)
    operation = desk.one(GREEN)
    assert (operation.state, operation.kind, operation.generation) == ("already", "switch", 2)
    assert len(desk.balancer.commits) == commits


def test_already_is_not_believed_without_a_look(desk: Desk) -> None:
    """When the listener shows something else than intended, the same switch moves it for real."""
    desk.one(GREEN)
    desk.balancer.serves = Intent({name: ServiceIntent(Route(BLUE), 1) for name in desk.config.services}, 1)
    assert desk.one(GREEN).state == "done"
    assert desk.balancer.serves.services["shop"].route == Route(GREEN)


def test_a_switch_that_is_not_seen_is_put_back(desk: Desk) -> None:
    """A balancer that says yes and serves the old color: reverted, and everything as before."""
    before = desk.facts()
    desk.balancer.deaf = True
    operation = desk.one(GREEN)
    assert operation.state == "reverted"
    assert "not seen within" in operation.error
    assert "still serving: shop on blue" in operation.error
    assert desk.facts() == before
    assert not desk.store.unfinished()


def test_a_failed_commit_is_put_back(desk: Desk) -> None:
    """A pointer that can't be moved leaves the old color intended, recorded and served."""
    before = desk.facts()
    desk.balancer.break_commit = ["No space left on device"]
    operation = desk.one(GREEN)
    assert operation.state == "reverted"
    assert "No space left" in operation.error
    assert desk.facts() == before


def test_a_failed_return_is_tried_again(desk: Desk) -> None:
    """Commit and return both fail: said so, and `settle` brings it home later."""
    desk.balancer.break_commit = ["disk", "disk"]
    assert desk.one(GREEN).state == "failed"
    assert desk.serving.settle()
    assert desk.balancer.serves.services["shop"].route == Route(BLUE)
    assert not desk.serving.settle()


def test_a_reload_that_failed_on_the_way_back_is_owed(desk: Desk) -> None:
    """Files are back on disk, and what runs are others: `settle` reloads."""
    before, reload, reloads = desk.balancer.revision, desk.balancer.reload, []

    def fail_the_second_time(*, gently: bool = True) -> None:
        reloads.append(desk.balancer.revision)
        if len(reloads) == 2:
            raise ReloadFailed("it hangs")
        reload(gently=gently)

    desk.balancer.reload = fail_the_second_time
    desk.balancer.template, desk.balancer.deaf = "two", True
    assert desk.one(GREEN).state == "failed"
    assert desk.balancer.revision == before
    desk.balancer.deaf = False
    assert desk.serving.settle()
    assert reloads[1:] == [before, before]


def test_what_a_full_disk_did_not_take_is_in_the_history_later(desk: Desk) -> None:
    """Also of an operation that could not even begin."""
    begin, record, fails = desk.store.begin, desk.store.record, [True]

    def full(write: Callable[..., object]) -> Callable[..., object]:
        def try_to(*arguments: object) -> object:
            if fails:
                raise StateError("disk is full")
            return write(*arguments)

        return try_to

    desk.store.begin, desk.store.record = full(begin), full(record)
    assert desk.one(GREEN).state == "reverted"
    assert desk.store.history(9) == []
    fails.clear()
    desk.switcher.record_late()
    desk.switcher.record_late()
    (written,) = desk.store.history(9)
    assert (written.state, "disk is full" in written.error) == ("reverted", True)


def test_a_refused_template_stops_a_switch_before_anything_moves(desk: Desk) -> None:
    """The checker's words are shown; no INTENT is written, no commit made."""
    desk.balancer.template, desk.balancer.refuse = "broken", 'unknown directive "sever"'
    commits = len(desk.balancer.commits)
    operation = desk.one(GREEN)
    assert operation.state == "reverted"
    assert 'unknown directive "sever"' in operation.error
    assert len(desk.balancer.commits) == commits
    assert "intent" not in desk.steps


def test_a_refused_template_never_stops_the_way_back(desk: Desk) -> None:
    """A rollback by pointer works while the templates are broken, and says that they are."""
    desk.one(GREEN)
    desk.balancer.template, desk.balancer.refuse = "broken", "unknown directive"
    operation = desk.one(None, Kind.ROLLBACK)
    assert (operation.state, operation.target) == ("done", BLUE)
    assert "left as they are" in operation.notes[0]


def test_an_unhealthy_color_gets_no_traffic(desk: Desk) -> None:
    """The health gate refuses with the failed checks; force passes it and the operation says so."""
    desk.health.sick["shop", GREEN] = "127.0.0.1:9102: 2 failed checks, connect refused"
    refused = desk.one(GREEN)
    assert (refused.state, refused.gate.name) == ("refused", "health")
    assert "connect refused" in refused.gate.message
    forced = desk.one(GREEN, force=True)
    assert forced.state == "done"
    assert "forced past health" in forced.notes[0]


def test_expect_must_hold(desk: Desk) -> None:
    """A wrong expectation raises Conflict with the truth; one about what is already done does not matter."""
    with pytest.raises(Conflict, match="expected green to be live, but blue is"):
        desk.one(GREEN, expect=GREEN)
    assert desk.one(GREEN, expect=BLUE).state == "done"
    assert desk.one(GREEN, expect=BLUE).state == "already"


def test_a_freeze_stops_switches_but_not_the_way_back(desk: Desk) -> None:
    """Frozen: a switch is refused, a rollback by hand is not."""
    desk.one(GREEN)
    desk.store.freeze("shop", "inventory")
    refused = desk.one(BLUE)
    assert (refused.state, refused.gate.name) == ("refused", "freeze")
    assert "inventory" in refused.gate.message
    assert desk.one(None, Kind.ROLLBACK).state == "done"


def test_rollback_goes_to_what_was_serving_before_and_only_once(desk: Desk) -> None:
    """Nothing before the first switch; then back; a second rollback does not go forward again."""
    assert desk.one(None, Kind.ROLLBACK).gate.name == "previous"
    desk.one(GREEN)
    assert desk.switcher.previous("shop") is BLUE
    back = desk.one(None, Kind.ROLLBACK)
    assert (back.state, back.source, back.target) == ("done", GREEN, BLUE)
    again = desk.one(None, Kind.ROLLBACK)
    assert again.state == "refused"
    assert "lbswitch green" in again.gate.message
    assert desk.switcher.previous("shop") is None


def test_weights_move_without_making_the_other_color_live(desk: Desk) -> None:
    """A canary keeps the live color; all of it makes it live; a rollback of a canary takes its traffic back."""
    reloads = desk.balancer.reloads
    canary = desk.one(GREEN, weight=10)
    assert (canary.kind, canary.weight, canary.source, canary.target) == ("weight", 10, BLUE, GREEN)
    assert desk.serving.intent.services["shop"].route == Route(BLUE, 90)
    assert desk.serving.intent.services["shop"].weighted
    assert desk.balancer.reloads == reloads + 1, "rendered for weights once"
    assert desk.one(GREEN, weight=50).state == "done"
    assert desk.balancer.reloads == reloads + 1
    back = desk.one(None, Kind.ROLLBACK)
    assert (back.target, desk.serving.intent.services["shop"].route) == (BLUE, Route(BLUE))
    assert desk.one(GREEN).kind == "switch"


def test_buckets_are_on_disk_before_the_configuration_that_reads_them(desk: Desk) -> None:
    """While a reload to weights lasts, the pointer serves the old route to old and new workers."""
    commits = len(desk.balancer.commits)
    desk.one(GREEN, weight=10)
    prepared, final = desk.balancer.commits[commits:]
    assert prepared.services["shop"] == ServiceIntent(Route(BLUE), 1, weighted=True)
    assert final.services["shop"] == ServiceIntent(Route(BLUE, 90), 2, weighted=True)
    assert desk.steps[2:] == ["check", "intent", "prepare", "install", "reload", "commit", "verify", "done"]


def test_all_services_move_in_one_commit_or_none(desk: Desk) -> None:
    """Several services are one commit; one that is refused keeps the others."""
    desk.health.sick["blog", GREEN] = "down"
    refused = desk.run(GREEN, services=("shop", "blog"))
    assert [operation.state for operation in refused] == ["refused", "refused"]
    assert "because blog was refused" in refused[0].gate.message
    desk.health.sick.clear()
    commits = len(desk.balancer.commits)
    done = desk.run(GREEN, services=("shop", "blog"))
    assert [operation.state for operation in done] == ["done", "done"]
    assert len({operation.generation for operation in done}) == 1
    assert len(desk.balancer.commits) == commits + 1


def test_one_operation_at_a_time(desk: Desk) -> None:
    """While one holds the service another is refused and told by whom; other services go on."""
    inside, leave = threading.Event(), threading.Event()

    def stop_at(step: str) -> None:
        if step == "gates" and not inside.is_set():
            inside.set()
            leave.wait(5)

    switcher = Switcher(desk.serving, desk.store, desk.health, desk.events, on_step=stop_at)
    first = threading.Thread(target=switcher.run, args=(Request(Kind.SWITCH, ("shop",), to=GREEN, actor="ann"),))
    first.start()
    assert inside.wait(5)
    with pytest.raises(Busy, match="a switch by ann is running"):
        switcher.run(Request(Kind.SWITCH, ("shop",), to=GREEN, actor="bob"))
    assert switcher.run(Request(Kind.SWITCH, ("blog",), to=GREEN, actor="bob"))[0].state == "done"
    leave.set()
    first.join(5)
    assert switcher.holder("shop") is None


def test_a_dry_run_keeps_nothing(desk: Desk) -> None:
    """The answer says what would happen; history, generation and traffic stay."""
    before, history = desk.facts(), desk.store.history(10)
    operation = desk.one(GREEN, dry_run=True)
    assert (operation.state, operation.dry_run, operation.id) == ("done", True, 0)
    assert desk.facts() == before
    assert desk.store.history(10) == history


def test_an_unknown_service_names_the_known_ones(desk: Desk) -> None:
    """The error helps."""
    with pytest.raises(UnknownService, match="known: blog, shop"):
        desk.run(GREEN, services=("shp",))


def test_a_recovered_switch_that_is_not_seen_is_put_back(desk: Desk) -> None:
    """Moved on disk by an agent that died, but the listener does not show it: reverted, not believed."""

    def die(name: str) -> None:
        if name == "done":
            raise Killed

    with pytest.raises(Killed):
        Switcher(desk.serving, desk.store, desk.health, desk.events, on_step=die).run(
            Request(Kind.SWITCH, ("shop",), to=GREEN, actor="test")
        )
    restarted = Serving(desk.config, desk.balancer, desk.events)
    switcher = Switcher(restarted, desk.store, desk.health, desk.events)
    recoveries = switcher.recover()
    assert [(recovery.finish, recovery.serves.route) for recovery in recoveries] == [(True, Route(GREEN))]
    desk.balancer.serves, desk.balancer.deaf = Intent(desk.store.services(), 1), True
    restarted.start(Intent({**desk.store.services(), "shop": recoveries[0].serves}, desk.store.generation()))
    switcher.conclude(recoveries)
    assert desk.store.history(1)[0].state == "reverted"
    assert "not seen" in desk.store.history(1)[0].error
    assert desk.balancer.on_disk.services["shop"].route == desk.store.services()["shop"].route == Route(BLUE)


def test_a_balancer_that_is_down_is_a_gate(desk: Desk) -> None:
    """Refused at once, also with force: nothing could be seen."""
    desk.balancer.running = False
    for force in (False, True):
        refused = desk.one(GREEN, force=force)
        assert (refused.state, refused.gate.name) == ("refused", "balancer")


def test_from_and_to_say_how_traffic_moves(desk: Desk) -> None:
    """`to` is the color that gains, `weight` its share afterwards, whichever color was named."""
    desk.one(GREEN)
    less = desk.one(GREEN, weight=30)
    assert (less.source, less.target, less.weight, less.kind) == (GREEN, BLUE, 70, "weight")
    none = desk.one(GREEN, weight=0)
    assert (none.source, none.target, none.weight, none.kind) == (GREEN, BLUE, 100, "switch")


@pytest.mark.parametrize("step", ["render", "check", "intent", "install", "reload", "commit", "verify", "done"])
def test_a_bug_at_any_step_is_put_back(desk: Desk, step: str) -> None:
    """What nobody foresaw is an error like any other: reverted, recorded, and the next switch works."""
    stumbled: list[str] = []

    def stumble(name: str) -> None:
        if name == step and is_armed and not stumbled:
            stumbled.append(name)
            raise UnboundLocalError("x")

    is_armed = False
    serving = Serving(desk.config, desk.balancer, desk.events, on_step=stumble)
    serving.start(desk.serving.intent)
    switcher = Switcher(serving, desk.store, desk.health, desk.events, on_step=stumble)
    wanted = Request(Kind.SWITCH, ("shop",), to=GREEN, actor="test")
    before, is_armed = (desk.facts(), desk.balancer.revision), True
    desk.balancer.template = "two"
    (operation,) = switcher.run(wanted)
    assert (stumbled, operation.state) == ([step], "reverted")
    assert "unexpected UnboundLocalError: x; please report it" in operation.error
    assert [event.type for event in desk.events.since(0)].count("bug") == 1
    assert (desk.facts(), desk.balancer.revision) == before
    assert serving.intent.services == desk.serving.intent.services
    assert desk.store.unfinished() == []
    assert switcher.run(wanted)[0].state == "done"


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def test_the_way_back_is_written_ahead(desk: Desk) -> None:
    """After a move the balancer holds what undoes it, as the next generation; of a split what ends it."""
    desk.switcher.prepare_way_back()
    assert desk.balancer.ahead is None
    done = desk.one(GREEN)
    desk.switcher.prepare_way_back()
    assert desk.balancer.ahead.services["shop"] == ServiceIntent(Route(BLUE), done.generation + 1)
    split = desk.one(BLUE, weight=10)
    desk.switcher.prepare_way_back()
    assert desk.balancer.ahead.services["shop"] == ServiceIntent(Route(GREEN), split.generation + 1, weighted=True)


def test_nothing_is_written_ahead_while_others_work(desk: Desk) -> None:
    """An operation has the disk to itself."""
    desk.one(GREEN)
    with desk.switcher.held(Request(Kind.SWITCH, ("shop",), to=BLUE)):
        desk.switcher.prepare_way_back()
    assert desk.balancer.ahead is None


class Full(SqliteStore):
    """There is no room for INTENT."""

    def begin(self, *_: object, **__: object) -> NoReturn:
        raise StateError("disk full")


def test_what_was_staged_is_dropped_when_intent_can_not_be_written(desk: Desk, tmp_path: Path) -> None:
    """A full disk leaves nothing prepared that a later commit could pick up."""
    store = Full(tmp_path / "full.db")
    switcher = Switcher(desk.serving, store, desk.health, desk.events)
    (operation,) = switcher.run(Request(Kind.SWITCH, ("shop",), to=GREEN))
    store.close()
    assert operation.state is OperationState.REVERTED
    assert desk.balancer.prepared is None
    assert desk.balancer.on_disk.services["shop"].route == Route(BLUE)


def test_a_move_that_can_not_be_staged_is_not_made(desk: Desk) -> None:
    """INTENT was written by then, so the journal says how it ended."""
    desk.balancer.break_prepare.append("no room")
    operation = desk.one(GREEN)
    assert (operation.state, operation.id > 0) == (OperationState.REVERTED, True)
    assert "no room" in operation.error
    assert not desk.store.unfinished()
    assert desk.one(GREEN).state is OperationState.DONE


@pytest.mark.parametrize("sick", [False, True], ids=["green healthy", "green sick"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "revert"])
def test_recovery_after_dying_at_any_step(desk: Desk, step: str, sick: bool) -> None:
    """Whatever step an agent dies at, its successor ends the operation, and all three facts agree again."""

    def die(name: str) -> None:
        if name == step:
            raise Killed

    serving = Serving(desk.config, desk.balancer, desk.events, die)
    serving.intent = desk.serving.intent
    with pytest.raises(Killed):
        Switcher(serving, desk.store, desk.health, desk.events, on_step=die).run(
            Request(Kind.SWITCH, ("shop",), to=GREEN, weight=100 if step == "stage" else 10, actor="test")
        )  # only a move that needs no files is staged
    if sick:
        desk.health.sick["shop", GREEN] = "down"
    moved = desk.balancer.on_disk.services["shop"].route != Route(BLUE)
    restarted = Serving(desk.config, desk.balancer, desk.events)
    switcher = Switcher(restarted, desk.store, desk.health, desk.events)
    recoveries = switcher.recover()
    serves = {recovery.service: recovery.serves for recovery in recoveries}
    restarted.start(Intent({**desk.store.services(), **serves}, desk.store.generation()))
    switcher.conclude(recoveries)
    assert not desk.store.unfinished()
    expected = Route(BLUE, 90) if moved and not sick else Route(BLUE)
    for facts in (restarted.intent.services, desk.store.services(), desk.balancer.serves.services):
        assert facts["shop"].route == expected
    if moved:
        assert desk.store.history(1)[0].state == (OperationState.REVERTED if sick else OperationState.DONE)


class OwnersBalancer(FakeBalancer):
    """Somebody else's to start, as a guest's is; `included` says whether its listener has our lines."""

    included = True

    def why_not_started(self) -> str | None:
        return "nginx is somebody else's to start"

    def observe(self, service: str) -> Observation:
        if not self.included:
            raise NotSeen(f"{service}: the listener does not tell its state: the snippet is not included")
        return super().observe(service)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, OwnersBalancer())
    yield desk
    desk.store.close()


def lose_the_lines(desk: Desk) -> None:
    """The owner takes them out, and somebody looks."""
    assert isinstance(desk.balancer, OwnersBalancer)
    desk.balancer.included = False
    desk.serving.look("shop")


def test_a_switch_that_nobody_could_see_is_refused_to_a_guest(guest: Desk) -> None:
    """With the gate `listener` and exit code 3, and what is missing; nothing has moved."""
    lose_the_lines(guest)
    before = guest.facts()
    operation = guest.one(GREEN)
    assert operation.gate is not None
    assert (operation.state, operation.gate.name) == (OperationState.REFUSED, "listener")
    assert "the snippet is not included; a switch could not be seen (lbswitch doctor" in operation.gate.message
    assert Refused(operation.gate.name, operation.gate.message).exit_code == 3
    assert guest.facts() == before
    weights = guest.one(GREEN, weight=10)
    assert weights.gate is not None
    assert weights.gate.name == "listener"


def test_force_passes_the_listener_and_says_so(guest: Desk) -> None:
    """It is tried; nobody sees it, nor that it was put back."""
    lose_the_lines(guest)
    operation = guest.one(GREEN, force=True)
    assert (operation.state, operation.gate) == (OperationState.FAILED, None)
    assert operation.notes[0].startswith("forced past listener: ")


@pytest.mark.parametrize("kind", [Kind.ROLLBACK, Kind.FAILOVER])
def test_the_way_back_passes_the_listener(guest: Desk, kind: Kind) -> None:
    """The pointer may serve listeners that lbswitch does not look at."""
    guest.one(GREEN)
    lose_the_lines(guest)
    operation = guest.one(None if kind is Kind.ROLLBACK else BLUE, kind)
    assert (operation.gate, operation.notes) == (None, ())


def test_a_listener_that_was_not_seen_is_asked_again_at_the_gate(guest: Desk) -> None:
    """The owner has just put the lines in; nobody has to wait for the next look."""
    lose_the_lines(guest)
    assert isinstance(guest.balancer, OwnersBalancer)
    guest.balancer.included = True
    assert guest.one(GREEN).state is OperationState.DONE


def test_the_listener_of_a_managed_balancer_is_no_gate(desk: Desk) -> None:
    """Its lines are lbswitch's own; what the switch does not show it puts back."""
    desk.balancer.serves = None
    desk.serving.look("shop")
    operation = desk.one(GREEN)
    assert (operation.gate, operation.state) == (None, OperationState.DONE)
