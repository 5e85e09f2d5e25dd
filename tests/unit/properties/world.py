"""A balancer and a store that fail, lie and die where they are told to; and who gets traffic from that balancer."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lbswitch.core.model import Color, Intent, Observation, Operation, Route, ServiceIntent
from lbswitch.errors import CheckFailed, CommitFailed, NotSeen, ReloadFailed, StateError
from lbswitch.ports import Rendered, RenderedFile, Snapshot
from lbswitch.store.sqlite import SqliteStore
from tests.unit.fakes import FakeBalancer


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class Faults:
    """What goes wrong at which call. A place has a queue: every call there takes one, `""` is a call that works."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[str]] = defaultdict(deque)

    def arm(self, place: str, *modes: str) -> None:
        self._queues[place].extend(modes)

    def clear(self) -> None:
        self._queues.clear()

    def next(self, place: str) -> str:
        queue = self._queues[place]
        mode = queue.popleft() if queue else ""
        if mode == "killed before":
            raise Killed(place)
        return mode

    def after(self, place: str, mode: str, error: type[Exception]) -> None:
        """The deed is done, and then."""
        if mode == "killed after":
            raise Killed(place)
        if mode == "fails after":
            raise error(f"{place} failed, although it was done")

    def before(self, place: str, error: type[Exception]) -> str:
        mode = self.next(place)
        if mode == "fails":
            raise error(f"{place} failed")
        return mode


class World(FakeBalancer):
    """As nginx does it: routes are read from the disk at every request, files at a start and at a reload.

    A weighted service is looked up by bucket if the files that run were rendered so, and else by color.
    """

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults
        self.runs: str | None = None
        self.meaning: dict[tuple[str, int], Route] = {}

    # -- what clients get --------------------------------------------------------------------------------------

    def route(self, service: str) -> Route | None:
        """Where a client's request would go; None when nobody answers."""
        if not self.running or self.serves is None or self.runs is None:
            return None
        served = self.serves.services.get(service)
        if served is None or service not in self._words(1):
            return None
        if service not in self._words(2):
            return Route(served.route.live)
        return served.route if served.weighted else Route(Color.BLUE)

    def _words(self, which: int) -> list[str]:
        """The services, or the weighted ones among them, of the files that run."""
        assert self.runs is not None
        lists = self._files[self.runs].files[0].content.decode().split("|")
        return lists[which].split()

    def observe(self, service: str) -> Observation:
        mode = self.faults.next("observe")
        route = self.route(service)
        if route is None or mode == "fails":
            raise NotSeen(f"{service}: does not answer")
        assert self.serves is not None
        served = self.serves.services[service]
        return Observation(route.live, served.generation, self.runs or "", served.route.share(Color.GREEN))

    # -- what is done to it ------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:
        weighted = sorted(name for name, service in intent.services.items() if service.weighted)
        text = f"{self.template}|{' '.join(sorted(intent.services))}|{' '.join(weighted)}|"
        return Rendered.of([RenderedFile("conf", text.encode())])

    def check(self, rendered: Rendered) -> None:
        super().check(rendered)
        self.faults.before("check", CheckFailed)

    def install(self, rendered: Rendered) -> None:
        mode = self.faults.before("install", StateError)
        super().install(rendered)
        self.faults.after("install", mode, StateError)

    def reinstall(self, revision: str) -> None:
        mode = self.faults.before("install", StateError)
        super().reinstall(revision)
        self.faults.after("install", mode, StateError)

    def reload(self, **how: Any) -> None:
        mode = self.faults.before("reload", ReloadFailed)
        super().reload(**how)
        if mode != "lies":
            self.runs = self.revision
        self.faults.after("reload", mode, ReloadFailed)

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        mode = self.faults.before("commit", CommitFailed)
        for name, service in intent.services.items():
            route = self.meaning.setdefault((name, service.generation), service.route)
            assert route == service.route, f"generation {service.generation} of {name} means two things"
        self.commits.append(intent)
        self.on_disk = intent
        if mode != "lies":
            self.serves = intent
        self.faults.after("commit", mode, CommitFailed)

    def start(self) -> None:
        self.running, self.serves, self.runs = True, self.on_disk, self.revision

    def changes(self) -> tuple[object, ...]:
        """Differs after anything was done to it."""
        return len(self.commits), self.revision, self.runs, self.reloads


class Disk(SqliteStore):
    """The real store on a disk that may be full."""

    def __init__(self, path: Path, faults: Faults) -> None:
        super().__init__(path)
        self.faults = faults

    def begin(
        self,
        operations: Sequence[Operation],
        before: Mapping[str, ServiceIntent],
        after: Mapping[str, ServiceIntent],
        snapshot: Snapshot | None = None,
    ) -> list[Operation]:
        mode = self.faults.before("begin", StateError)
        begun = super().begin(operations, before, after, snapshot)
        self.faults.after("begin", mode, StateError)
        return begun

    def finish(self, operations: Sequence[Operation], services: Mapping[str, ServiceIntent]) -> None:
        mode = self.faults.before("finish", StateError)
        super().finish(operations, services)
        self.faults.after("finish", mode, StateError)

    def record(self, operation: Operation) -> Operation:
        self.faults.before("record", StateError)
        return super().record(operation)
