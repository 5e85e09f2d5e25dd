"""The two maps that HAProxy looks up for every request, as text, on disk and in a worker.

    live.map      shop blue            the live color
                  shop.generation 42   (a service's name holds no dot)
    weights.map   shop 10              percent of the traffic that goes to green

A service is in weights.map only while its traffic is split, and is then routed by it alone. So live.map is always
changed first: what it says of a split service has no effect until the weight goes, and every service moves in one step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lbswitch.balancers.haproxy_runtime import Runtime, Unanswered
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.files import sync_directory, write_file

_CHUNK = 12_000  # a command and its payload have to fit into tune.bufsize, 16 kB by default
_UNKNOWN_MAP = "Unknown map identifier"
_GENERATION = ".generation"


def share_of_green(route: Route) -> int:
    """Percent of the traffic that goes to green, 0..100."""
    return route.share(Color.GREEN)


@dataclass(frozen=True, slots=True)
class Maps:
    """What both maps hold: lines of key, space, value."""

    live: str
    weights: str

    @classmethod
    def of(cls, intent: Intent) -> Maps:
        """The maps that serve this intent."""
        live, weights = [], []
        for name, service in sorted(intent.services.items()):
            live.append(f"{name} {service.route.live}\n{name}{_GENERATION} {service.generation}\n")
            if service.route.is_split:
                weights.append(f"{name} {share_of_green(service.route)}\n")
        return cls("".join(live), "".join(weights))

    def values_since(self, before: Maps) -> Mapping[str, str]:
        """The values that differ, if that is one service's color and nothing else; else empty."""
        if self.weights != before.weights:
            return {}
        old, new = before.live.splitlines(), self.live.splitlines()
        known, wanted = _pairs(set(old).difference(new)), _pairs(set(new).difference(old))
        services = {key.removesuffix(_GENERATION) for key in wanted}
        is_one = len(old) == len(new) and known.keys() == wanted.keys() and len(services) == 1
        return wanted if is_one else {}

    def intent(self) -> Intent:
        """What these maps serve. Services with a line that nobody understands are left out."""
        live, weights = _pairs(self.live.splitlines()), _pairs(self.weights.splitlines())
        services = {}
        for name, color in live.items():
            with contextlib.suppress(KeyError, ValueError):
                generation = int(live[name + _GENERATION])
                route = Route(Color(color))
                if name in weights:
                    route = route.with_share(Color.GREEN, int(weights[name]))
                services[name] = ServiceIntent(route, generation, route.is_split)
        return Intent(services, max((service.generation for service in services.values()), default=0))


def _pairs(text: Iterable[str]) -> Mapping[str, str]:
    lines = (line.split() for line in text if not line.startswith("#"))
    return {words[0]: words[1] for words in lines if len(words) == 2}


class MapFiles:
    """Both maps on disk."""

    def __init__(self, directory: Path, seen: Callable[[Path], Path] = lambda path: path) -> None:
        """Remember where; nothing is made before the first commit. `seen` gives a path as HAProxy sees it."""
        self.directory = directory
        self.seen = seen
        self.live = directory / "live.map"
        self.weights = directory / "weights.map"
        self._ahead: Ahead | None = None

    def exist(self) -> bool:
        """Whether HAProxy could start with them."""
        return self.live.exists() and self.weights.exists()

    def read(self) -> Maps | None:
        """What is on disk, or None before the first commit. Raises: OSError."""
        try:
            return Maps(self.live.read_text(errors="replace"), self.weights.read_text(errors="replace"))
        except FileNotFoundError:
            return None

    def staged(self, maps: Maps) -> StagedFiles:
        """New content for both files, to be written beside those in use. Raises: OSError."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead.maps == maps and ahead.stamps is not None and ahead.files.stamps() == ahead.stamps:
                return ahead.files
            ahead.files.clean()
        return StagedFiles([(self.live, maps.live), (self.weights, maps.weights)])

    def write_ahead(self, maps: Maps) -> None:
        """Write and fsync now what staging these maps will have to write. Raises: OSError."""
        files = self.staged(maps)
        files.write()
        self._ahead = Ahead(maps, files, files.stamps())

    def are_ahead(self, maps: Maps) -> bool:
        """Whether these were written ahead, as far as is known without looking."""
        return self._ahead is not None and self._ahead.maps == maps


class Ahead(NamedTuple):
    """What was written before anybody asked for it, and what `stat` said of the files then."""

    maps: Maps
    files: StagedFiles
    stamps: Sequence[tuple[int, ...]] | None


class StagedFiles:
    """New content for files, on disk but not in use; going back takes no room on a full disk."""

    def __init__(self, contents: list[tuple[Path, str]]) -> None:
        """Files in the order in which they are to change."""
        self._is_written = False
        self._paths = [path for path, _ in contents]
        self._contents = [(path, content.encode()) for path, content in contents if not _holds(path, content)]

    def write(self) -> None:
        """Write and fsync the new content, and keep a second name for the old. Raises: OSError."""
        if self._is_written:
            return
        for path, content in self._contents:
            write_file(_new(path), content)
            _old(path).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                _old(path).hardlink_to(path)
        self._is_written = True

    def stamps(self) -> Sequence[tuple[int, ...]] | None:
        """What changes when anybody touches the files, the old or the new ones; None when one is missing."""
        try:
            return [_stamp(name) for path, _ in self._contents for name in (path, _new(path))]
        except OSError:
            return None

    def apply(self) -> None:
        """Rename the new files into place; a process that starts reads them. Raises: OSError; then `revert`."""
        for path, _ in self._contents:
            _new(path).rename(path)

    def revert(self) -> None:
        """Rename the old files back. Raises: OSError."""
        for path, _ in reversed(self._contents):
            if _old(path).exists():
                _old(path).rename(path)
            else:
                path.unlink(missing_ok=True)
        self.sync()

    def clean(self) -> None:
        """Remove the second names, also those that an agent has left which was killed."""
        for name in (name(path) for path in self._paths for name in (_new, _old)):
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the renames durable. Raises: OSError; then `revert`."""
        for directory in {path.parent for path, _ in self._contents}:
            sync_directory(directory)


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_bytes() == content.encode()
    except FileNotFoundError:
        return False


