"""What nginx's workers still have open to the servers of a pool, and how to end it: nginx itself offers neither.

The kernel knows which connections lead to which server, and by their inodes which worker has them. What it does not
know is whether a connection carries something: nginx keeps idle ones to the servers for up to 4 s (`keepalive_timeout`
of the pools), so a pool may take that much longer until it counts none. A server that two pools list counts for both.

Measured on a busy machine, CPU time of `held` with 100 and 5,000 requests in flight to a pool (all ends on one machine,
so 400 and 20,000 sockets): 5 and 40 ms; 7 and 105 ms at the first look, which finds out whose they are.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from lbswitch.balancers import nginx_closing, nginx_workers
from lbswitch.balancers.borrowed_socket import why_not
from lbswitch.balancers.nginx_servers import Ends, NginxServers
from lbswitch.balancers.nginx_workers import Worker
from lbswitch.balancers.old_workers import FirstSeen
from lbswitch.balancers.socket_diag import TcpSocket
from lbswitch.balancers.socket_owners import SocketOwners
from lbswitch.balancers.socket_tables import SocketTables, open_sockets
from lbswitch.core.config import Config
from lbswitch.core.model import PoolKey
from lbswitch.errors import BalancerError
from lbswitch.ports import Held, OldWorker

_Counts = Mapping[bytes, Counter[Worker | None]]
"""By far end and worker; None is whoever has them where that can't be known."""


class NginxDraining:
    """Satisfies `lbswitch.ports.Draining`."""

    def __init__(self, config: Config, master: Callable[[], int | None], *, is_ours: bool, is_inside: bool) -> None:
        """`master` gives its pid; `is_ours` says whether lbswitch may end workers, `is_inside` that it is contained."""
        self._servers = NginxServers(config)
        self._workers = config.balancer.workers
        self._master = master
        self._is_ours = is_ours
        self._is_inside = is_inside
        self._first_seen = FirstSeen()
        self._owners = SocketOwners()

    # -- connections -------------------------------------------------------------------------------------------

    def held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        """By one look at the kernel's tables. Never raises.

        `pid` is None for unix sockets, and where this user may not look into the workers: then all connections of the
        workers' user count that are not this process's own. None for a container of which nothing is seen from here.
        """
        try:
            return self._held(pools)
        except (OSError, BalancerError):
            return dict.fromkeys(pools)

    def _held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        """Raises: OSError, BalancerError."""
        master = self._master()
        if master is None and self._is_inside:
            return dict.fromkeys(pools)
        tables = SocketTables(master)
        ends = {pool: self._servers.of(pool) for pool in pools}
        sockets = tables.tcp_to({key for each in ends.values() if each is not None for key in each.remotes})
        counts = self._counts(sockets, nginx_workers.workers(master))
        return {pool: None if each is None else tuple(_held_at(each, counts, tables)) for pool, each in ends.items()}

    def _counts(self, sockets: Collection[TcpSocket], crew: Collection[Worker]) -> _Counts:
        """Raises: OSError."""
        if not sockets:
            return {}
        by_pid = {worker.pid: worker for worker in crew}
        try:
            owners = self._owners.of([found.inode for found in sockets], by_pid) if crew else None
        except PermissionError:
            owners = None
        if owners is None:
            return _counted((found.remote, None) for found in _not_ours(sockets, crew))
        return _counted((found.remote, by_pid[pid]) for found in sockets if (pid := owners[found.inode]) is not None)

    # -- closing -----------------------------------------------------------------------------------------------

    def why_not_closed(self) -> str | None:
        """By trying whether each worker lends a socket."""
        try:
            crew = nginx_workers.workers(self._master())
        except BalancerError as error:
            return str(error)
        if not crew:
            return "no worker of nginx can be seen from here, so nothing of theirs can be closed"
        return next(filter(None, (why_not(worker.pid) for worker in crew)), None)

    def close(self, pool: PoolKey, most: int) -> int:
        """Shut them down as if the server had gone away; idle ones count, too. Raises: BalancerError.

        Connections to a server that another pool lists, too, are left alone: nobody can tell whose those are.
        """
        try:
            return self._close(self._servers.only_of(pool), most)
        except (OSError, BalancerError) as error:
            why = self.why_not_closed() or error
            raise BalancerError(
                f"the connections to {pool.service}'s {pool.color} servers were not closed: {why}"
            ) from error

    def _close(self, ends: Ends, most: int) -> int:
        """Raises: OSError, BalancerError."""
        master = self._master()
        tables = SocketTables(master)
        inodes = {found.inode for found in tables.tcp_to(ends.remotes)}
        if ends.paths:
            inodes |= tables.nameless()
        crew = nginx_workers.workers(master)
        if not crew:
            raise BalancerError("nginx does not run")
        closed = 0
        for worker in crew:
            closed += nginx_closing.close(worker.pid, inodes, ends, most - closed)
        return closed

    # -- workers -----------------------------------------------------------------------------------------------

    def crew(self) -> int:
        """What `worker_processes` says; `auto` is one for each core."""
        return self._workers or os.cpu_count() or 1

    def old_workers(self) -> tuple[OldWorker, ...]:
        """By their titles; each is told to be as old as the last reload at least. Never raises."""
        try:
            master = self._master()
        except BalancerError:
            return ()
        crew = nginx_workers.workers(master)
        old = [worker.pid for worker in crew if worker.is_old]
        ages_s, reload_s = self._first_seen.ages_s(old), nginx_workers.last_reload_s(crew)
        established = _established(master) if old else None
        return tuple(OldWorker(pid, max(ages_s[pid], reload_s), _connections(pid, established)) for pid in old)

    def end_old_workers(self, keep: int) -> tuple[OldWorker, ...]:
        """By SIGTERM, which a worker obeys at once, as at the end of `worker_shutdown_timeout`. Never raises."""
        old = self.old_workers() if self._is_ours else ()
        return tuple(worker for worker in old[: max(0, len(old) - keep)] if _is_ended(worker.pid))


