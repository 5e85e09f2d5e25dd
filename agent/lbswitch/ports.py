"""What lbswitch needs from the world, as Protocols; `wiring` is the only place that picks implementations.

All of these are synchronous and may block; the agent calls them from worker threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lbswitch.core.criteria import MetricReading
from lbswitch.core.decide import PoolFacts
from lbswitch.core.evidence import Batch, Failure
from lbswitch.core.model import Color, Drain, Intent, Observation, Operation, PoolKey, ServerKey, ServiceIntent

if TYPE_CHECKING:
    from lbswitch.core.config import Config  # whoever needs no configuration need not load pydantic

REVISION_MARK = "@@LBSWITCH_REVISION@@"


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """One file that lbswitch writes for the balancer; `secret` content is never shown and has mode 0600."""

    name: str
    content: bytes
    secret: bool = False

    @property
    def is_hidden(self) -> bool:
        """Whether nobody is shown the content: it is secret, or named like a key, whatever mode somebody gave it."""
        return self.secret or self.name.endswith((".pem", ".key"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A complete rendered configuration. `revision` names its content: twelve hex digits of a SHA-256."""

    files: tuple[RenderedFile, ...]
    revision: str

    @classmethod
    def of(cls, files: Iterable[RenderedFile]) -> Rendered:
        """Hash the files and write the revision where they hold `REVISION_MARK`."""
        ordered = tuple(sorted(files, key=lambda file: file.name))
        digest = hashlib.sha256()
        for file in ordered:
            digest.update(file.name.encode() + b"\0" + str(len(file.content)).encode() + b"\0" + file.content)
        revision = digest.hexdigest()[:12]
        mark, value = REVISION_MARK.encode(), revision.encode()
        return cls(tuple(RenderedFile(f.name, f.content.replace(mark, value), f.secret) for f in ordered), revision)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something on disk or in a running process that lbswitch did not make so.

    `what` is a sentence with its numbers, `thing` names what differs and stays the same while the numbers change,
    `service` is None when it concerns all of them, and `diff` is a unified diff from intended to found.
    """

    where: Literal["disk", "running"]
    thing: str
    what: str
    service: str | None = None
    diff: str = ""

    def to_json(self) -> dict[str, str | None]:
        """As status and events show it."""
        return {"where": self.where, "what": self.what, "service": self.service, "diff": self.diff}


@dataclass(frozen=True, slots=True)
class Held:
    """Connections that one worker has open to the servers of a pool.

    `pid` is None where nobody can tell which worker; `is_old` is one from before a reload.
    """

    pid: int | None
    is_old: bool
    count: int


@dataclass(frozen=True, slots=True)
class OldWorker:
    """A worker from before a reload that still runs.

    `age_s` counts from when it was told to end, as far as that can be known, else from when it was first seen old.
    `connections` are all its established ones; None where nobody can know.
    """

    pid: int
    age_s: float
    connections: int | None


class Draining(Protocol):
    """What is still open to the servers of a pool, and how to end it. May be used from any thread."""

    def held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        """By pool and worker; an empty tuple: none; None: nobody can know from here. Never raises."""

    def why_not_closed(self) -> str | None:
        """Why connections can't be closed from here, with what to do; None when they can."""

    def close(self, pool: PoolKey, most: int) -> int:
        """End at most so many connections to a pool, old workers' first; gives how many. Raises: BalancerError."""

    def crew(self) -> int:
        """How many workers one start or reload makes."""

    def old_workers(self) -> tuple[OldWorker, ...]:
        """Workers from before a reload that still run, oldest first. Never raises."""

    def end_old_workers(self, keep: int) -> tuple[OldWorker, ...]:
        """End the oldest beyond `keep`; gives which. Only of a balancer that lbswitch manages. Never raises."""


