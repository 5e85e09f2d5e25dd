"""What HAProxy's workers still carry to the servers of a pool, and how to end it, by the Runtime API.

Counted are requests and tunnels (`scur` of the pool's backend, and under the shield of its servers there); an idle
connection, of a client or to a server, carries nothing and does not count. Commands: management guide 9.3, `show stat`,
`show sess`, `shutdown session`.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress

from lbswitch.balancers.haproxy_runtime import Processes, Runtime, Silent, Unanswered
from lbswitch.balancers.old_workers import FirstSeen
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.names import shielded_name
from lbswitch.errors import BalancerError
from lbswitch.ports import Held, OldWorker

_HUNG_S = 0.5
_COMMANDS_A_LINE = 100  # a line of commands has to fit into tune.bufsize
_SESSION = re.compile(r"^(0x[0-9a-f]+): .* be=(\S+) srv=(\S+) .* age=(\S+)", re.MULTILINE)
_AGE = re.compile(r"(\d+)([dhms])")
_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_NO_SUCH = "No such session"
_CONNECTIONS = re.compile(r"^CurrConns: (\d+)", re.MULTILINE)


class HAProxyDraining:
    """Satisfies `lbswitch.ports.Draining`."""

    def __init__(
        self, runtime: Runtime, name: Callable[[str, Color], str], is_running: Callable[[], bool], *, is_ours: bool
    ) -> None:
        """`name` is the backend of a color; `is_ours` says whether lbswitch may end workers."""
        self._runtime = runtime
        self._brief = runtime.with_timeout(_HUNG_S)
        self._name = name
        self._is_running = is_running
        self._is_ours = is_ours
        self._first_seen = FirstSeen()

    # -- connections -------------------------------------------------------------------------------------------

    def held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        """By one question to each worker. None while one does not answer. Never raises."""
        try:
            found = list(self._requests(pools))
        except (Unanswered, BalancerError, ValueError):
            return dict.fromkeys(pools)
        return {pool: tuple(Held(pid, old, count[pool]) for pid, old, count in found if count[pool]) for pool in pools}

    def _requests(self, pools: Collection[PoolKey]) -> Iterator[tuple[int, bool, Counter[PoolKey]]]:
        """Worker, whether it is old, and its requests to these pools. Raises: Unanswered."""
        processes = self._processes()
        if processes is None:
            return
        for pid in processes.workers:
            try:
                yield pid, pid in processes.draining, self._counted(self._runtime_for(pid, processes), pid, pools)
            except Silent:
                raise
            except Unanswered:
                if pid in self._runtime.processes().workers:
                    raise

    def _counted(self, runtime: Runtime, worker: int, pools: Collection[PoolKey]) -> Counter[PoolKey]:
        """Those under the shield belong to the color whose server has them. Raises: Unanswered."""
        requests = runtime.requests(worker)
        counts = Counter({pool: requests.get(self._name(*pool), 0) for pool in pools})
        for backend in {backend for pool in pools for backend in self._shielded(pool)}:
            if requests.get(backend):
                by_server = runtime.requests_by_server(worker, backend)
                for pool in (pool for pool in pools if backend in self._shielded(pool)):
                    counts[pool] += sum(count for server, count in by_server.items() if _is_of(server, pool))
        return counts

    def _shielded(self, pool: PoolKey) -> tuple[str, ...]:
        """The backends that have the servers of a pool beside those of the other color."""
        return tuple(shielded_name(self._name(pool.service, color)) for color in Color)

    def _processes(self) -> Processes | None:
        """None when there is no HAProxy. Raises: Unanswered."""
        try:
            return self._runtime.processes()
        except Unanswered:
            if self._is_running():
                raise
            return None

    def _runtime_for(self, worker: int, processes: Processes) -> Runtime:
        """A draining worker may keep nobody waiting for long."""
        return self._brief if worker in processes.draining else self._runtime

    def why_not_closed(self) -> str | None:
        """That nobody answers at the master socket, if so."""
        try:
            self._brief.processes()
        except Unanswered as error:
            return f"HAProxy's workers can't be asked to end connections: {error}"
        return None

    def close(self, pool: PoolKey, most: int) -> int:
        """Old workers' first, and of each worker those that have lasted longest. Raises: BalancerError.

        A session is named by its address in memory, which another one gets when it ends: one that has just begun could
        be ended for one that ended by itself in the same millisecond.
        """
        closed, trouble = 0, None
        try:
            processes = self._runtime.processes()
        except Unanswered as error:
            raise BalancerError(_not_closed(pool, error)) from error
        for worker in (*processes.draining, *processes.current):
            try:
                runtime = self._runtime_for(worker, processes)
                closed += self._close_in(runtime, worker, pool, most - closed)
            except Unanswered as error:
                trouble = error
        if trouble is not None and not closed:
            raise BalancerError(_not_closed(pool, trouble)) from trouble
        return closed

    def _close_in(self, runtime: Runtime, worker: int, pool: PoolKey, most: int) -> int:
        """Raises: Unanswered."""
        sessions = self._longest_first(runtime.ask(worker, "show sess"), pool)[:most] if most > 0 else []
        closed = 0
        for start in range(0, len(sessions), _COMMANDS_A_LINE):
            line = sessions[start : start + _COMMANDS_A_LINE]
            answer = runtime.ask_all(worker, [f"shutdown session {session}" for session in line])
            closed += len(line) - answer.count(_NO_SUCH)
        return closed

    def _longest_first(self, text: str, pool: PoolKey) -> list[str]:
        """The sessions of `show sess` that go to a pool."""
        plain, shielded = self._name(*pool), self._shielded(pool)
        found = [
            (_age_s(age), session)
            for session, backend, server, age in _SESSION.findall(text)
            if backend == plain or (backend in shielded and _is_of(server, pool))
        ]
        return [session for _, session in sorted(found, key=lambda one: -one[0])]

    # -- workers -----------------------------------------------------------------------------------------------

    def crew(self) -> int:
        """One process with threads."""
        return 1

    def old_workers(self) -> tuple[OldWorker, ...]:
        """By the master's list; each is as old as the last reload at least. Never raises."""
        try:
            processes = self._processes()
        except (Unanswered, BalancerError):
            return ()
        if processes is None:
            return ()
        uptimes = processes.uptimes_s
        last_reload_s = max((uptimes.get(pid, 0) for pid in processes.current), default=0)
        seen_s = self._first_seen.ages_s(processes.draining)
        oldest_first = sorted(processes.draining, key=lambda pid: (-uptimes.get(pid, 0), pid))
        return tuple(OldWorker(pid, max(seen_s[pid], last_reload_s), self._connections(pid)) for pid in oldest_first)

    def _connections(self, worker: int) -> int | None:
        """Those of clients; it has another one to a server for each that is busy."""
        try:
            found = _CONNECTIONS.search(self._brief.ask(worker, "show info"))
        except Unanswered:
            return None
        return int(found[1]) if found is not None else None

    def end_old_workers(self, keep: int) -> tuple[OldWorker, ...]:
        """By SIGTERM, which a worker obeys at once, as at the end of `hard-stop-after`. Never raises."""
        old = self.old_workers() if self._is_ours else ()
        return tuple(worker for worker in old[: max(0, len(old) - keep)] if self._end(worker.pid))

    def _end(self, worker: int) -> bool:
        """Whether it was told; its master has not yet waited for it, so the pid is still its own."""
        with suppress(Unanswered, OSError):
            if worker in self._runtime.processes().draining:
                os.kill(worker, signal.SIGTERM)
                return True
        return False


def _is_of(server: str, pool: PoolKey) -> bool:
    """Under the shield servers are named after their color."""
    return server.startswith(pool.color)


def _age_s(text: str) -> int:
    """Seconds of `3s`, `2m5s`, `1h2m`, `3d4h`."""
    return sum(int(number) * _UNIT_S[unit] for number, unit in _AGE.findall(text))


def _not_closed(pool: PoolKey, error: Exception) -> str:
    return f"the connections to {pool.service}'s {pool.color} servers were not closed: {error}"
