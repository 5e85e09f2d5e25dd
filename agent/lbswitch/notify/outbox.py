"""What is still to be delivered, in memory and in one SQLite file (WAL, synchronous FULL) of its own.

Memory is what counts while the agent runs; the file is what a restarted agent begins with. A file that can't be written
loses nothing while the agent lives: what it lacks is written as soon as that works again.

    pending -> sending -> sent | pending (tried again) | given-up
    pending -> dropped (too many wait)

What is `sending` when the file is opened was under way when the agent ended: nobody knows whether it arrived. It
becomes `pending` again, with the same id, and `attempts` tells that it was begun before.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from lbswitch.core.alerts import TEST, Alert
from lbswitch.errors import StateError

_KEPT = 1000  # alerts that are over
_VERSION = 1
_SCHEMA = """
CREATE TABLE alert (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL);
CREATE TABLE delivery (
    id TEXT PRIMARY KEY, alert TEXT NOT NULL, target TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, told_at REAL NOT NULL, next_at REAL NOT NULL, ended_at REAL, error TEXT
) WITHOUT ROWID;
CREATE INDEX delivery_by_alert ON delivery (alert);
"""


class State(StrEnum):
    """How far a delivery is."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    GIVEN_UP = "given-up"
    DROPPED = "dropped"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self not in (State.PENDING, State.SENDING)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert for one target. `id` stays the same in every attempt; times are seconds since the epoch."""

    id: str
    alert: Alert
    target: str
    number: int
    state: State
    attempts: int
    told_at: float
    next_at: float
    ended_at: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the API shows it, below its alert."""
        return {
            "id": self.id,
            "target": self.target,
            "state": str(self.state),
            "attempts": self.attempts,
            "next_at": None if self.state.is_over else self.next_at,
            "ended_at": self.ended_at,
            "error": self.error,
        }