class Balancer(Protocol):
    """An nginx or a HAProxy on this host."""

    @property
    def draining(self) -> Draining:
        """Its connections to the servers of a pool, and its workers from before reloads."""

    @property
    def reload_is_free(self) -> bool:
        """Whether a reload costs clients nothing with this version of the balancer."""

    def version(self) -> str:
        """The version of the program, such as `1.22.1`.

        Raises: BalancerMissing, BalancerTooOld (with what needs which version).
        """

    def render(self, intent: Intent) -> Rendered:
        """The configuration for this intent. Changes nothing; the same inputs give the same bytes.

        Raises: RenderFailed, CheckFailed (files that rendering needs, such as TLS keys, are missing or unfit).
        """

    def check(self, rendered: Rendered) -> None:
        """Let the balancer's own checker judge it. Leaves nothing behind.

        Raises: CheckFailed with the checker's words.
        """

    def installed(self) -> str | None:
        """The revision that is on disk now, or None before the first installation."""

    def read(self, revision: str) -> Rendered:
        """An installed or previously installed configuration. Raises: StateError when it is no longer kept."""

    def intended_revision(self) -> str | None:
        """The revision that was last installed or put back through this object, or found at first.

        Unlike `installed`, a hand on the disk does not change it.
        """

    def install(self, rendered: Rendered) -> None:
        """Put it on disk, durably and all files at once. Does not reload. Raises: StateError."""

    def reinstall(self, revision: str) -> None:
        """Put back what was installed before. Does not reload. Raises: StateError when it is no longer kept."""

    def reload(self, *, gently: bool = True) -> None:
        """Make the running balancer read what is installed. Raises: ReloadFailed.

        `gently` may take a moment more, for the sake of clients whose idle connections would be cut.
        """

    def prepare(self, intent: Intent) -> None:
        """Do ahead what a `commit` of just this intent would do before anything moves; nothing is served otherwise yet.

        Never needed: `commit` does what was not prepared. Raises: CommitFailed.
        """

    def prepare_ahead(self, intent: Intent) -> None:
        """Write while nobody waits what a `prepare` of just this intent would have to write. Raises: CommitFailed."""

    def is_ahead(self, intent: Intent) -> bool:
        """Whether a `prepare` of just this intent would write nothing, as far as is known without looking."""

    def forget(self) -> None:
        """Drop what was prepared and not committed. Never raises."""

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Move the pointer (nginx) or the maps (HAProxy), on disk and in every running worker.

        `changed` names the services that differ from the last commit, all move at one instant. Works with the balancer
        stopped too: then only the disk changes. Idempotent. Raises: CommitFailed.
        """

    def committed(self) -> Intent | None:
        """Routes and generations that the disk says are served (`ejected` empty), or None before the first commit."""

    def observe(self, service: str) -> Observation:
        """Ask the service's own listener, on a fresh connection. Raises: NotSeen."""

    def routes(self) -> Mapping[int, Intent]:
        """By pid, what each worker would serve where workers have copies of their own; empty where they read the disk.

        Never raises; a worker that does not answer is left out.
        """

    def differences(self, intent: Intent) -> list[Difference]:
        """What on disk and in the running processes is not as this intent and `intended_revision` would have it.

        Cheap while nothing has moved. What can't be looked at is not a difference. Never raises.
        """

    def repair(self, intent: Intent, rendered: Rendered | None) -> None:
        """Write again what is not as intended, tell the processes, and reload only if they run other files.

        `rendered` is the content of `intended_revision` if the caller has it. Raises: BalancerError, StateError.
        """

    def eject(self, ejected: frozenset[ServerKey]) -> bool:
        """Leave exactly these servers out, at once, in the running process.

        False when this balancer can only do it by rendering and reloading.
        """

    def remind(self) -> None:
        """Tell processes that a reload by somebody else made what only their predecessors knew. Cheap; never raises."""

    def is_running(self) -> bool:
        """Whether the managed balancer's main process is alive."""

    def why_not_started(self) -> str | None:
        """Why the agent must not start one that is down: a person stopped it, or it is somebody else's. Else None."""

    def why_not_weighted(self, service: str) -> str | None:
        """Why this service's traffic can't be split between both colors, with what to do; None when it can."""

    def shield(self, services: Mapping[str, Color | None]) -> None:
        """Which color of each of these services is under the shield now; None: neither.

        What an idempotent request gets there that no client should see (no connection, no answer in time, 500, 502,
        503, 504) makes the balancer send it to the other color. Nothing is rendered or reloaded, and a restart leaves
        it as it is. Idempotent. A service with a `why_not_shielded` is left without. Raises: CommitFailed.
        """

    def why_not_shielded(self, service: str) -> str | None:
        """Why nothing can stand by for this service's new color, with what to do; None when it can."""

    def pools(self, rendered: Rendered) -> Mapping[str, int]:
        """How many servers each `upstream` or `backend` in these files has."""

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        """Connections that clients have open at each service's listener; None where nobody can know from here."""

    def watched(self) -> frozenset[Path]:
        """Files and directories whose change may have to be acted on, beside the configuration file.

        Templates, certificates and keys; and what lbswitch wrote itself, where a change means drift.
        """

    def warnings(self) -> list[str]:
        """What works but should be mended, as sentences: what, why, how."""

    def start(self) -> None:
        """Start what is installed, detached from the caller. Raises: StartFailed (names a port that is taken)."""

    def stop(self) -> None:
        """Stop it, letting requests in flight finish for a bounded time. Raises: StartFailed."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request of real traffic that a color answered, or should have: one that failed, or that is not idempotent.

    `at` is seconds since the epoch. `path` has no query and 500 characters at most; `request_id` is empty when none was
    logged. `ms` is None when the balancer did not tell.
    """

    at: float
    service: str
    color: Color
    method: str
    path: str
    status: int
    ms: float | None
    request_id: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What real traffic experienced since the reading before.

    `at` (seconds since the epoch) is up to when everything was read. `lost` are records that could not be used: torn,
    garbage or dropped; `unlisted` are those that `requests` had no room for. Batches count them all.
    """

    at: float
    batches: Mapping[PoolKey, Batch]
    requests: Sequence[Answered] = ()
    lost: int = 0
    unlisted: int = 0


class Reader(Protocol):
    """Reads what real traffic experiences. All but `problem` are called from one thread at a time; none raises."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be read, with what to do; None when all is well, or when it is not known yet."""

    def start(self) -> None:
        """Have the balancer tell; what was told before is not read, except by an agent that ended a moment ago."""

    def read(self) -> Reading:
        """What came since the last call, never waiting for more. Call it several times a second."""

    def update(self, config: Config) -> None:
        """The configuration is another one now. May be called from any thread."""

    def close(self) -> None:
        """Have the balancer stop telling."""


