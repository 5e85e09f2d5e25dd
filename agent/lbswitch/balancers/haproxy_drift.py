"""What of a HAProxy is not as lbswitch made it: maps on disk and in every worker, servers, listeners, rendered files.

Somebody at the Runtime API can change what a worker serves without any trace on disk, so every worker is asked, those
that drain too. Commands and columns: sections 9.3 and 9.4 of HAProxy's management guide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbswitch.balancers.diffs import of_texts
from lbswitch.balancers.haproxy_live import LiveMaps
from lbswitch.balancers.haproxy_maps import MapFiles, Maps
from lbswitch.balancers.haproxy_runtime import Runtime, Unanswered
from lbswitch.balancers.haproxy_servers import Servers
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.running import RunningRevision
from lbswitch.core.model import Intent, Observation, ServerKey
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import CommitFailed
from lbswitch.ports import Difference, Rendered

_MAINTENANCE, _DRAIN = 0x01, 0x08  # SRV_ADMF_FMAINT and SRV_ADMF_FDRAIN in srv_admin_state
_COMMANDS_A_LINE = 100  # a line of commands has to fit into tune.bufsize
_FRONTENDS = 1  # the type of rows that `show stat` is asked for
_UNKNOWN_MAP = "Unknown map identifier"
_ALL_IS_WELL = "OPEN"
_BRIEF_S = 0.5


@dataclass(frozen=True, slots=True)
class _Mend:
    """A difference, and the command that puts it right in the worker."""

    worker: int
    command: str
    difference: Difference


class HAProxyDrift:
    """Compares and repairs for one adapter; may be called from several threads."""

    def __init__(
        self,
        files: MapFiles,
        rendered: RenderedDirectory,
        runtime: Runtime,
        live: LiveMaps,
        servers: Servers,
        observe: Callable[[str], Observation],
        render: Callable[[Intent], Rendered],
        frontends: Collection[str] = (),
    ) -> None:
        """`observe` asks the listener of a service (raises NotSeen); `frontends` are those that lbswitch wrote.

        `render` is the adapter's; it is asked when what was installed is not remembered.
        """
        self._files = files
        self._rendered = rendered
        self._render = render
        self._runtime = runtime
        self._brief = runtime.with_timeout(_BRIEF_S)
        self._live = live
        self._servers = servers
        self._frontends = frozenset(frontends)
        self._running = RunningRevision("HAProxy", rendered, observe, self._current)
        self._addresses = {key: _address(key) for key in servers.keys.values()}
        self._clean: tuple[Intent, object] | None = None

    def _damage(self, intent: Intent) -> list[Difference]:
        """What is wrong with the rendered files on disk."""
        return self._rendered.differences(partial(self._render, intent))

    def differences(self, intent: Intent) -> list[Difference]:
        """Everything, the disk first. Never raises."""
        workers = self._running.workers()
        files = self._damage(intent)
        return [
            *self._disk_differences(intent),
            *files,
            *self._map_differences(intent),
            *(mend.difference for mend in self._mends(intent)),
            *self._running.differences(intent, workers, files),
        ]

    def repair(self, intent: Intent, rendered: Rendered | None, reload: Callable[[], None]) -> None:
        """Traffic first: maps, servers, listeners; then the files; a reload if other files run.

        `reload` may raise ReloadFailed. Raises: CommitFailed, StateError.
        """
        if self._disk_differences(intent) or self._map_differences(intent):
            self._live.commit(intent, intent.services)
        self._mend(self._mends(intent))
        workers = self._running.workers()
        damaged = self._damage(intent)
        runs_others = self._running.differences(intent, workers, damaged)
        self._rendered.restore(rendered)
        if runs_others:
            reload()
            self._running.reloaded()

    def routes(self) -> dict[int, Intent]:
        """What the maps of each worker serve, by pid. Never raises."""
        found = {}
        for worker in self._workers():
            texts = [self._shown(worker, path) for path in (self._files.live, self._files.weights)]
            if texts[0] is not None:
                found[worker] = Maps("\n".join(texts[0]), "\n".join(texts[1] or ())).intent()
        return found

    # -- maps --------------------------------------------------------------------------------------------------

    def _disk_differences(self, intent: Intent) -> list[Difference]:
        seal = [_stamp(path) for path in (self._files.live, self._files.weights)]
        if self._clean is not None and self._clean[0] is intent and self._clean[1] == seal:
            return []
        maps = Maps.of(intent)
        found = [
            *self._file_differences(intent, self._files.live, maps.live),
            *self._file_differences(intent, self._files.weights, maps.weights),
        ]
        self._clean = None if found else (intent, seal)
        return found

    def _file_differences(self, intent: Intent, path: Path, wanted: str) -> Iterator[Difference]:
        try:
            found = path.read_text(errors="replace")
        except FileNotFoundError:
            what = f"{path} is gone: what runs still knows it, a reload or restart would fail"
            yield Difference("disk", str(path), what, diff=of_texts(str(path), wanted, ""))
        except OSError as error:
            yield Difference("disk", str(path), f"{path} can't be read: {error.strerror}")
        else:
            if found != wanted:
                yield from _line_differences("disk", str(path), str(path), intent, wanted, found)

    def _map_differences(self, intent: Intent) -> list[Difference]:
        maps, found = Maps.of(intent), list[Difference]()
        for worker in self._workers():
            drains = ", which drains since a reload," if worker in self._live.draining else ""
            for path, wanted in ((self._files.live, maps.live), (self._files.weights, maps.weights)):
                shown = self._shown(worker, path)
                if shown is not None and sorted(shown) != sorted(wanted.splitlines()):
                    where = f"worker {worker}{drains} has changed {path.name} in memory and"
                    text = "".join(f"{line}\n" for line in shown)
                    thing = f"{path.name} in workers"
                    found += _line_differences("running", thing, where, intent, wanted, text)
        return found

    def _shown(self, worker: int, path: Path) -> list[str] | None:
        """The lines of a map, `key value`; None of a worker that does not answer or does not look into this map."""
        try:
            answer = self._ask(worker, f"show map {self._files.seen(path)}")
        except Unanswered:
            return None
        if answer.startswith(_UNKNOWN_MAP):
            return None
        return [line.partition(" ")[2] for line in answer.splitlines() if line.startswith("0x")]

    # -- servers and listeners ---------------------------------------------------------------------------------

    def _mends(self, intent: Intent) -> list[_Mend]:
        left_out = self._servers.left_out(intent.ejected)
        found: list[_Mend] = []
        for worker in self._workers():
            try:
                found += self._server_mends(worker, self._ask(worker, "show servers state"), left_out)
                if self._frontends and worker not in self._live.draining:
                    found += self._frontend_mends(worker, self._ask(worker, f"show stat -1 {_FRONTENDS} -1"))
            except Unanswered:
                continue
        return found

    def _server_mends(self, worker: int, text: str, left_out: Collection[ServerKey]) -> Iterator[_Mend]:
        for row in _server_rows(text):
            key = self._servers.keys.get((row["be_name"], row["srv_name"]))
            if key is None:
                continue
            name = f"set server {row['be_name']}/{row['srv_name']}"
            moved = _moved(self._addresses[key], row)
            if moved is not None:
                if worker not in self._live.draining:  # those may know other addresses from an older configuration
                    endpoint = parse_endpoint(key.address)
                    command = f"{name} addr {endpoint.host} port {endpoint.port}"
                    yield _mend(
                        worker, command, key, f"is sent to {moved}", f"address {key.address}", f"address {moved}"
                    )
                continue
            state, wanted = _state(row), "maint" if key in left_out else "ready"
            if state != wanted:
                yield _mend(worker, f"{name} state {wanted}", key, f"is in state {state}", wanted, state)
            weight, initial = row["srv_uweight"], row["srv_iweight"]
            if weight != initial:
                says = f"has weight {weight}"
                yield _mend(worker, f"{name} weight {initial}", key, says, f"weight {initial}", f"weight {weight}")

    def _frontend_mends(self, worker: int, text: str) -> Iterator[_Mend]:
        header, *lines = text.lstrip("# ").splitlines() or [""]
        columns = header.split(",")
        if "status" not in columns:
            return
        status = columns.index("status")
        for line in lines:
            name, _, _ = line.partition(",")
            if name not in self._frontends or (found := line.split(",", status + 1)[status]) == _ALL_IS_WELL:
                continue
            yield _Mend(
                worker,
                f"enable frontend {name}",
                Difference(
                    "running",
                    f"frontend {name}",
                    f"{name}: HAProxy accepts no connections for it, somebody disabled the frontend ({found})",
                    name,
                    of_texts(f"frontend {name}", f"{_ALL_IS_WELL}\n", f"{found}\n"),
                ),
            )

    def _mend(self, mends: Iterable[_Mend]) -> None:
        """Raises: CommitFailed."""
        commands: dict[int, list[str]] = {}
        for mend in mends:
            commands.setdefault(mend.worker, []).append(mend.command)
        for worker, said in commands.items():
            try:
                for start in range(0, len(said), _COMMANDS_A_LINE):
                    _tell(self._runtime_for(worker), worker, said[start : start + _COMMANDS_A_LINE])
            except Unanswered as error:
                if worker in self._workers():
                    raise CommitFailed(f"servers or frontends could not be put right: {error}") from error

    # -- workers -----------------------------------------------------------------------------------------------

    def _workers(self) -> tuple[int, ...]:
        try:
            return self._live.workers()
        except Unanswered:
            return ()

    def _current(self) -> tuple[int, ...]:
        return tuple(worker for worker in self._workers() if worker not in self._live.draining)

    def _ask(self, worker: int, command: str) -> str:
        """The whole answer; one of a worker that ended in the middle of it is none. Raises: Unanswered."""
        answer = self._runtime_for(worker).ask(worker, command)
        if answer != "\n" and not answer.endswith("\n\n"):
            raise Unanswered(f"worker {worker} did not finish its answer to {command!r}")
        return answer

    def _runtime_for(self, worker: int) -> Runtime:
        """A draining worker may keep nobody waiting for long."""
        return self._brief if worker in self._live.draining else self._runtime


def _tell(runtime: Runtime, worker: int, commands: Sequence[str]) -> None:
    """Commands of which some answer with words when all is well (`set server ... addr`). Raises: Unanswered."""
    for command in commands:
        answer = runtime.ask(worker, command).strip()
        if answer and " addr " not in command:
            raise Unanswered(f"worker {worker} says: {answer.splitlines()[0][:200]}")


def _mend(worker: int, command: str, key: ServerKey, says: str, intended: str, found: str) -> _Mend:
    thing = f"{key.color} {key.address}"
    what = f"{key.service}: {thing} {says} in worker {worker}, intended is {intended}"
    diff = of_texts(f"{key.service} {thing}", f"{intended}\n", f"{found}\n")
    return _Mend(worker, command, Difference("running", f"server {thing}", what, key.service, diff))


def _state(row: Mapping[str, str]) -> str:
    flags = int(row["srv_admin_state"])
    return "maint" if flags & _MAINTENANCE else "drain" if flags & _DRAIN else "ready"


def _address(key: ServerKey) -> tuple[str, str] | None:
    """Host and port as `show servers state` has them; None for host names and sockets, which may show others."""
    endpoint = parse_endpoint(key.address)
    is_number = endpoint.is_ipv6 or endpoint.host.replace(".", "").isdigit()
    return None if endpoint.is_unix or not is_number else (endpoint.host, str(endpoint.port))


def _moved(intended: tuple[str, str] | None, row: Mapping[str, str]) -> str | None:
    """Where the worker sends the server's requests, if that is elsewhere."""
    found = (row["srv_addr"], row["srv_port"])
    return None if intended is None or found == intended or found[0] == "-" else ":".join(found)


