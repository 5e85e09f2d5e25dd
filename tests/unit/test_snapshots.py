"""What a snapshot holds, how it is kept, and when it may go."""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lbswitch import configfile, showing
from lbswitch.core.model import Color, Intent, Kind, OperationState, Route, ServerKey, ServiceIntent
from lbswitch.errors import NotAllowed, StateError, UnknownSnapshot
from lbswitch.events import Events
from lbswitch.ports import Rendered, RenderedFile
from lbswitch.serving import Serving
from lbswitch.snapshots import Snapshots, files_now
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth

BLUE, GREEN = Color.BLUE, Color.GREEN
DAY_S = 86400.0
CONFIG = """\
balancer: {kind: nginx, templates: %s}
agent: {snapshots: {keep: 10, age: 1h}}
services:
  shop:  # the only one
    bind: 127.0.0.1:8080
    blue: {servers: [127.0.0.1:9101]}
    green: {servers: [127.0.0.1:9102]}
    verify: {answers: 1, deadline: 50ms}
"""


class Secretive(FakeBalancer):
    """Renders a key, too."""

    def render(self, intent: Intent) -> Rendered:
        return Rendered.of([*super().render(intent).files, RenderedFile("shop.pem", b"KEY OF SHOP", secret=True)])


class Desk:
    """Snapshots of fakes, with a real store and real files."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.now = directory, 1_000_000.0
        self.templates = directory / "templates"
        (self.templates / "nginx").mkdir(parents=True)
        (self.templates / "nginx" / "nginx.conf.j2").write_text("their own")
        self.path = directory / "lbswitch.yaml"
        self.path.write_text(CONFIG % self.templates)
        self.balancer, self.events, self.health = Secretive(), Events(time.time), FakeHealth()
        self.store = SqliteStore(directory / "lbswitch.db")
        self.serving = Serving(configfile.load(self.path), self.balancer, self.events)
        self.serving.start(Intent({"shop": ServiceIntent(Route(BLUE), 1)}, 1))
        self.kept = directory / "state" / "snapshots"
        self.snapshots = Snapshots(self.kept, self.path, self.serving, self.store, lambda: self.now)
        self.archive = self.snapshots.archive
        self.switcher = Switcher(
            self.serving, self.store, self.health, self.events, lambda: self.now, snapshots=self.snapshots
        )

    def switch(self, to: Color | None, kind: Kind = Kind.SWITCH):
        return self.switcher.run(Request(kind, ("shop",), to=to, actor="test"))[0]

    def objects(self) -> set[str]:
        return {path.name for path in (self.kept / "objects").iterdir()}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def test_everything_needed_to_come_back_is_there(desk: Desk) -> None:
    """Configuration, templates and rendered files to the byte; routes, generations, what was left out, the balancer."""
    out = frozenset({ServerKey("shop", GREEN, "127.0.0.1:9102")})
    desk.serving.intent = desk.serving.intent.with_ejected(out)
    kept = desk.archive.read(desk.snapshots.take("switch"))
    assert kept.intent == desk.serving.intent
    assert kept.facts["balancer"] == {"kind": "nginx", "version": "1.0"}
    assert desk.archive.config_text(kept) == desk.path.read_text()
    assert desk.archive.rendered(kept) == desk.balancer.read(desk.balancer.installed())
    own = kept.file("templates/nginx/nginx.conf.j2")
    assert desk.archive.objects.get(own.sha256) == b"their own"


def test_a_snapshot_is_taken_before_each_operation_and_says_which(desk: Desk) -> None:
    """With the INTENT; refusals and dry runs take none."""
    first = desk.switch(GREEN)
    desk.health.sick["shop", BLUE] = "down"
    assert desk.switch(BLUE).state == "refused"
    desk.health.sick.clear()
    second = desk.switch(None, Kind.ROLLBACK)
    newest, oldest = desk.archive.newest(10)
    assert (oldest.purpose, oldest.operations, newest.purpose, newest.operations) == (
        *("switch", (first.id,)),
        *("rollback", (second.id,)),
    )
    assert (first.snapshot, second.snapshot) == (oldest.id, newest.id)
    assert desk.archive.read(oldest.id).intent.services["shop"] == ServiceIntent(Route(BLUE), 1)
    assert desk.archive.read(newest.id).intent.services["shop"] == ServiceIntent(Route(GREEN), 2)


def test_the_same_is_written_once(desk: Desk) -> None:
    """Twenty switches add rows and no object; asking again without a change adds nothing at all."""
    desk.switch(GREEN)
    before = {name: (desk.kept / "objects" / name).stat().st_mtime_ns for name in desk.objects()}
    for _ in range(10):
        desk.switch(BLUE)
        desk.switch(GREEN)
    assert {name: (desk.kept / "objects" / name).stat().st_mtime_ns for name in desk.objects()} == before
    assert desk.snapshots.take("configuration") == desk.snapshots.take("configuration")


def test_an_edited_file_is_in_the_next_one(desk: Desk) -> None:
    """A template, and a configuration on disk that is not in use: beside the one that is."""
    desk.snapshots.warm()
    (desk.templates / "nginx" / "nginx.conf.j2").write_text("edited")
    desk.path.write_text("not: [valid")
    kept = desk.archive.read(desk.snapshots.take("switch"))
    contents = {each.name: desk.archive.objects.get(each.sha256) for each in kept.files if not each.secret}
    assert contents["templates/nginx/nginx.conf.j2"] == b"edited"
    assert contents["lbswitch.yaml.on-disk"] == b"not: [valid"
    assert contents["lbswitch.yaml"].decode() == CONFIG % desk.templates


def test_the_manifest_is_canonical_and_addressed_by_its_digest(desk: Desk) -> None:
    """Anybody can verify it with a JSON library and sha256sum."""
    row = desk.store.snapshot(desk.snapshots.take("switch"))
    assert hashlib.sha256(row.manifest.encode()).hexdigest() == row.digest
    assert json.dumps(json.loads(row.manifest), sort_keys=True, separators=(",", ":")) == row.manifest


def test_keys_are_for_the_agents_user_alone_and_never_shown(desk: Desk) -> None:
    """Mode 0600 below 0700, listed without content, refused when asked for, and unseen in a diff."""
    kept = desk.archive.read(desk.snapshots.take("switch"))
    for path in (desk.kept, desk.kept / "objects"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in desk.objects():
        assert stat.S_IMODE((desk.kept / "objects" / name).stat().st_mode) == 0o600
    with pytest.raises(NotAllowed, match="never shown"):
        showing.file(desk.archive, kept, "rendered/shop.pem")
    assert "KEY" not in json.dumps(showing.document(kept))
    changed = [replace(each, content=b"OTHER KEY") if each.secret else each for each in now(desk)]
    assert showing.diff(desk.archive, kept, changed, desk.serving.intent)["diff"] == (
        "rendered/shop.pem: differs (secret, not shown)\n"
    )


def now(desk: Desk):
    return list(files_now(desk.serving.config, desk.balancer, desk.path, desk.balancer.installed()))


def test_a_diff_tells_what_has_changed_since(desk: Desk) -> None:
    """Routes and files; empty when nothing has."""
    kept = desk.archive.read(desk.snapshots.take("switch"))
    assert showing.diff(desk.archive, kept, now(desk), desk.serving.intent)["diff"] == ""
    desk.switch(GREEN)
    (desk.templates / "nginx" / "nginx.conf.j2").write_text("edited")
    diff = showing.diff(desk.archive, kept, now(desk), desk.serving.intent)["diff"]
    assert "-shop: blue\n+shop: green\n" in diff
    assert "--- then/templates/nginx/nginx.conf.j2" in diff


def test_what_was_tampered_with_is_not_believed(desk: Desk) -> None:
    """An object or a manifest that is not what was written: an error, not a wrong restore."""
    kept = desk.archive.read(desk.snapshots.take("switch"))
    target = desk.kept / "objects" / kept.file("lbswitch.yaml").sha256
    target.write_bytes(b"balancer: {kind: haproxy}")
    with pytest.raises(StateError, match="damaged"):
        desk.archive.config_text(kept)
    target.unlink()
    with pytest.raises(StateError, match="can't be read"):
        desk.archive.config_text(kept)
    with contextlib.closing(sqlite3.connect(desk.directory / "lbswitch.db", isolation_level=None)) as database:
        database.execute("UPDATE manifest SET text = replace(text, 'blue', 'gree')")
    with pytest.raises(StateError, match="manifest is not what was written"):
        desk.archive.read(kept.snapshot.id)


def test_unknown_ones_are_named_with_what_there_is(desk: Desk) -> None:
    """A number too high, a file that is not in it."""
    with pytest.raises(UnknownSnapshot, match="there are none yet"):
        desk.archive.read(7)
    kept = desk.archive.read(desk.snapshots.take("switch"))
    with pytest.raises(UnknownSnapshot, match="the newest is 1"):
        desk.archive.read(2**80)
    with pytest.raises(UnknownSnapshot, match=r"there are: lbswitch.yaml, "):
        kept.file("nothing")


def test_no_room_stops_a_switch_but_not_the_way_back(desk: Desk) -> None:
    """The snapshot can't be written: a switch is reverted before anything moved, a rollback goes on and says so."""
    desk.switch(GREEN)
    (desk.templates / "nginx" / "nginx.conf.j2").write_text("edited")
    for name in desk.objects():
        (desk.kept / "objects" / name).unlink()
    (desk.kept / "objects").rmdir()
    (desk.kept / "objects").write_text("in the way")
    refused = desk.switch(BLUE)
    assert (refused.state, desk.balancer.serves.services["shop"].route) == ("reverted", Route(GREEN))
    assert "no snapshot could be written" in refused.error
    back = desk.switch(None, Kind.ROLLBACK)
    assert (back.state, back.snapshot) == ("done", None)
    assert "no snapshot was taken" in back.notes[0]


