"""What the agent does about drift: says it once, says its end, repairs when asked to, and does not fight."""

import os
from pathlib import Path
from typing import Any

import pytest

from lbswitch.balancers.rendered import RenderedDirectory, is_intact
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.drift import DriftWatch
from lbswitch.errors import StateError
from lbswitch.events import Event, Events
from lbswitch.ports import REVISION_MARK, Difference, Rendered, RenderedFile
from lbswitch.serving import Serving
from tests.unit.fakes import FakeBalancer, config_of

GONE = Difference("disk", "live", "the pointer is gone", diff="-live -> gen-000002\n")
MAP = Difference("running", "live.map in workers", "shop: worker 17 says blue", "shop", "-shop green\n+shop blue\n")


async def _nowhere(*_: object) -> None:
    """Nobody runs the loop here."""


class World:
    """A watch over a fake balancer, with a clock that stands still until it is moved."""

    def __init__(self, on_drift: str) -> None:
        self.now = 100.0
        self.told: list[Event] = []
        self.balancer = FakeBalancer()
        self.events = Events(lambda: self.now)
        self.events.listen(self.told.append)
        config = config_of()
        config = config.model_copy(
            update={"agent": config.agent.model_validate({**config.agent.model_dump(), "on_drift": on_drift})}
        )
        self.serving = Serving(config, self.balancer, self.events)
        self.serving.start(Intent({name: ServiceIntent(Route(Color.GREEN), 2) for name in config.services}, 2))
        self.watch = DriftWatch(self.serving, self.events, _nowhere, lambda: self.now)
        self.told.clear()

    def types(self) -> list[str]:
        return [event.type for event in self.told]


@pytest.fixture
def reporting() -> World:
    return World("report")


@pytest.fixture
def repairing() -> World:
    return World("repair")


def test_it_is_said_once_with_the_diff_and_what_to_do(reporting: World):
    """Nothing is touched, and the next looks say nothing more."""
    reporting.balancer.drifted = [MAP]
    for _ in range(3):
        reporting.watch.look()
    (event,) = reporting.told
    assert (event.type, event.level, event.service) == ("drift", "error", "shop")
    assert event.message == f"{MAP.what}; lbswitch apply puts it back, lbswitch status --detail shows it"
    assert event.data["drift"] == [MAP.to_json()]
    assert reporting.watch.found == (MAP,)
    assert reporting.watch.by_service == {"shop": [MAP]}
    assert reporting.balancer.repairs == []


def test_another_pid_is_the_same_drift_another_content_is_not(reporting: World):
    reporting.balancer.drifted = [MAP]
    reporting.watch.look()
    reporting.balancer.drifted = [Difference(MAP.where, MAP.thing, "shop: worker 18 says blue", "shop", MAP.diff)]
    reporting.watch.look()
    assert reporting.types() == ["drift"]
    reporting.balancer.drifted = [Difference(MAP.where, MAP.thing, MAP.what, "shop", "-shop green\n")]
    reporting.watch.look()
    assert reporting.types() == ["drift", "drift", "drift-over"]


def test_its_end_is_said(reporting: World):
    reporting.balancer.drifted = [GONE]
    reporting.watch.look()
    reporting.balancer.drifted = []
    reporting.watch.look()
    assert reporting.types() == ["drift", "drift-over"]
    assert reporting.watch.found == ()


def test_what_is_seen_only_during_an_operation_is_nothing(reporting: World):
    """The first look found something that the second one, between operations, did not."""

    class Brief(list[Difference]):
        def __iter__(self) -> Any:
            content = [MAP] if self.looks == 0 else []
            self.looks += 1
            return iter(content)

        looks = 0

    reporting.balancer.drifted = Brief()
    reporting.watch.look()
    assert reporting.told == []


def test_many_differences_are_one_event(reporting: World):
    reporting.balancer.drifted = [Difference("disk", f"s{i}", f"s{i}: gone", f"s{i}") for i in range(1000)]
    reporting.watch.look()
    (event,) = reporting.told
    assert event.message.startswith("1000 differences: s0: gone; s1: gone; s2: gone; and 997 more; lbswitch apply")
    assert len(event.data["drift"]) == 1000