def _server_rows(text: str) -> Iterator[Mapping[str, str]]:
    """`show servers state`: a version, a line of column names after `#`, and a line for each server."""
    columns: list[str] = []
    for line in text.splitlines():
        if line.startswith("# "):
            columns = line.split()[1:]
        elif columns and line:
            yield dict(zip(columns, line.split(), strict=False))


def _line_differences(
    where: str, thing: str, holder: str, intent: Intent, wanted: str, found: str
) -> Iterator[Difference]:
    """One difference for each service whose lines differ; `found` and `wanted` are lines of key, space, value."""
    intended, there = _by_service(wanted), _by_service(found)
    for name in sorted(intended.keys() | there.keys()):
        before, after = intended.get(name, ""), there.get(name, "")
        if before == after:
            continue
        service = name if name in intent.services else None
        says, not_said = _quoted(after, before), _quoted(before, after)
        words = f"{name}: {holder} says {says}, intended is {not_said}"
        what = words if service else f"{holder} says {says}, which is not from lbswitch"
        yield Difference("disk" if where == "disk" else "running", thing, what, service, of_texts(thing, before, after))


def _by_service(text: str) -> dict[str, str]:
    """The lines of each service, sorted."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name = (line.split() or [""])[0].partition(".")[0]
        found.setdefault(name, []).append(line)
    return {name: "".join(f"{line}\n" for line in sorted(lines)) for name, lines in found.items()}


def _quoted(lines: str, but: str) -> str:
    """The lines that the other one lacks."""
    others = but.splitlines()
    return ", ".join(f"`{line}`" for line in lines.splitlines() if line not in others) or "nothing"


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return object()  # equals nothing
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