def test_old_ones_go_and_what_a_way_back_needs_stays(desk: Desk) -> None:
    """Beyond `keep` and older than `age`; never the one from before the last move, nor of an open operation."""
    moved = desk.switch(GREEN)
    open_one = desk.snapshots.draft("switch")
    before = desk.serving.intent.services["shop"]
    (begun,) = desk.store.begin(
        [replace(moved, id=0, state=OperationState.OPEN)], {"shop": before}, {"shop": before}, open_one
    )
    for number in range(30):
        desk.now += 1
        desk.serving.intent = replace(desk.serving.intent, generation=10 + number)
        desk.snapshots.take("configuration")
    desk.snapshots.prune(desk.now)
    assert len(desk.archive.newest(100)) == 32, "none is old yet"
    desk.snapshots.prune(desk.now + DAY_S)
    left = [each.id for each in desk.archive.newest(100)]
    assert left == [*range(32, 22, -1), begun.snapshot, moved.snapshot]
    assert all(desk.archive.read(number).files for number in left)


def test_only_objects_that_nothing_refers_to_are_removed(desk: Desk) -> None:
    """Also those that a crash left; those of the last minutes stay, since somebody may be about to refer to them."""
    desk.switch(GREEN)
    needed = desk.objects()
    stray = desk.kept / "objects" / ("0" * 64)
    stray.write_bytes(b"")
    assert desk.snapshots.prune(desk.now) == 0
    for name in desk.objects():
        os.utime(desk.kept / "objects" / name, (0, 0))
    assert desk.snapshots.prune(desk.now) == 1
    assert desk.objects() == needed


def test_a_reader_needs_no_agent(desk: Desk, tmp_path: Path) -> None:
    """The store is opened read-only while an agent writes, and after it."""
    desk.switch(GREEN)
    for _ in range(2):
        reader = SqliteStore.to_read(tmp_path / "lbswitch.db")
        assert [each.purpose for each in reader.snapshots(10)] == ["switch"]
        with pytest.raises(StateError, match="readonly"):
            reader.freeze("shop", "no")
        reader.close()
    with pytest.raises(StateError):
        SqliteStore.to_read(tmp_path / "none.db")
