"""Journal, history and intent in one SQLite file (WAL, synchronous FULL): a call that returned is on disk."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbswitch.core.model import (
    Color,
    Drain,
    Gate,
    Kind,
    Operation,
    OperationState,
    PoolKey,
    Route,
    ServerKey,
    ServiceIntent,
    Timings,
)
from lbswitch.errors import StateError
from lbswitch.ports import OpenOperation, Snapshot, StoredAnswer

_ANSWERS_KEPT = 10_000
_INCIDENTS_KEPT = 1_000
_LOG_PAGES = 4000  # 16 MB: only when operations never leave the time for `rest`
_SCHEMA = """
CREATE TABLE service (
    name TEXT PRIMARY KEY, live TEXT NOT NULL, weight INTEGER NOT NULL,
    generation INTEGER NOT NULL, weighted INTEGER NOT NULL
);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, service TEXT NOT NULL,
    source TEXT NOT NULL, target TEXT NOT NULL, weight INTEGER NOT NULL, state TEXT NOT NULL,
    generation INTEGER NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL,
    gate TEXT, error TEXT, notes TEXT NOT NULL, timings TEXT NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, intent_before TEXT, intent_after TEXT
);
CREATE INDEX operation_by_service ON operation (service, id);
CREATE INDEX operation_open ON operation (id) WHERE state = 'open';
CREATE TABLE released (service TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE ejected (service TEXT NOT NULL, color TEXT NOT NULL, address TEXT NOT NULL);
CREATE TABLE freeze (service TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE answer (key TEXT PRIMARY KEY, request TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL);
INSERT INTO counter VALUES ('generation', 0);
"""
_SNAPSHOTS = """
CREATE TABLE manifest (digest TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, purpose TEXT NOT NULL,
    digest TEXT NOT NULL, tree TEXT NOT NULL, restores INTEGER
);
ALTER TABLE operation ADD COLUMN snapshot INTEGER;
CREATE INDEX operation_by_snapshot ON operation (snapshot) WHERE snapshot IS NOT NULL;
"""
_DRAINS = """
ALTER TABLE operation ADD COLUMN drain TEXT;
ALTER TABLE operation ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
CREATE INDEX operation_draining ON operation (id) WHERE draining = 1;
"""
_WATCHES = """
CREATE TABLE bake (service TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE quarantine (
    service TEXT NOT NULL, color TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (service, color)
);
CREATE TABLE incident (operation INTEGER PRIMARY KEY, document TEXT NOT NULL);
"""
_STEPS = (_SCHEMA, _SNAPSHOTS, _DRAINS, _WATCHES)
"""What leads from each format to the next; the format of a file is how many of them it has seen."""


class SqliteStore:
    """The `ports.Store` of an agent. One connection, used by several threads under a lock."""

    # Both are asked for every switch, and only this connection writes them.
    _frozen: dict[str, str] | None = None
    _quarantined: dict[PoolKey, str] | None = None
    _generation: int | None = None

    def __init__(self, path: Path) -> None:
        """Open or create the file, mode 0600. Raises: StateError (not writable, full, damaged, newer version)."""
        self._path = path
        self._lock = threading.RLock()
        with self._translated():
            path.touch(mode=0o600)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def to_read(cls, path: Path) -> SqliteStore:
        """The file as it is, for who only reads, with or without an agent that writes. Raises: StateError."""
        store = cls.__new__(cls)
        store._path, store._lock = path, threading.RLock()
        with store._translated():
            address = f"{path.absolute().as_uri()}?mode=ro"
            store._database = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
        try:
            store._check_version()
        except BaseException:
            store.close()
            raise
        return store

    def rest(self) -> None:
        """Move what the log holds into the file, so that the log is written from its beginning again.

        A file that grows takes one more wait for the disk, and the move itself several: nobody should wait for that.
        """
        with self._lock, self._translated():
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _prepare(self) -> None:
        version = self._version()
        if version > len(_STEPS):
            raise StateError(
                f"{self._path} was written by a newer lbswitch (format {version}, this one knows {len(_STEPS)}); "
                "nothing was changed: start the newer version, or keep this file aside to begin anew"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        for number, step in enumerate(_STEPS[version:], start=version + 1):
            self._upgrade(f"{step} PRAGMA user_version = {number};")

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _check_version(self) -> None:
        with self._translated():
            version = self._version()
        if version != len(_STEPS):
            raise StateError(
                f"{self._path} has format {version}, and this lbswitch reads {len(_STEPS)}: ask the agent of that "
                "version"
            )

    def _upgrade(self, step: str) -> None:
        """One step, all of it or nothing."""
        try:
            self._database.executescript(f"BEGIN IMMEDIATE; {step} COMMIT;")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{self._path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._database.execute(query, values).fetchall()

    def services(self) -> dict[str, ServiceIntent]:
        """What every service should serve, as last completed."""
        rows = self._rows("SELECT name, live, weight, generation, weighted FROM service")
        return {
            name: ServiceIntent(Route(Color(live), weight), generation, bool(weighted))
            for name, live, weight, generation, weighted in rows
        }

    def generation(self) -> int:
        """The newest generation ever given out."""
        with self._lock:
            if self._generation is None:
                self._generation = int(self._rows("SELECT value FROM counter WHERE name = 'generation'")[0][0])
            return self._generation

    def _raise_generation(self, database: sqlite3.Connection, generation: int) -> None:
        self._generation = None  # whether the transaction will be kept is not known yet
        database.execute("UPDATE counter SET value = max(value, ?) WHERE name = 'generation'", (generation,))

    def save_services(self, services: Mapping[str, ServiceIntent], generation: int) -> None:
        """Replace what is intended."""
        with self._transaction() as database:
            database.execute("DELETE FROM service")
            _put_services(database, services)
            self._raise_generation(database, generation)

    def ejected(self) -> frozenset[ServerKey]:
        """The servers that are left out of their pools."""
        rows = self._rows("SELECT service, color, address FROM ejected")
        return frozenset(ServerKey(service, Color(color), address) for service, color, address in rows)

    def save_ejected(self, ejected: frozenset[ServerKey]) -> None:
        """Replace which servers are left out."""
        with self._transaction() as database:
            database.execute("DELETE FROM ejected")
            rows = [(key.service, str(key.color), key.address) for key in sorted(ejected)]
            database.executemany("INSERT INTO ejected VALUES (?, ?, ?)", rows)

    def begin(
        self,
        operations: Sequence[Operation],
        before: Mapping[str, ServiceIntent],
        after: Mapping[str, ServiceIntent],
        snapshot: Snapshot | None = None,
    ) -> list[Operation]:
        """Write INTENT."""
        with self._transaction() as database:
            if snapshot is not None:
                number = _put_snapshot(database, snapshot)
                operations = [replace(operation, snapshot=number) for operation in operations]
            self._raise_generation(database, max(intent.generation for intent in after.values()))
            return [
                _insert(database, operation, before[operation.service], after[operation.service])
                for operation in operations
            ]

    def finish(self, operations: Sequence[Operation], services: Mapping[str, ServiceIntent]) -> None:
        """Write how they ended and what is intended from now on."""
        with self._transaction() as database:
            _put_services(database, services)
            for operation in operations:
                columns = _columns(operation)
                assignments = ", ".join(f"{name} = ?" for name in columns)
                database.execute(
                    f"UPDATE operation SET {assignments} WHERE id = ?",  # noqa: S608 - our own column names
                    (*columns.values(), operation.id),
                )

    def record(self, operation: Operation) -> Operation:
        """Add one that changed nothing."""
        with self._transaction() as database:
            return _insert(database, operation, None, None)

    def unfinished(self) -> list[OpenOperation]:
        """Operations that a crash left open, oldest first."""
        rows = self._rows(
            f"SELECT {_NAMES}, intent_before, intent_after FROM operation WHERE state = 'open' ORDER BY id"  # noqa: S608
        )
        return [OpenOperation(_operation(row[:-2]), _intent(row[-2]), _intent(row[-1])) for row in rows]

    def operation(self, operation_id: int) -> Operation | None:
        """One operation by id."""
        rows = self._rows(f"SELECT {_NAMES} FROM operation WHERE id = ?", operation_id)  # noqa: S608
        return _operation(rows[0]) if rows else None

    def history(self, limit: int, service: str | None = None) -> list[Operation]:
        """The newest first."""
        where, values = ("WHERE service = ?", [service]) if service is not None else ("", [])
        query = f"SELECT {_NAMES} FROM operation {where} ORDER BY id DESC LIMIT ?"  # noqa: S608
        return [_operation(row) for row in self._rows(query, *values, limit)]

    def last_move(self, service: str) -> Operation | None:
        """The last completed operation that made another color live."""
        query = (
            f"SELECT {_NAMES} FROM operation WHERE service = ? AND {_LAST_MOVE} "  # noqa: S608
            "ORDER BY id DESC LIMIT 1"
        )
        rows = self._rows(query, service)
        return _operation(rows[0]) if rows else None

    def draining(self) -> list[Operation]:
        """Those whose connections were not all gone when somebody looked last, oldest first."""
        rows = self._rows(f"SELECT {_NAMES} FROM operation WHERE draining = 1 ORDER BY id")  # noqa: S608
        return [_operation(row) for row in rows]

    def save_drains(self, drains: Mapping[int, Drain]) -> None:
        """Write how far the drains of these operations are."""
        with self._transaction() as database:
            rows = [(*_drain_columns(drain).values(), identity) for identity, drain in drains.items()]
            database.executemany("UPDATE operation SET drain = ?, draining = ? WHERE id = ?", rows)

    def add_snapshot(self, snapshot: Snapshot) -> int:
        """Keep one that no operation asked for."""
        with self._transaction() as database:
            return _put_snapshot(database, snapshot)

    def snapshots(self, limit: int) -> list[Snapshot]:
        """The newest first."""
        rows = self._rows(f"SELECT {_SNAPSHOT}, '' FROM snapshot ORDER BY id DESC LIMIT ?", limit)  # noqa: S608
        return [_snapshot(row) for row in rows]

    def snapshot(self, number: int) -> Snapshot | None:
        """One snapshot, complete."""
        query = f"SELECT {_SNAPSHOT}, text FROM snapshot JOIN manifest USING (digest) WHERE id = ?"  # noqa: S608
        rows = self._rows(query, number)
        return _snapshot(rows[0]) if rows else None

    def forget_snapshots(self, keep: int, before: float) -> int:
        """Remove old ones that nobody needs."""
        with self._transaction() as database:
            found = database.execute(_FORGET, (before, keep)).rowcount
            if found:
                database.execute("DELETE FROM manifest WHERE digest NOT IN (SELECT digest FROM snapshot)")
            return found

    def snapshot_trees(self) -> set[str]:
        """The trees that are referred to."""
        return {row[0] for row in self._rows("SELECT DISTINCT tree FROM snapshot")}

    def automatic_since(self, service: str, since: float) -> list[float]:
        """When the agent failed over or rolled back this service by itself, after `since`."""
        query = (
            "SELECT started_at FROM operation WHERE service = ? AND started_at > ? AND "
            "(kind = 'failover' OR (kind = 'rollback' AND actor = 'lbswitch' AND state != 'refused')) ORDER BY id"
        )
        released = self._rows("SELECT at FROM released WHERE service = ?", service)
        return [row[0] for row in self._rows(query, service, max([since, *(row[0] for row in released)]))]

    def freeze(self, service: str, reason: str) -> None:
        """Latch a service until a person releases it."""
        with self._transaction() as database:
            self._frozen = None
            database.execute("INSERT OR REPLACE INTO freeze VALUES (?, ?)", (service, reason))

    def release(self, service: str, at: float) -> bool:
        """End a freeze and a quarantine; automatic switches before `at` no longer count."""
        with self._transaction() as database:
            self._frozen = self._quarantined = None
            database.execute("INSERT OR REPLACE INTO released VALUES (?, ?)", (service, at))
            free = database.execute("DELETE FROM quarantine WHERE service = ?", (service,)).rowcount > 0
            return database.execute("DELETE FROM freeze WHERE service = ?", (service,)).rowcount > 0 or free

    def frozen(self) -> dict[str, str]:
        """Frozen services with the reason."""
        with self._lock:
            if self._frozen is None:
                self._frozen = dict(self._rows("SELECT service, reason FROM freeze"))
            return dict(self._frozen)

    def quarantine(self, service: str, color: Color, reason: str, at: float) -> None:
        """Keep traffic away from what runs on this color until a person releases it."""
        with self._transaction() as database:
            self._quarantined = None
            database.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)", (service, str(color), reason, at))

    def quarantined(self) -> dict[PoolKey, str]:
        """Quarantined pools with the reason."""
        with self._lock:
            if self._quarantined is None:
                rows = self._rows("SELECT service, color, reason FROM quarantine")
                self._quarantined = {PoolKey(service, Color(color)): reason for service, color, reason in rows}
            return dict(self._quarantined)

    def save_bake(self, service: str, document: Mapping[str, Any]) -> None:
        """Write how far the watch on a service is."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO bake VALUES (?, ?)", (service, json.dumps(document)))

    def bakes(self) -> dict[str, dict[str, Any]]:
        """The last watch of each service."""
        return {service: json.loads(text) for service, text in self._rows("SELECT service, document FROM bake")}

    def save_incident(self, operation: int, document: Mapping[str, Any]) -> None:
        """Write the record of a rollback; the oldest beyond a thousand are forgotten."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO incident VALUES (?, ?)", (operation, json.dumps(document)))
            database.execute(
                "DELETE FROM incident WHERE operation NOT IN (SELECT operation FROM incident ORDER BY operation DESC "
                "LIMIT ?)",
                (_INCIDENTS_KEPT,),
            )

    def incident(self, operation: int) -> dict[str, Any] | None:
        """The record of a rollback."""
        rows = self._rows("SELECT document FROM incident WHERE operation = ?", operation)
        return dict(json.loads(rows[0][0])) if rows else None

    def answer(self, key: str) -> StoredAnswer | None:
        """What an earlier request with this key was answered."""
        rows = self._rows("SELECT request, status, body FROM answer WHERE key = ?", key)
        return StoredAnswer(*rows[0]) if rows else None

    def keep_answer(self, key: str, answer: StoredAnswer) -> None:
        """Remember an answer; the oldest beyond ten thousand are forgotten."""
        with self._transaction() as database:
            values = (key, answer.request, answer.status, answer.body)
            database.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?)", values)
            database.execute("DELETE FROM answer WHERE rowid <= (SELECT max(rowid) FROM answer) - ?", (_ANSWERS_KEPT,))


_SNAPSHOT = (
    "id, at, purpose, digest, tree, restores, "
    "(SELECT group_concat(o.id) FROM operation AS o WHERE o.snapshot = snapshot.id)"
)
_LAST_MOVE = "state = 'done' AND source <> target AND weight = 100 AND kind <> 'weight'"
_FORGET = f"""
DELETE FROM snapshot WHERE at < ?
AND id NOT IN (SELECT id FROM snapshot ORDER BY id DESC LIMIT ?)
AND id NOT IN (SELECT snapshot FROM operation WHERE state = 'open' AND snapshot IS NOT NULL)
AND id NOT IN (
    SELECT restores FROM snapshot AS s WHERE restores IS NOT NULL
    AND s.id IN (SELECT snapshot FROM operation WHERE state = 'open')
)
AND id NOT IN (
    SELECT snapshot FROM operation WHERE snapshot IS NOT NULL
    AND id IN (SELECT max(id) FROM operation WHERE {_LAST_MOVE} GROUP BY service)
)
"""  # noqa: S608 - nothing but our own words


def _put_snapshot(database: sqlite3.Connection, snapshot: Snapshot) -> int:
    database.execute("INSERT OR IGNORE INTO manifest VALUES (?, ?)", (snapshot.digest, snapshot.manifest))
    values = (snapshot.at, snapshot.purpose, snapshot.digest, snapshot.tree, snapshot.restores)
    statement = "INSERT INTO snapshot (at, purpose, digest, tree, restores) VALUES (?, ?, ?, ?, ?)"
    return database.execute(statement, values).lastrowid or 0


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    number, at, purpose, digest, tree, restores, operations, manifest = row
    numbers = sorted(int(one) for one in operations.split(",")) if operations else ()
    return Snapshot(number, at, purpose, digest, tree, manifest, restores, tuple(numbers))


def _put_services(database: sqlite3.Connection, services: Mapping[str, ServiceIntent]) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO service VALUES (?, ?, ?, ?, ?)",
        [
            (name, str(intent.route.live), intent.route.weight, intent.generation, int(intent.weighted))
            for name, intent in services.items()
        ],
    )


def _insert(
    database: sqlite3.Connection, operation: Operation, before: ServiceIntent | None, after: ServiceIntent | None
) -> Operation:
    columns: dict[str, object] = _columns(operation)
    columns["intent_before"], columns["intent_after"] = _intent_text(before), _intent_text(after)
    marks = ", ".join("?" * len(columns))
    statement = f"INSERT INTO operation ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - our own column names
    return replace(operation, id=database.execute(statement, tuple(columns.values())).lastrowid or 0)


def _columns(operation: Operation) -> dict[str, object]:
    gate = operation.gate
    return {
        "kind": str(operation.kind),
        "service": operation.service,
        "source": str(operation.source),
        "target": str(operation.target),
        "weight": operation.weight,
        "state": str(operation.state),
        "generation": operation.generation,
        "reason": operation.reason,
        "actor": operation.actor,
        "gate": None if gate is None else json.dumps([gate.name, gate.message]),
        "error": operation.error,
        "notes": json.dumps(operation.notes),
        "timings": json.dumps(operation.timings.to_json()),
        "started_at": operation.started_at,
        "ended_at": operation.ended_at,
        "snapshot": operation.snapshot,
        **_drain_columns(operation.drain),
    }


def _drain_columns(drain: Drain | None) -> dict[str, object]:
    return {
        "drain": None if drain is None else json.dumps(drain.to_json()),
        "draining": int(drain is not None and not drain.state.is_over),
    }


_NAMES = (
    "id, kind, service, source, target, weight, state, generation, reason, actor, gate, error, notes, timings, "
    "started_at, ended_at, snapshot, drain"
)


def _operation(row: tuple[Any, ...]) -> Operation:
    (identity, kind, service, source, target, weight, state, generation, reason, actor, gate, error, notes, timings,
     started_at, ended_at, snapshot, drain) = row  # fmt: skip
    return Operation(
        id=identity,
        kind=Kind(kind),
        service=service,
        source=Color(source),
        target=Color(target),
        weight=weight,
        state=OperationState(state),
        generation=generation,
        reason=reason,
        actor=actor,
        gate=None if gate is None else Gate(*json.loads(gate)),
        error=error,
        notes=tuple(json.loads(notes)),
        timings=Timings(**json.loads(timings)),
        started_at=started_at,
        ended_at=ended_at,
        snapshot=snapshot,
        drain=None if drain is None else Drain.from_json(json.loads(drain)),
    )


def _intent_text(intent: ServiceIntent | None) -> str | None:
    if intent is None:
        return None
    return json.dumps([str(intent.route.live), intent.route.weight, intent.generation, intent.weighted])


def _intent(text: str) -> ServiceIntent:
    live, weight, generation, weighted = json.loads(text)
    return ServiceIntent(Route(Color(live), weight), generation, weighted)
