"""Both maps on disk and in every worker: they change together, or everything serves what it served before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from lbswitch.balancers.haproxy_maps import MapFiles, Maps, StagedFiles, WorkerMaps
from lbswitch.balancers.haproxy_runtime import Runtime, Silent, Unanswered
from lbswitch.balancers.haproxy_servers import Servers
from lbswitch.core.model import Intent, ServerKey
from lbswitch.errors import CommitFailed, StateError

_MANY_DRAINING = 5
_ENDING_S = 0.5
_HUNG_S = 0.5
_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class _Ready:
    """New maps, on disk and in the workers, that do not count yet; `asked` are the workers that were to take them."""

    before: Maps | None
    after: Maps
    files: StagedFiles
    updates: list[WorkerMaps]
    asked: frozenset[int]


class LiveMaps:
    """What a running HAProxy serves: the maps, and the servers that are left out."""

    def __init__(self, files: MapFiles, runtime: Runtime, servers: Servers, is_running: Callable[[], bool]) -> None:
        """`is_running` says whether there is a master; without one only the disk changes."""
        self.draining: tuple[int, ...] = ()
        self._files = files
        self._runtime = runtime
        self._brief = runtime.with_timeout(_HUNG_S)
        self._servers = servers
        self._is_running = is_running
        self._ready: _Ready | None = None
        self._made: tuple[Intent, Maps] | None = None
        self._current: frozenset[int] = frozenset()  # the workers that serve what was committed last
        self._behind: set[int] = set()
        self._ejected: frozenset[ServerKey] = frozenset()
        self._told: set[int] = set()

    def _maps_of(self, intent: Intent) -> Maps:
        """What is asked for several times in a switch is put together once."""
        known = self._made
        if known is None or known[0] is not intent:
            known = self._made = (intent, Maps.of(intent))
        return known[1]

    def prepare(self, intent: Intent) -> None:
        """Hand out all that the next commit needs if it is of this intent: no request notices. Raises: CommitFailed."""
        try:
            self._get_ready(self._maps_of(intent))
        except (OSError, Unanswered) as error:
            raise CommitFailed(f"nothing moved, the maps serve what they served before: {_words(error)}") from error

    def prepare_ahead(self, intent: Intent) -> None:
        """Write the files that a commit of this intent would write. Raises: CommitFailed."""
        try:
            self._files.write_ahead(self._maps_of(intent))
        except OSError as error:
            raise CommitFailed(f"the next maps could not be written: {_words(error)}") from error

    def is_ahead(self, intent: Intent) -> bool:
        """Whether the next maps are on disk already, as far as is known without looking."""
        return self._files.are_ahead(self._maps_of(intent))

    def forget(self) -> None:
        """Drop what was prepared and not committed."""
        ready, self._ready = self._ready, None
        if ready is not None:
            for update in ready.updates:
                update.discard()
            ready.files.clean()

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Change the maps on disk and in every worker, the draining ones too. Raises: CommitFailed.

        The files come first, so that a worker that starts meanwhile reads the new maps. New maps are prepared
        everywhere, on disk and in the workers, before the first of them counts: that is where things fail.
        """
        try:
            self._commit(self._maps_of(intent))
        except (OSError, Unanswered) as error:
            names = ", ".join(sorted(changed)) or "nothing"
            raise CommitFailed(
                f"{names} did not move, the maps serve what they served before: {_words(error)}"
            ) from error
        if intent.ejected != self._ejected:
            with contextlib.suppress(CommitFailed):  # the traffic did move; the agent ejects anew when checks change
                self.eject(intent.ejected)

    def _get_ready(self, after: Maps) -> _Ready:
        """Raises: OSError, Unanswered; then nothing is left of it."""
        self.forget()
        before, files = self._files.read(), self._files.staged(after)
        try:
            files.write()
            is_small = before is not None and bool(after.values_since(before))
            workers = self._current if is_small and self._current else self.workers()
            updates = self._prepared(after, workers, (), before)
            self._ready = ready = _Ready(before, after, files, updates, frozenset(workers))
        except BaseException:
            files.clean()
            raise
        return ready

    def _commit(self, after: Maps) -> None:
        ready = self._ready
        if ready is None or ready.after != after:
            ready = self._get_ready(after)
        try:
            ready.files.apply()
            self._commit_in(ready.updates)
            ready.files.sync()  # requests need not wait for it: without it a power cut leaves what INTENT reverts
            workers = self.workers()
            # Where a reload has started a worker meanwhile, it may be the one that answered for the one before it.
            told = ready.asked if ready.asked.issuperset(workers) else ()
            self._commit_in(self._prepared(after, workers, told))
            self._current = frozenset(workers) - self._behind
        except (OSError, Unanswered) as error:
            self._current = frozenset()
            self._return_to(ready.before, ready.files, error)
            raise
        finally:
            ready.files.clean()
            self._ready = None

    def workers(self) -> tuple[int, ...]:
        """Every worker that answers requests; none when HAProxy does not run. Raises: Unanswered."""
        if not self._is_running():
            return ()
        processes = self._runtime.processes()
        self.draining = processes.draining
        return processes.workers

    def _prepared(
        self, maps: Maps, workers: Collection[int], known: Collection[int], before: Maps | None = None
    ) -> list[WorkerMaps]:
        """Hand the maps to workers; one that ended meanwhile is left out. Raises: Unanswered; then none has them.

        `before` is what those serve that were told of the last commit.
        """
        updates: list[WorkerMaps] = []
        for pid in workers:
            if pid in known:
                continue
            is_current = pid not in self.draining and before is not None
            update = WorkerMaps(self._runtime_for(pid), pid, self._files, is_current=is_current)
            updates.append(update)
            try:
                update.prepare(maps, before if pid in self._current else None)
            except Unanswered as error:
                if self._is_left_behind(pid, error):
                    updates.pop()
                    continue
                for each in updates:
                    each.discard()
                raise
            self._behind.discard(pid)
        return updates

    def _commit_in(self, updates: Collection[WorkerMaps]) -> None:
        for update in updates:
            try:
                update.commit()
            except Unanswered as error:
                if not self._is_left_behind(update.worker, error):
                    raise

    def _runtime_for(self, worker: int) -> Runtime:
        """A draining worker may keep nobody waiting for long."""
        return self._brief if worker in self.draining else self._runtime

    def _is_left_behind(self, worker: int, error: Unanswered) -> bool:
        """Whether all others may move without this worker. Raises: Unanswered.

        One that ended serves nobody. One that drains since a reload and hangs serves nobody either, and must not
        stand in the way of a rollback; it is asked again at the next commit, and `warnings` names it until then.
        """
        if isinstance(error, Silent) and worker in self.draining:
            self._behind.add(worker)
            return True
        return self._has_ended(worker)

    def _has_ended(self, worker: int) -> bool:
        """Whether it did not answer because it ended; the master may need a moment to notice. Raises: Unanswered."""
        deadline = time.monotonic() + _ENDING_S
        while worker in self.workers():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        return True

    def _return_to(self, before: Maps | None, files: StagedFiles, error: Exception) -> None:
        """Put the old maps back on disk and in every worker. Raises: CommitFailed when that fails too."""
        try:
            files.revert()
            if before is not None:
                self._commit_in(self._prepared(before, self.workers(), ()))
        except (OSError, Unanswered) as second:
            raise CommitFailed(
                f"the maps could not be changed ({error}) nor all put back ({second}): workers may disagree until the "
                "next commit; a restart of HAProxy serves what is on disk"
            ) from error

    def committed(self) -> Intent | None:
        """Routes and generations of the maps on disk, or None. Raises: StateError."""
        directory = self._files.directory
        try:
            maps = self._files.read()
        except PermissionError as error:
            if not os.access(directory, os.X_OK):  # somebody who checks and may not look there, never the agent
                return None
            raise StateError(f"the maps in {directory} can't be read: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"the maps in {directory} can't be read: {error}") from error
        return None if maps is None else maps.intent()

    # -- servers ---------------------------------------------------------------------------------------------

    def eject(self, ejected: frozenset[ServerKey]) -> None:
        """Leave exactly these servers out in every worker, now and after the next reload. Raises: CommitFailed."""
        self._ejected = ejected
        try:
            workers = self.workers()
            self._told = set()
            for pid in workers:
                self._eject_from(pid)
        except Unanswered as error:
            raise CommitFailed(f"servers could not be taken out or put back: {error}") from error

    def _eject_from(self, worker: int) -> None:
        try:
            self._servers.eject(worker, self._ejected)
            self._told.add(worker)
        except Unanswered as error:
            if not self._is_left_behind(worker, error):
                raise

    def eject_again(self) -> None:
        """Tell a new worker, which knows nothing of what its predecessor left out."""
        if self._ejected:
            with contextlib.suppress(CommitFailed):  # it serves; the agent ejects anew when checks change
                self.eject(self._ejected)

    def remind(self) -> None:
        """Tell workers that a reload by somebody else made what only their predecessors knew."""
        if self._ejected:
            with contextlib.suppress(Unanswered):  # they are asked again at the next look
                for pid in self.workers():
                    if pid not in self._told:
                        self._eject_from(pid)

    # -- what should be mended -------------------------------------------------------------------------------

    def hung_workers(self) -> Iterator[str]:
        """Sentences about workers that missed the last commit."""
        if not self._behind:
            return
        with contextlib.suppress(Unanswered):
            for pid in self._behind.intersection(self.workers()):
                yield (
                    f"HAProxy worker {pid}, which drains since a reload, hangs and missed the last switch: should "
                    "it wake up, its open connections would go where they went before; look at it, or end it "
                    f"with kill {pid}"
                )

    def many_draining(self, until: str) -> Iterator[str]:
        """A sentence about too many workers from before reloads; `until` says when they end."""
        with contextlib.suppress(Unanswered):
            draining = self._runtime.processes().draining if self._is_running() else ()
            if len(draining) > _MANY_DRAINING:
                yield (
                    f"{len(draining)} old HAProxy workers still finish long connections after reloads and take memory "
                    f"until they are done, {until}"
                )


def _words(error: Exception) -> str:
    """What an operating system or a worker said, with the file it is about."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