class WorkerMaps:
    """New content for both maps of one worker: first prepared, which no request notices, then committed.

    A worker that holds `before` and is to move one service only is told the two values that change, when they are to
    count: that spares it the preparation.
    """

    def __init__(self, runtime: Runtime, worker: int, files: MapFiles, *, is_current: bool = False) -> None:
        """Nothing is said to the worker yet. `is_current`: it is the one that takes new connections."""
        self._ask = runtime.ask_current if is_current else runtime.ask_all
        self.worker = worker
        self._runtime = runtime
        self._files = files
        self._versions: list[str] = []
        self._values: Mapping[str, str] = {}

    def prepare(self, maps: Maps, before: Maps | None = None) -> None:
        """Hand over the content. Raises: Unanswered; then `discard`."""
        self._maps = maps
        self._values = {} if before is None else maps.values_since(before)
        if not self._values:
            self._hand_over(maps)

    def _hand_over(self, maps: Maps) -> None:
        for file, content in ((self._files.live, maps.live), (self._files.weights, maps.weights)):
            path = self._files.seen(file)
            answer = self._runtime.ask(self.worker, f"prepare map {path}").strip()
            if answer.startswith(_UNKNOWN_MAP):
                continue  # the configuration of this worker does not look into that map
            label, _, version = answer.partition("New version created: ")
            if label or not version.isdigit():
                raise Unanswered(f"worker {self.worker} says: {answer[:200]}")
            self._versions.append(f"map @{version} {path}")
            for chunk in chunks(content):
                self._runtime.feed(self.worker, f"add map @{version} {path}", chunk)

    def commit(self) -> None:
        """Make it what requests see: each map in one instant, live.map first. Raises: Unanswered."""
        if self._values and not self._has_told():
            self._hand_over(self._maps)
        if self._versions:
            self._runtime.tell(self.worker, [f"commit {version}" for version in self._versions])

    def _has_told(self) -> bool:
        """Whether it took both values: a key that somebody has removed, or a map that it does not use, has none.

        Raises: Unanswered.
        """
        path = self._files.seen(self._files.live)
        commands = [f"set map {path} {key} {value}" for key, value in self._values.items()]
        return not self._ask(self.worker, commands).strip()

    def discard(self) -> None:
        """Forget what was prepared; a worker that can't be reached forgets it when it ends."""
        for version in self._versions:
            with contextlib.suppress(Unanswered):
                self._runtime.tell(self.worker, [f"clear {version}"])


def chunks(text: str) -> Iterator[str]:
    """Whole lines, as many as fit into one command."""
    chunk = ""
    for line in text.splitlines(keepends=True):
        if len(chunk) + len(line) > _CHUNK:
            yield chunk
            chunk = ""
        chunk += line
    if chunk:
        yield chunk
