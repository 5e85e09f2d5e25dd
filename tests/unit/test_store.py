"""The journal on a real SQLite file."""

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.model import (
    Color,
    Drain,
    DrainState,
    Gate,
    Kind,
    Operation,
    OperationState,
    PoolKey,
    Remaining,
    Route,
    ServerKey,
    ServiceIntent,
    Timings,
)
from lbswitch.errors import StateError
from lbswitch.ports import Snapshot, StoredAnswer
from lbswitch.store.sqlite import SqliteStore

BEFORE = {"shop": ServiceIntent(Route(Color.BLUE), 1)}
AFTER = {"shop": ServiceIntent(Route(Color.BLUE, 90), 2, weighted=True)}
DRAFT = Operation(
    id=0,
    kind=Kind.SWITCH,
    service="shop",
    source=Color.BLUE,
    target=Color.GREEN,
    weight=10,
    state=OperationState.OPEN,
    generation=2,
    reason="release 7; quotes ' and \" and ünïcode",
    actor="ann",
    started_at=1000.5,
    notes=("a", "b"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lbswitch.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def test_what_was_written_is_read_by_the_next_agent(path: Path) -> None:
    """Services, history, freezes, ejected servers and answers survive a restart, exactly."""
    first = SqliteStore(path)
    first.save_services(BEFORE, 1)
    (begun,) = first.begin([DRAFT], BEFORE, AFTER)
    done = begun.ended(OperationState.DONE, now=1001.0, timings=Timings(total=2.5), gate=Gate("health", "forced"))
    first.finish([done], AFTER)
    first.freeze("shop", "inventory")
    ejected = frozenset({ServerKey("shop", Color.BLUE, "127.0.0.1:9101")})
    first.save_ejected(ejected)
    first.keep_answer("key", StoredAnswer("digest", 200, "{}"))
    first.close()
    second = SqliteStore(path)
    assert second.services() == AFTER
    assert second.generation() == 2
    assert second.history(10) == [done]
    assert second.frozen() == {"shop": "inventory"}
    assert second.ejected() == ejected
    assert second.answer("key") == StoredAnswer("digest", 200, "{}")
    second.close()


def test_an_open_operation_is_found_with_both_intents(store: SqliteStore) -> None:
    """What a crash leaves open says where it came from and where it was going."""
    (begun,) = store.begin([DRAFT], BEFORE, AFTER)
    (found,) = store.unfinished()
    assert (found.operation, found.before, found.after) == (begun, BEFORE["shop"], AFTER["shop"])
    store.finish([begun.ended(OperationState.REVERTED, now=1002.0)], BEFORE)
    assert store.unfinished() == []


def test_generations_are_never_given_twice(store: SqliteStore) -> None:
    """A reverted operation's generation stays used."""
    (begun,) = store.begin([DRAFT], BEFORE, AFTER)
    store.finish([begun.ended(OperationState.REVERTED, now=1002.0)], BEFORE)
    assert store.services()["shop"].generation == 1
    assert store.generation() == 2


def test_the_last_move_is_the_last_that_made_another_color_live(store: SqliteStore) -> None:
    """Canaries, refusals and reverted switches don't count."""
    done = store.record(replace(DRAFT, weight=100, state=OperationState.DONE))
    store.record(replace(DRAFT, kind=Kind.WEIGHT, state=OperationState.DONE))
    store.record(replace(DRAFT, weight=100, state=OperationState.REFUSED))
    store.record(replace(DRAFT, weight=100, state=OperationState.REVERTED))
    assert store.last_move("shop") == done
    assert store.last_move("blog") is None


def test_a_release_makes_earlier_failovers_not_count(store: SqliteStore) -> None:
    """Otherwise the next one would latch at once, also after a restart."""
    for at in (100.0, 200.0):
        store.record(replace(DRAFT, kind=Kind.FAILOVER, state=OperationState.DONE, started_at=at))
    assert store.automatic_since("shop", 50.0) == [100.0, 200.0]
    store.freeze("shop", "latched")
    assert store.release("shop", 150.0)
    assert not store.release("shop", 150.0)
    assert store.automatic_since("shop", 50.0) == [200.0]


def test_only_the_agents_user_may_read_it(path: Path, store: SqliteStore) -> None:
    """Mode 0600."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    """An older lbswitch says so and changes nothing."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    content = path.read_bytes()
    with pytest.raises(StateError, match="newer lbswitch"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_a_damaged_file_is_a_clear_error(path: Path) -> None:
    """Not a traceback."""
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StateError, match="not a database"):
        SqliteStore(path)


def test_a_killed_writer_leaves_all_or_nothing(path: Path) -> None:
    """SIGKILL right after `begin` returned: the operation is there."""
    program = (
        "import os, signal, sys; sys.path.insert(0, '.');"
        "from pathlib import Path; from lbswitch.store.sqlite import SqliteStore;"
        "from tests.unit.test_store import AFTER, BEFORE, DRAFT;"
        f"SqliteStore(Path({str(path)!r})).begin([DRAFT], BEFORE, AFTER); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -9
    store = SqliteStore(path)
    assert len(store.unfinished()) == 1
    store.close()


V1 = Path(__file__).with_name("store_v1.sql")
"""A dump of the file that the last lbswitch of format 1 wrote, with an operation that it left open."""


def write_v1(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.executescript(V1.read_text())
    database.close()


def test_a_file_of_format_1_is_taken_over(path: Path) -> None:
    """All that is in it stays, also the operation that was open, and snapshots can be kept from now on."""
    write_v1(path)
    store = SqliteStore(path)
    assert store.services() == {"shop": ServiceIntent(Route(Color.GREEN), 2)}
    assert [(each.id, each.state, each.snapshot) for each in store.history(10)] == [
        (3, "open", None),
        (2, "refused", None),
        (1, "done", None),
    ]
    (left,) = store.unfinished()
    assert left.after == ServiceIntent(Route(Color.GREEN, 90), 3, weighted=True)
    assert (store.generation(), store.frozen(), len(store.ejected())) == (3, {"shop": "inventory"}, 1)
    assert store.answer("key") == StoredAnswer("digest", 200, "{}")
    assert store.snapshots(10) == []
    assert store.add_snapshot(SNAPSHOT) == 1
    store.close()
    again = SqliteStore(path)
    assert again.snapshot(1) == replace(SNAPSHOT, id=1)
    again.close()


def test_a_takeover_that_is_killed_is_done_by_the_next(path: Path) -> None:
    """SIGKILL at any moment leaves one format or the next, never something between."""
    program = (
        "import os, signal, sqlite3, sys; sys.path.insert(0, '.');"
        "from pathlib import Path; from lbswitch.store.sqlite import SqliteStore;"
        "wanted = int(sys.argv[1]); steps = 0\n"
        "class Dying(sqlite3.Connection):\n"
        "    def executescript(self, script):\n"
        "        global steps\n"
        "        for part in script.split(';'):\n"
        "            steps += 1\n"
        "            if steps == wanted: os.kill(os.getpid(), signal.SIGKILL)\n"
        "            self.execute(part)\n"
        "connect = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Dying)\n"
        f"SqliteStore(Path({str(path)!r}))"
    )
    root = Path(__file__).resolve().parents[2]
    for step in range(1, 13):
        path.unlink(missing_ok=True)
        write_v1(path)
        assert subprocess.run([sys.executable, "-c", program, str(step)], cwd=root, check=False).returncode == -9
        store = SqliteStore(path)
        assert (len(store.history(10)), store.snapshots(10)) == (3, [])
        store.close()


V2 = Path(__file__).with_name("store_v2.sql")
"""The same of format 2."""


def test_a_file_of_format_2_is_taken_over(path: Path) -> None:
    """All that is in it stays; nothing of it is waited for, and drains can be kept from now on."""
    with sqlite3.connect(path) as database:
        database.executescript(V2.read_text())
    database.close()
    store = SqliteStore(path)
    assert [(each.id, each.state, each.snapshot, each.drain) for each in store.history(10)] == [
        (3, "open", 2, None),
        (2, "refused", None, None),
        (1, "done", 1, None),
    ]
    assert len(store.unfinished()) == 1
    assert [each.operations for each in store.snapshots(10)] == [(3,), (1,)]
    assert (store.services(), store.frozen()) == ({"shop": AFTER_V2}, {"shop": "inventory"})
    assert store.draining() == []
    store.save_drains({1: Drain(Color.BLUE, 2, (Remaining(7, True, 2),), most=2)})
    store.close()
    again = SqliteStore(path)
    assert [each.id for each in again.draining()] == [1]
    again.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (4,)
    database.close()


AFTER_V2 = ServiceIntent(Route(Color.GREEN), 2)


def test_what_drains_is_found_until_it_is_over(store: SqliteStore) -> None:
    """From the end of the operation on, in the same transaction, exactly as it was written."""
    full = replace(DRAFT, weight=100)
    after = {"shop": AFTER_V2}
    (begun,) = store.begin([full], BEFORE, after)
    assert store.draining() == []
    done = begun.ended(OperationState.DONE, now=1001.0)
    store.finish([done], after)
    assert store.draining() == [done]
    assert done.drain == Drain(Color.BLUE)
    drain = Drain(Color.BLUE, 3, (Remaining(None, False, 1), Remaining(9, True, 2)), most=5, closed=2, note="why")
    for state, found in ((DrainState.UNKNOWN, 1), (DrainState.DRAINED, 0), (DrainState.SUPERSEDED, 0)):
        store.save_drains({done.id: replace(drain, state=state, drained_ms=1.5)})
        assert store.operation(done.id) == replace(done, drain=replace(drain, state=state, drained_ms=1.5))
        assert len(store.draining()) == found


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"weight": 10}, OperationState.DONE),
        ({"weight": 100, "source": Color.GREEN}, OperationState.DONE),
        ({"weight": 100, "dry_run": True}, OperationState.DONE),
        ({"weight": 100}, OperationState.REVERTED),
        ({"weight": 100}, OperationState.REFUSED),
    ],
)
def test_only_a_color_that_lost_its_traffic_drains(changes: dict[str, Any], state: OperationState) -> None:
    """Not where it keeps some, where nothing moved, or where it was put back."""
    assert replace(DRAFT, **changes).ended(state, now=1.0).drain is None