class HealthView(Protocol):
    """What the checks know right now; may be read from any thread."""

    def facts(self, service: str, color: Color) -> PoolFacts:
        """State of a color with the checks behind it."""


class Store(Protocol):
    """Journal, history and intent; every write is on disk when the call returns. All raise StateError."""

    def rest(self) -> None:
        """While nobody waits: tidy up, so that the writes to come are quick."""

    def services(self) -> dict[str, ServiceIntent]:
        """What every service should serve, as last completed; empty on a fresh state directory."""

    def generation(self) -> int:
        """The newest generation ever given out."""

    def save_services(self, services: Mapping[str, ServiceIntent], generation: int) -> None:
        """Replace what is intended, outside of any operation (first start, configuration change)."""

    def ejected(self) -> frozenset[ServerKey]:
        """The servers that are left out of their pools."""

    def save_ejected(self, ejected: frozenset[ServerKey]) -> None:
        """Replace which servers are left out."""

    def begin(
        self,
        operations: Sequence[Operation],
        before: Mapping[str, ServiceIntent],
        after: Mapping[str, ServiceIntent],
        snapshot: Snapshot | None = None,
    ) -> list[Operation]:
        """Write INTENT: these operations are about to move `before` to `after`. Returns them with their ids.

        The snapshot that was taken before is written with them, or none of it is.
        """

    def finish(self, operations: Sequence[Operation], services: Mapping[str, ServiceIntent]) -> None:
        """Write how they ended and what these services serve from now on, in one transaction."""

    def record(self, operation: Operation) -> Operation:
        """Add one that changed nothing (`already`, `refused`, ...). Returns it with its id."""

    def unfinished(self) -> list[OpenOperation]:
        """Operations that a crash left open, oldest first."""

    def operation(self, operation_id: int) -> Operation | None:
        """One operation by id."""

    def history(self, limit: int, service: str | None = None) -> list[Operation]:
        """The newest first."""

    def last_move(self, service: str) -> Operation | None:
        """The last completed operation that made another color live."""

    def draining(self) -> list[Operation]:
        """Those that took all traffic from a color whose connections have not all ended, oldest first."""

    def save_drains(self, drains: Mapping[int, Drain]) -> None:
        """Write, by id of the operation, how far its drain is."""

    def add_snapshot(self, snapshot: Snapshot) -> int:
        """Keep a snapshot that no operation asked for; gives its number."""

    def snapshots(self, limit: int) -> list[Snapshot]:
        """The newest first, with `manifest` left empty."""

    def snapshot(self, number: int) -> Snapshot | None:
        """One snapshot, complete."""

    def forget_snapshots(self, keep: int, before: float) -> int:
        """Remove those from before a time, but never the newest `keep` nor what a way back needs; gives how many.

        Needed are those from before the last move of each service, and of operations that are open.
        """

    def snapshot_trees(self) -> set[str]:
        """The digests of all trees that a snapshot refers to."""

    def automatic_since(self, service: str, since: float) -> list[float]:
        """When this service was failed over or rolled back by the agent itself (seconds since the epoch).

        Only what was begun after `since` and after the last release.
        """

    def freeze(self, service: str, reason: str) -> None:
        """Latch a service until a person releases it."""

    def release(self, service: str, at: float) -> bool:
        """End freeze and quarantine; False when there was neither. Automatic switches before `at` no longer count."""

    def frozen(self) -> dict[str, str]:
        """Frozen services with the reason."""

    def quarantine(self, service: str, color: Color, reason: str, at: float) -> None:
        """Keep traffic away from what runs on this color until a person releases it; `at`: seconds since the epoch."""

    def quarantined(self) -> Mapping[PoolKey, str]:
        """Quarantined pools with the reason."""

    def save_bake(self, service: str, document: Mapping[str, Any]) -> None:
        """Write how far the watch on a service is, as JSON values."""

    def bakes(self) -> Mapping[str, Mapping[str, Any]]:
        """The last watch of each service."""

    def save_incident(self, operation: int, document: Mapping[str, Any]) -> None:
        """Write the record of a rollback, as JSON values; only the newest thousand are kept."""

    def incident(self, operation: int) -> Mapping[str, Any] | None:
        """The record of a rollback."""

    def answer(self, key: str) -> StoredAnswer | None:
        """What an earlier request with this idempotency key was answered."""

    def keep_answer(self, key: str, answer: StoredAnswer) -> None:
        """Remember the answer to a request with an idempotency key."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there was before an operation: a manifest, and the tree of files that it names; `id` 0 is not kept yet.

    `digest` is the manifest's SHA-256, `tree` that of the object that lists the files. `purpose` is the kind of the
    operation, or what else was about to change; `restores` is the snapshot that a restore was about to bring back.
    """

    id: int
    at: float
    purpose: str
    digest: str
    tree: str
    manifest: str
    restores: int | None = None
    operations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """An operation that was begun, with what its service served before and should serve after."""

    operation: Operation
    before: ServiceIntent
    after: ServiceIntent


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An HTTP answer as it was given: digest of the request it belongs to, status, and JSON text."""

    request: str
    status: int
    body: str


class SourceDown(Exception):
    """A source of metrics gave no number; the message says what failed, where, and what to do."""


class MetricSource(Protocol):
    """One metric from elsewhere. Asynchronous, other than the rest of this module, and never two reads at a time."""

    async def read(self) -> float:
        """A finite number, asked for now. May be cancelled, and leaves nothing running then. Raises: SourceDown."""

    async def close(self) -> None:
        """Let go of what is kept between reads."""


class MetricSources(Protocol):
    """Metrics from elsewhere, each read again and again."""

    @property
    def readings(self) -> Mapping[str, MetricReading]:
        """The newest of each source, by its name."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Why the last read of a source failed, by its name."""

    async def run(self) -> None:
        """Read until cancelled."""

    def update(self, config: Config) -> None:
        """The configuration is another one now."""