def test_a_return_that_failed_is_no_drift(reporting: World):
    """The agent knows of it, says it, and tries again by itself."""
    serving = reporting.serving
    after = serving.intent.with_services({"shop": ServiceIntent(Route(Color.BLUE), 3)})
    undo = serving.undo_for(["shop"], None)
    serving.move(after, None)
    reporting.balancer.break_commit = ["full"]
    with pytest.raises(Exception, match="full"):
        serving.put_back(undo)
    reporting.balancer.drifted = [MAP]
    reporting.watch.look()
    assert reporting.told == []


def test_repair_puts_it_right_and_says_what_and_how_long_it_took(repairing: World):
    repairing.balancer.drifted = [GONE, MAP]
    repairing.watch.look()
    assert repairing.types() == ["drift", "drift", "repaired"]
    event = repairing.told[-1]
    assert event.message == f"repaired 0 ms after it was noticed: {GONE.what}; {MAP.what}"
    assert [each["what"] for each in event.data["drift"]] == [GONE.what, MAP.what]
    ((intent, rendered),) = repairing.balancer.repairs
    assert intent is repairing.serving.intent
    assert rendered is not None
    assert rendered.revision == repairing.balancer.intended
    repairing.watch.look()
    assert repairing.types() == ["drift", "drift", "repaired"]


def test_without_the_rendered_files_it_says_so_to_the_balancer(repairing: World):
    """Templates that were edited meanwhile give other files than those that are intended."""
    repairing.balancer.template = "two"
    repairing.balancer.drifted = [GONE]
    repairing.watch.look()
    assert repairing.balancer.repairs[0][1] is None


def test_another_program_is_not_fought_for_ever(repairing: World):
    """Five repairs of the same thing within ten minutes, then it is only reported; later it is tried again."""
    for _ in range(8):
        repairing.balancer.drifted = [MAP]
        repairing.watch.look()
        repairing.now += 10
    assert len(repairing.balancer.repairs) == 5
    assert repairing.types().count("drift-not-repaired") == 1
    said = next(event for event in repairing.told if event.type == "drift-not-repaired")
    assert said.message.startswith("repaired 5 times in 10 minutes and changed again each time: shop: worker 17")
    assert repairing.watch.found == (MAP,)
    repairing.balancer.drifted = [MAP, GONE]
    repairing.watch.look()
    assert len(repairing.balancer.repairs) == 6
    repairing.now += 601
    repairing.balancer.drifted = [MAP]
    repairing.watch.look()
    assert len(repairing.balancer.repairs) == 7


def test_a_repair_that_fails_is_said_once_and_tried_again_later(repairing: World):
    repairing.balancer.drifted = [GONE]
    repairing.balancer.break_repair = "the disk is full"
    for _ in range(3):
        repairing.watch.look()
        repairing.now += 1
    assert repairing.types() == ["drift", "repair-failed"]
    assert "the disk is full" in repairing.told[-1].message
    repairing.balancer.break_repair = None
    repairing.now += 10
    repairing.watch.look()
    assert repairing.types()[-1] == "repaired"


def test_repair_by_hand_gives_sentences(reporting: World):
    """What `lbswitch apply` calls; it sees the listeners afterwards, and fails when they show something else."""
    assert reporting.serving.repair() == []
    reporting.balancer.drifted = [GONE]
    assert reporting.serving.repair() == [GONE.what]
    reporting.balancer.drifted = [GONE]
    reporting.balancer.serves = Intent({}, 0).with_services(
        {name: ServiceIntent(Route(Color.BLUE), 1) for name in reporting.serving.intent.services}
    )
    with pytest.raises(Exception, match="not seen within"):
        reporting.serving.repair()


# -- rendered files ------------------------------------------------------------------------------------------