class Outbox:
    """All deliveries. May be used from any thread; calls may wait for the disk. None raises but the first."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, mode 0600. A file that can't be used is said in `problem`, and done without."""
        self.problem: str | None = None
        self.is_new = not path.exists()
        self._path = path
        self._lock = threading.RLock()
        self._alerts: dict[str, Alert] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._unsaved: dict[str, None] = {}
        self._forgotten: dict[str, None] = {}
        self._number = 0
        self._database: sqlite3.Connection | None = None
        self._open()

    @property
    def unwritten(self) -> int:
        """Alerts that are in memory only, because the file can't be written."""
        with self._lock:
            return len(self._unsaved)

    @property
    def remembers_since(self) -> float:
        """Seconds since the epoch; alerts from before may have been forgotten."""
        with self._lock:
            return next(iter(self._alerts.values())).at if len(self._alerts) >= _KEPT else 0.0

    def add(self, alert: Alert, targets: Iterable[str], keep: int) -> list[Delivery] | None:
        """Keep an alert for these targets, durably; gives the deliveries that gave way, of each target the oldest.

        None when this alert was told before.
        """
        with self._lock:
            if alert.id in self._alerts:
                return None
            self._alerts[alert.id] = alert
            dropped = []
            for target in targets:
                self._number += 1
                delivery = Delivery(
                    *(uuid.uuid4().hex, alert, target, self._number, State.PENDING, 0),
                    told_at=alert.at,
                    next_at=alert.at,
                )
                self._deliveries[delivery.id] = delivery
                dropped += self._make_room(target, keep, alert.at)
            self._forget_old()
            self._save(alert.id, *(each.alert.id for each in dropped))
            return dropped

    def _make_room(self, target: str, keep: int, now: float) -> list[Delivery]:
        waiting = [each for each in self._of(target) if each.state is State.PENDING]
        dropped = [
            replace(each, state=State.DROPPED, ended_at=now, error=f"more than {keep} alerts waited")
            for each in waiting[: max(0, len(waiting) - keep)]
        ]
        self._deliveries.update({each.id: each for each in dropped})
        return dropped

    def change(self, delivery: Delivery) -> None:
        """Replace what is known of a delivery."""
        with self._lock:
            if delivery.id in self._deliveries:
                self._deliveries[delivery.id] = delivery
                self._save(delivery.alert.id)

    def next(self, target: str) -> Delivery | None:
        """What is to be sent to a target next: in the order in which it was told, but tests at once."""
        with self._lock:
            return next(iter(self._of(target)), None)

    def hurry(self, target: str, now: float) -> None:
        """Let nothing wait for its time."""
        with self._lock:
            for each in self._of(target):
                if each.next_at > now:
                    self._deliveries[each.id] = replace(each, next_at=now)

    def waiting(self, target: str) -> int:
        """How many wait for a target."""
        with self._lock:
            return len(self._of(target))

    def targets(self) -> set[str]:
        """The targets that something waits for."""
        with self._lock:
            return {each.target for each in self._deliveries.values() if not each.state.is_over}

    def delivery(self, identity: str) -> Delivery | None:
        """One delivery, as long as it is remembered."""
        with self._lock:
            return self._deliveries.get(identity)

    def newest(self, limit: int) -> list[tuple[Alert, list[Delivery]]]:
        """The newest alerts first, each with its deliveries."""
        with self._lock:
            chosen = list(self._alerts)[-limit:][::-1]
            return [(self._alerts[one], self.of_alert(one)) for one in chosen]

    def of_alert(self, identity: str) -> list[Delivery]:
        """The deliveries of one alert."""
        with self._lock:
            return [each for each in self._deliveries.values() if each.alert.id == identity]

    def close(self) -> None:
        """Close the file, after a last attempt to write what it lacks."""
        with self._lock:
            if self._database is not None:
                self._save()
                self._database.close()
                self._database = None

    def write_late(self) -> None:
        """Try again to write what the file lacks."""
        with self._lock:
            if self._database is None and self._unsaved:
                self._open()
            if self._unsaved or self._forgotten:
                self._save()

    def _of(self, target: str) -> list[Delivery]:
        found = [each for each in self._deliveries.values() if each.target == target and not each.state.is_over]
        return sorted(found, key=lambda each: (each.alert.type != TEST, each.number))

    def _forget_old(self) -> None:
        """Alerts that are over, the oldest first, beyond those that are kept."""
        if len(self._alerts) <= _KEPT:
            return
        waited_for = {each.alert.id for each in self._deliveries.values() if not each.state.is_over}
        for identity in [one for one in self._alerts if one not in waited_for][: len(self._alerts) - _KEPT]:
            del self._alerts[identity]
            self._unsaved.pop(identity, None)
            self._forgotten[identity] = None
        self._deliveries = {key: each for key, each in self._deliveries.items() if each.alert.id in self._alerts}

    # -- the file ----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._path.touch(mode=0o600)
            database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=5.0)
            self._database = database
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            _refuse_newer(version)
            if version == 0:
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            self._read(database)
            self.problem = None
        except (sqlite3.Error, OSError, StateError, ValueError, KeyError, TypeError) as error:
            self.problem = f"{self._path}: {error}; alerts are kept in memory only"
            if self._database is not None:
                self._database.close()
            self._database = None

    def _read(self, database: sqlite3.Connection) -> None:
        for identity, document in database.execute("SELECT id, document FROM alert ORDER BY number"):
            self._alerts[identity] = Alert.from_json(json.loads(document))
        rows = database.execute(
            "SELECT id, alert, target, number, state, attempts, told_at, next_at, ended_at, error "
            "FROM delivery ORDER BY number"
        )
        for identity, alert, target, number, state, *others in rows:
            begun = State.PENDING if state == State.SENDING else State(state)
            if alert in self._alerts:
                self._deliveries[identity] = Delivery(identity, self._alerts[alert], target, number, begun, *others)
                self._number = max(self._number, number)

    def _save(self, *alerts: str) -> None:
        """Write these alerts with their deliveries, and what could not be written before."""
        self._unsaved.update(dict.fromkeys(alerts))
        if self._database is None:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for identity in self._forgotten:
                self._database.execute("DELETE FROM delivery WHERE alert = ?", (identity,))
                self._database.execute("DELETE FROM alert WHERE id = ?", (identity,))
            for identity in self._unsaved:
                if identity in self._alerts:
                    self._write(self._database, self._alerts[identity])
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self.problem = (
                f"{self._path}: {error}; {len(self._unsaved)} alerts are in memory only until it can be written"
            )
            self._take_back(self._database)
        else:
            self.problem = None
            self._unsaved, self._forgotten = {}, {}

    def _take_back(self, database: sqlite3.Connection) -> None:
        try:
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            self.problem = f"{self._path}: {error}"

    def _write(self, database: sqlite3.Connection, alert: Alert) -> None:
        document = json.dumps(alert.to_json(), default=str)
        database.execute("INSERT OR IGNORE INTO alert (id, document) VALUES (?, ?)", (alert.id, document))
        rows = [_row(each) for each in self.of_alert(alert.id)]
        database.executemany(
            "INSERT OR REPLACE INTO delivery VALUES "
            "(:id, :alert, :target, :number, :state, :attempts, :told_at, :next_at, :ended_at, :error)",
            rows,
        )


def _refuse_newer(version: int) -> None:
    if version > _VERSION:
        raise StateError(f"it was written by a newer lbswitch (format {version})")


def _row(delivery: Delivery) -> Mapping[str, Any]:
    return {
        "id": delivery.id,
        "alert": delivery.alert.id,
        "target": delivery.target,
        "number": delivery.number,
        "state": str(delivery.state),
        "attempts": delivery.attempts,
        "told_at": delivery.told_at,
        "next_at": delivery.next_at,
        "ended_at": delivery.ended_at,
        "error": delivery.error,
    }
