"""The journal on a real SQLite file."""

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lbswitch.core.model import (
    Color,
    Gate,
    Kind,
    Operation,
    OperationState,
    Route,
    ServerKey,
    ServiceIntent,
    Timings,
)
from lbswitch.errors import StateError
from lbswitch.ports import StoredAnswer
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