def _counted(found: Iterable[tuple[bytes, Worker | None]]) -> _Counts:
    counts: dict[bytes, Counter[Worker | None]] = {}
    for remote, worker in found:
        counts.setdefault(remote, Counter())[worker] += 1
    return counts


def _not_ours(sockets: Collection[TcpSocket], crew: Collection[Worker]) -> Iterator[TcpSocket]:
    """Those of the workers' users, less those of this process, which checks the servers. Raises: OSError."""
    ours = open_sockets(os.getpid())
    users = {Path(f"/proc/{worker.pid}").stat().st_uid for worker in crew}
    return (found for found in sockets if found.inode not in ours and (not users or found.uid in users))


def _held_at(ends: Ends, counts: _Counts, tables: SocketTables) -> Iterator[Held]:
    """Raises: OSError."""
    total: Counter[Worker | None] = Counter()
    for remote in ends.remotes & counts.keys():
        total += counts[remote]
    for worker, count in total.items():
        yield Held(None, False, count) if worker is None else Held(worker.pid, worker.is_old, count)
    accepted = sum(len(tables.accepted_at(path)) for path in ends.paths)
    if accepted:
        yield Held(None, False, accepted)


def _established(master: int | None) -> frozenset[int] | None:
    try:
        return SocketTables(master).established()
    except OSError:
        return None


def _connections(pid: int, established: frozenset[int] | None) -> int | None:
    try:
        return None if established is None else len(open_sockets(pid).keys() & established)
    except OSError:
        return None


def _is_ended(pid: int) -> bool:
    """Whether it was told; only what is still an old worker of nginx."""
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            worker = nginx_workers.look(pid)
            if worker is not None and worker.is_old:
                signal.pidfd_send_signal(process, signal.SIGTERM)
                return True
        finally:
            os.close(process)
    return False