SNAPSHOT = Snapshot(0, 1000.0, "switch", "d" * 64, "e" * 64, '{"a":1}')


def test_a_snapshot_is_there_with_its_intent_or_not_at_all(store: SqliteStore) -> None:
    """One transaction: what fails leaves neither; equal manifests are kept once."""
    with pytest.raises(StateError):
        store.begin([replace(DRAFT, reason=None)], BEFORE, AFTER, SNAPSHOT)
    assert (store.snapshots(10), store.history(10)) == ([], [])
    (first,) = store.begin([DRAFT], BEFORE, AFTER, SNAPSHOT)
    two = store.begin([DRAFT, DRAFT], BEFORE, AFTER, replace(SNAPSHOT, restores=1))
    assert [each.operations for each in store.snapshots(10)] == [tuple(each.id for each in two), (first.id,)]
    assert store.snapshot(2) == replace(SNAPSHOT, id=2, restores=1, operations=tuple(each.id for each in two))
    assert store.operation(first.id).snapshot == 1
    assert store.snapshot_trees() == {SNAPSHOT.tree}


def test_what_a_restore_needs_is_not_forgotten_while_it_is_open(store: SqliteStore) -> None:
    """The snapshot from before it, and the one that it brings back."""
    for _ in range(3):
        store.add_snapshot(SNAPSHOT)
    (begun,) = store.begin([replace(DRAFT, kind=Kind.RESTORE)], BEFORE, AFTER, replace(SNAPSHOT, restores=2))
    assert store.forget_snapshots(0, 2000.0) == 2
    assert [each.id for each in store.snapshots(10)] == [4, 2]
    store.finish([begun.ended(OperationState.REVERTED, now=1.0)], BEFORE)
    assert store.forget_snapshots(0, 2000.0) == 2


