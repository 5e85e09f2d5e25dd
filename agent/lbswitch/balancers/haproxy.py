"""The managed HAProxy: a switch is an atomic change of maps in every worker and on disk, without a reload.

STATE/haproxy/rendered/REVISION/haproxy.cfg     and SERVICE.pem for services with TLS
STATE/haproxy/current -> rendered/REVISION
STATE/haproxy/live.map, weights.map             where every service's requests go (`haproxy_maps`)
STATE/haproxy/master.sock                       reaches every worker (`haproxy_runtime`)
STATE/haproxy/worker.sock                       the current worker's Runtime API, for people and tools
STATE/haproxy/state.sock                        tells what services in `mode: tcp` serve
STATE/haproxy/haproxy.pid
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lbswitch.balancers import clients, listener, pools, stopmark, tls_files
from lbswitch.balancers.haproxy_binds import LONGEST_SOCKET_PATH, too_long
from lbswitch.balancers.haproxy_maps import MapFiles, Maps, StagedFiles, WorkerMaps
from lbswitch.balancers.haproxy_process import Process
from lbswitch.balancers.haproxy_program import Program
from lbswitch.balancers.haproxy_rendering import Rendering
from lbswitch.balancers.haproxy_runtime import Runtime, Silent, Unanswered
from lbswitch.balancers.haproxy_servers import Servers
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.stopmark import StopMark
from lbswitch.core.config import Config, Mode
from lbswitch.core.model import Intent, Observation, ServerKey
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.errors import CheckFailed, CommitFailed, StartFailed, StateError
from lbswitch.ports import Rendered, RenderedFile

_MANY_DRAINING = 5
_FILES_BESIDE_CONNECTIONS = 200
_ENDING_S = 0.5
_HUNG_S = 0.5
_PAUSE_S = 0.005


class HAProxy:
    """A HAProxy of our own on this host; implements `lbswitch.ports.Balancer`."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up, written or started yet."""
        directory = Path(config.agent.state_dir) / "haproxy"
        self._config = config
        self._directory = directory
        self._binds = {name: parse_endpoint(service.bind) for name, service in config.services.items()}
        self._program = Program(config.balancer.binary)
        self._runtime = Runtime(directory / "master.sock")
        self._files = MapFiles(directory)
        self._rendering = Rendering(config, directory, self._files)
        self._rendered = RenderedDirectory(directory)
        self._process = Process(self._program, directory, self._rendered.current, self._runtime)
        self._servers = Servers(config, self._runtime)
        self._state_socket = Endpoint(path=str(directory / "state.sock"))
        self._stopped = StopMark(directory)
        self._ejected: frozenset[ServerKey] = frozenset()
        self._brief = Runtime(directory / "master.sock", timeout_s=_HUNG_S)
        self._draining: tuple[int, ...] = ()
        self._behind: set[int] = set()

    @property
    def reload_is_free(self) -> bool:
        """Yes: `option idle-close-on-response` keeps idle connections through a reload."""
        return True

    def version(self) -> str:
        """Such as `2.6.12`. Raises: BalancerMissing, BalancerTooOld."""
        return self._program.version()

    # -- files -----------------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:
        """The configuration for this intent. Raises: RenderFailed."""
        return self._rendering.render(intent)

    def check(self, rendered: Rendered) -> None:
        """Let `haproxy -c` judge it; writes nothing below the state directory.

        Raises: CheckFailed, BalancerMissing, StateError.
        """
        self._refuse_unusable_binds()
        with self._rendered.staged(self._with_maps(rendered)) as staging:
            self._program.check(staging)

    def _with_maps(self, rendered: Rendered) -> Rendered:
        """As the checker needs it: maps that are not there yet, or not for this user, are empty ones beside it."""
        missing = [path for path in (self._files.live, self._files.weights) if not os.access(path, os.R_OK)]
        files = list(rendered.files)
        for path in missing:
            # HAProxy looks for relative files in the directory that it is told to check (-C).
            files = [replace(file, content=_renamed(file, path)) for file in files]
        return replace(rendered, files=(*files, *(RenderedFile(path.name, b"") for path in missing)))

    def _refuse_unusable_binds(self) -> None:
        """HAProxy's checker does not bind, so it sees neither of these. Raises: CheckFailed."""
        counts = Counter(self._binds.values())
        for endpoint in (endpoint for endpoint, count in counts.items() if count > 1):
            names = ", ".join(name for name, bind in self._binds.items() if bind == endpoint)
            raise CheckFailed(
                f"{names} all bind {endpoint}: the kernel would hand each of them some of the connections"
            )
        unix = [Path(bind.path) for bind in self._binds.values() if bind.is_unix]
        path = too_long([self._directory / "master.sock", self._directory / "worker.sock", *unix])
        if path is not None:
            raise CheckFailed(
                f"the socket path {path} has {len(str(path))} bytes, and HAProxy can bind {LONGEST_SOCKET_PATH} (the "
                "system's 107 less its temporary suffix): choose a shorter agent.state_dir or bind"
            )

    def installed(self) -> str | None:
        """The revision that is on disk now."""
        return self._rendered.installed()

    def read(self, revision: str) -> Rendered:
        """An installed or previously installed configuration. Raises: StateError."""
        return self._rendered.read(revision)

    def install(self, rendered: Rendered) -> None:
        """Put it on disk, all files at once. Raises: StateError."""
        self._rendered.install(rendered)

    def reinstall(self, revision: str) -> None:
        """Put back what was installed before. Raises: StateError."""
        self._rendered.reinstall(revision)

    def pools(self, rendered: Rendered) -> Mapping[str, int]:
        """Servers of each `backend`."""
        return pools.haproxy(rendered)

    def connections(self, service: str) -> int | None:
        """Open connections at the service's listener."""
        return clients.connections(self._binds[service])

    def watched(self) -> frozenset[Path]:
        """Templates, certificates and keys, and where maps and rendered files lie."""
        return frozenset([*self._rendering.template_directories, *tls_files.paths(self._config), self._directory])

    # -- what is served --------------------------------------------------------------------------------------

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Change the maps on disk and in every worker, the draining ones too. Raises: CommitFailed.

        The disk comes first, so that a worker that starts meanwhile reads the new maps. New maps are prepared
        everywhere, on disk and in the workers, before the first of them counts: that is where things fail.
        """
        try:
            self._commit(Maps.of(intent))
        except (OSError, Unanswered) as error:
            names = ", ".join(sorted(changed)) or "nothing"
            raise CommitFailed(
                f"{names} did not move, the maps serve what they served before: {_words(error)}"
            ) from error
        if intent.ejected != self._ejected:
            with contextlib.suppress(CommitFailed):  # the traffic did move; the agent ejects anew when checks change
                self.eject(intent.ejected)

    def _commit(self, after: Maps) -> None:
        before = self._files.read()
        with self._files.staged(after) as files:
            prepared = self._prepared(after, self._workers(), ())
            known = [*self._behind, *(update.worker for update in prepared)]
            try:
                files.apply()
                self._commit_in(prepared)
                self._commit_in(self._prepared(after, self._workers(), known))
            except (OSError, Unanswered) as error:
                self._return_to(before, files, error)
                raise

    def _workers(self) -> tuple[int, ...]:
        """Every worker that answers requests; none when HAProxy does not run. Raises: Unanswered."""
        if self._process.pid() is None:
            return ()
        processes = self._runtime.processes()
        self._draining = processes.draining
        return processes.workers

    def _prepared(self, maps: Maps, workers: Collection[int], known: Collection[int]) -> list[WorkerMaps]:
        """Hand the maps to workers; one that ended meanwhile is left out. Raises: Unanswered; then none has them."""
        updates: list[WorkerMaps] = []
        for pid in workers:
            if pid in known:
                continue
            update = WorkerMaps(self._runtime_for(pid), pid, self._files)
            updates.append(update)
            try:
                update.prepare(maps)
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
        return self._brief if worker in self._draining else self._runtime

    def _is_left_behind(self, worker: int, error: Unanswered) -> bool:
        """Whether all others may move without this worker. Raises: Unanswered.

        One that ended serves nobody. One that drains since a reload and hangs serves nobody either, and must not
        stand in the way of a rollback; it is asked again at the next commit, and `warnings` names it until then.
        """
        if isinstance(error, Silent) and worker in self._draining:
            self._behind.add(worker)
            return True
        return self._has_ended(worker)

    def _has_ended(self, worker: int) -> bool:
        """Whether it did not answer because it ended; the master may need a moment to notice. Raises: Unanswered."""
        deadline = time.monotonic() + _ENDING_S
        while worker in self._workers():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        return True

    def _return_to(self, before: Maps | None, files: StagedFiles, error: Exception) -> None:
        """Put the old maps back on disk and in every worker. Raises: CommitFailed when that fails too."""
        try:
            files.revert()
            if before is not None:
                self._commit_in(self._prepared(before, self._workers(), ()))
        except (OSError, Unanswered) as second:
            raise CommitFailed(
                f"the maps could not be changed ({error}) nor all put back ({second}): workers may disagree until the "
                "next commit; a restart of HAProxy serves what is on disk"
            ) from error

    def committed(self) -> Intent | None:
        """Routes and generations of the maps on disk, or None. Raises: StateError."""
        try:
            maps = self._files.read()
        except PermissionError as error:
            if self._directory_is_closed():
                return None
            raise StateError(f"the maps in {self._directory} can't be read: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"the maps in {self._directory} can't be read: {error}") from error
        return None if maps is None else maps.intent()

    def _directory_is_closed(self) -> bool:
        """Whether this user can't even look for anything there: somebody who checks, and never the agent."""
        return not os.access(self._directory, os.X_OK)

    def observe(self, service: str) -> Observation:
        """Ask the service's own listener; a `mode: tcp` one is asked for a connection alone. Raises: NotSeen."""
        endpoint, settings = self._binds[service], self._config.services[service]
        if settings.mode is Mode.HTTP:
            return listener.observe(service, endpoint, tls=settings.tls is not None)
        listener.accepts(service, endpoint)
        return listener.observe(service, self._state_socket, path=f"{listener.STATE_PATH}/{service}")

    def eject(self, ejected: frozenset[ServerKey]) -> bool:
        """Leave exactly these servers out in every worker, now and after the next reload. Raises: CommitFailed."""
        self._ejected = ejected
        try:
            for pid in self._workers():
                self._eject_from(pid)
        except Unanswered as error:
            raise CommitFailed(f"servers could not be taken out or put back: {error}") from error
        return True

    def _eject_from(self, worker: int) -> None:
        try:
            self._servers.eject(worker, self._ejected)
        except Unanswered as error:
            if not self._is_left_behind(worker, error):
                raise

    # -- the process -----------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether the master is alive."""
        return self._process.pid() is not None

    def why_not_started(self) -> str | None:
        """That `stop` was the last thing said, if it was."""
        return stopmark.sentence("HAProxy") if self._stopped.is_set() else None

    def start(self) -> None:
        """Start what is installed; nothing happens when it runs already. Raises: StartFailed, BalancerMissing."""
        self._stopped.clear()
        if self.is_running():
            return
        if self.installed() is None:
            raise StartFailed("nothing is installed that could be started: run the agent once")
        if not self._files.exist():
            raise StartFailed(
                f"{self._files.live} or {self._files.weights} is missing, and says which color is live: start the "
                "agent, which knows it from its journal"
            )
        try:
            self._refuse_unusable_binds()
        except CheckFailed as error:
            raise StartFailed(str(error)) from error
        self._process.start(self._binds)
        self._eject_again()

    def reload(self) -> None:
        """Have a new worker read what is installed; the old one finishes its connections. Raises: ReloadFailed."""
        self._process.reload(self._binds)
        self._eject_again()

    def _eject_again(self) -> None:
        """A new worker knows nothing of what its predecessor left out."""
        if self._ejected:
            with contextlib.suppress(CommitFailed):  # it serves; the agent ejects anew when checks change
                self.eject(self._ejected)

    def stop(self) -> None:
        """Let requests in flight finish, for ten seconds at most, then end it. Raises: StartFailed."""
        unmarked: OSError | None = None
        try:
            if self.is_running() or self.installed() is not None:
                self._stopped.set()
        except OSError as error:
            unmarked = error
        self._process.stop()
        if unmarked is not None:
            raise StartFailed(
                f"HAProxy is stopped, but a running agent can't see that this was meant and will start it: {unmarked}"
            ) from unmarked

    def warnings(self) -> list[str]:
        """What works but should be mended."""
        return [*self._few_files(), *self._readable_keys(), *self._many_workers(), *self._hung_workers()]

    def _hung_workers(self) -> Iterator[str]:
        if not self._behind:
            return
        with contextlib.suppress(Unanswered):
            for pid in self._behind.intersection(self._workers()):
                yield (
                    f"HAProxy worker {pid}, which drains since a reload, hangs and missed the last switch: should "
                    "it wake up, its open connections would go where they went before; look at it, or end it "
                    f"with kill {pid}"
                )

    def _few_files(self) -> Iterator[str]:
        needed = 2 * self._config.balancer.connections + len(self._binds) + _FILES_BESIDE_CONNECTIONS
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if os.geteuid() != 0 and resource.RLIM_INFINITY != limit < needed:
            yield (
                f"balancer.connections {self._config.balancer.connections} needs about {needed} open files, and the "
                f"limit is {limit}: HAProxy serves fewer connections; raise LimitNOFILE or lower the number"
            )

    def _readable_keys(self) -> Iterator[str]:
        for name, service in self._config.services.items():
            with contextlib.suppress(OSError):
                if service.tls is not None and Path(service.tls.key).stat().st_mode & 0o004:
                    yield f"{name}: everybody on this machine can read tls.key {service.tls.key}: chmod o-r"

    def _many_workers(self) -> Iterator[str]:
        with contextlib.suppress(Unanswered):
            draining = self._runtime.processes().draining if self.is_running() else ()
            if len(draining) > _MANY_DRAINING:
                yield (
                    f"{len(draining)} old HAProxy workers still finish long connections after reloads and take memory "
                    "until they are done, half an hour at most"
                )


def _renamed(file: RenderedFile, path: Path) -> bytes:
    """The file's content with a path in it made relative; certificates have no paths."""
    return file.content if file.secret else file.content.replace(os.fsencode(path), os.fsencode(path.name))


def _words(error: Exception) -> str:
    """What an operating system or a worker said, with the file it is about."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