def rendered(text: str = "one") -> Rendered:
    files = [RenderedFile("a.conf", f"{text} {REVISION_MARK}\n".encode()), RenderedFile("a.pem", b"key", secret=True)]
    return Rendered.of(files)


@pytest.fixture
def directory(tmp_path: Path) -> RenderedDirectory:
    directory = RenderedDirectory(tmp_path)
    directory.install(rendered("zero"))
    directory.install(rendered())
    return directory


def test_a_revision_certifies_itself():
    good = rendered()
    assert is_intact(good)
    assert not is_intact(Rendered((*good.files, RenderedFile("b", b"")), good.revision))
    assert not is_intact(Rendered(good.files[:1], good.revision))


@pytest.mark.parametrize(
    ("hand", "words"),
    [
        (lambda current: (current / "a.conf").write_text("other\n"), "was changed"),
        (lambda current: (current / "a.conf").write_text(""), "was changed"),
        (lambda current: (current / "a.conf").unlink(), "is gone"),
        (lambda current: (current / "b.conf").write_text("x"), "is not from lbswitch"),
        (lambda current: (current / "a.pem").chmod(0o644), "permissions"),
        (lambda current: (current / "a.pem").write_text("other"), "secret"),
        (lambda current: current.unlink(), "is gone"),
    ],
)
def test_every_hand_in_the_files_is_seen_and_mended(directory: RenderedDirectory, tmp_path: Path, hand, words):
    assert directory.differences() == []
    hand(tmp_path / "current")
    (found,) = directory.differences()
    assert words in found.what
    assert "key" not in found.diff
    assert directory.restore(None)
    assert directory.differences() == []
    assert directory.read(rendered().revision) == rendered()
    assert not directory.restore(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "rendered"]


def test_current_on_an_older_revision_is_told_and_moved_back(directory: RenderedDirectory, tmp_path: Path):
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(f"rendered/{rendered('zero').revision}")
    assert directory.intended == rendered().revision
    (found,) = directory.differences()
    assert f"points at rendered/{rendered('zero').revision}" in found.what
    directory.restore(None)
    assert directory.installed() == rendered().revision


def test_a_damaged_older_revision_is_not_put_back_silently(directory: RenderedDirectory, tmp_path: Path):
    """Whoever remembers what it was writes it anew; whoever does not refuses."""
    old = rendered("zero")
    path = tmp_path / "rendered" / old.revision / "a.conf"
    path.write_text("other\n")
    with pytest.raises(StateError, match="was changed by somebody"):
        RenderedDirectory(tmp_path).reinstall(old.revision)
    assert directory.installed() == rendered().revision
    directory.reinstall(old.revision)
    assert path.read_bytes() == old.files[0].content
    assert directory.installed() == directory.intended == old.revision


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_who_has_to_own_the_files_is_said(tmp_path: Path):
    """As after an init by root, with an agent that has a user of its own."""
    directory = RenderedDirectory(tmp_path)
    directory.install(rendered("zero"))
    os.seteuid(65534)
    try:
        with pytest.raises(StateError, match="the installed configuration is unchanged") as failed:
            directory.install(rendered())
    finally:
        os.seteuid(0)
    assert f"chown -R nobody: {tmp_path}" in str(failed.value)
    assert directory.installed() == rendered("zero").revision


def test_install_writes_a_damaged_directory_of_the_same_revision_anew(tmp_path: Path):
    RenderedDirectory(tmp_path).install(rendered())
    path = tmp_path / "rendered" / rendered().revision / "a.conf"
    path.write_text("other\n")
    RenderedDirectory(tmp_path).install(rendered())
    assert path.read_bytes() == rendered().files[0].content


def test_after_a_restart_the_diff_comes_from_what_is_rendered_again(tmp_path: Path):
    RenderedDirectory(tmp_path).install(rendered())
    (tmp_path / "current" / "a.conf").write_text("other\n")
    (found,) = RenderedDirectory(tmp_path).differences()
    assert found.diff == ""
    (found,) = RenderedDirectory(tmp_path).differences(rendered)
    assert "-one" in found.diff
    assert "+other" in found.diff