def test_rest_loses_nothing(tmp_path: Path) -> None:
    """What the log held is in the file, whoever reads it meanwhile."""
    store = SqliteStore(tmp_path / "a.db")
    store.freeze("shop", "why")
    reader = SqliteStore.to_read(tmp_path / "a.db")
    store.rest()
    store.freeze("blog", "because")
    assert store.frozen() == reader.frozen() | {"blog": "because"} == {"shop": "why", "blog": "because"}
    store.release("shop", 0.0)
    assert store.frozen() == {"blog": "because"}
    reader.close()
    store.close()


V3 = Path(__file__).with_name("store_v3.sql")
"""The same of format 3."""


def test_a_file_of_format_3_is_taken_over(path: Path) -> None:
    """All that is in it stays, and watches, quarantines and incidents can be kept from now on."""
    with sqlite3.connect(path) as database:
        database.executescript(V3.read_text())
    database.close()
    store = SqliteStore(path)
    assert [each.id for each in store.draining()] == [1]
    assert (store.bakes(), store.quarantined(), store.incident(1)) == ({}, {}, None)
    store.save_bake("shop", {"state": "baking"})
    store.close()
    again = SqliteStore(path)
    assert again.bakes() == {"shop": {"state": "baking"}}
    again.close()


def test_a_quarantine_holds_until_it_is_released(path: Path) -> None:
    """Also for an agent that starts; nobody else's is ended."""
    store = SqliteStore(path)
    store.quarantine("shop", Color.GREEN, "error_ratio 0.2", 1.0)
    store.quarantine("cart", Color.BLUE, "burst", 2.0)
    store.close()
    again = SqliteStore(path)
    assert again.quarantined() == {
        PoolKey("shop", Color.GREEN): "error_ratio 0.2",
        PoolKey("cart", Color.BLUE): "burst",
    }
    assert again.release("shop", 3.0)
    assert again.quarantined() == {PoolKey("cart", Color.BLUE): "burst"}
    assert not again.release("shop", 4.0)
    again.close()


def test_incidents_are_kept_but_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay."""
    monkeypatch.setattr("lbswitch.store.sqlite._INCIDENTS_KEPT", 2)
    store = SqliteStore(path)
    for number in (1, 2, 3):
        store.save_incident(number, {"number": number})
    assert [store.incident(number) for number in (1, 2, 3)] == [None, {"number": 2}, {"number": 3}]
    store.close()
