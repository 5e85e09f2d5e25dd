"""Notices that files are edited: inotify says at once that something happened, a look at the files says whether.

A file is followed through every symlink on its way, so that one that is replaced by a rename, removed and put back, or
switched by a symlink (as Kubernetes does with config maps) is noticed; of what is missing, the nearest directory
that is there is watched. Where inotify is of no use, `changed` still finds every edit when somebody calls it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_TEMPLATE = ".j2"
_MOST_LINKS = 40  # as the kernel follows, path_resolution(7)
_MOST_EVENTS = 200  # within a second; a directory that has more is left alone for a while
_LEFT_ALONE_S = 60.0
_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "afs",
    "fuse",
    "virtiofs",
    "ocfs2",
    "gfs2",
)
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}


class Observer(Protocol):
    """What is used of watchdog's observers."""

    def schedule(self, event_handler: Any, path: str, *, recursive: bool, event_filter: Any) -> Any:
        """Begin to watch a directory. Raises: OSError."""

    def unschedule(self, watch: Any) -> None:
        """End that."""

    def start(self) -> None:
        """Begin to tell."""

    def stop(self) -> None:
        """End all."""

    def join(self) -> None:
        """Wait for the end."""


@dataclass(slots=True)
class _Place:
    """What matters in a directory: these names, all templates, or whatever happens to lbswitch's own files."""

    names: set[str] = field(default_factory=set)
    has_templates: bool = False
    is_own: bool = False

    def matters(self, name: str) -> bool:
        return name in self.names or (self.has_templates and name.endswith(_TEMPLATE))


@dataclass(slots=True)
class _Watch:
    """A directory that is watched, and how busy it is."""

    handle: Any
    identity: tuple[int, int]
    second: int = 0
    events: int = 0


class Watching:
    """Follows files and directories. `follow`, `changed` and `stop` may block; call them from one thread at a time."""

    def __init__(
        self,
        on_edit: Callable[[], None],
        on_own_files: Callable[[], None],
        observer: Callable[[], Observer] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both are called from a thread of this object's own: ask `changed`, or look at what lbswitch wrote."""
        self._on_edit = on_edit
        self._on_own_files = on_own_files
        self._clock = clock
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._watches: dict[str, _Watch] = {}
        self._busy: dict[str, float] = {}
        self._stamps: dict[Path, object] = {}
        self._followed: frozenset[Path] = frozenset()
        self._failure: str | None = None
        self._remote: list[tuple[str, str]] = []
        self._observer = self._started(observer or _inotify)

    def _started(self, make: Callable[[], Observer]) -> Observer | None:
        try:
            observer = make()
            observer.start()
        except (OSError, ImportError) as error:
            self._failure = _explained(error)
            return None
        return observer

    def follow(self, edits: Collection[Path], own: Collection[Path] = ()) -> None:
        """Watch these and no others: files and template directories of people, and directories that lbswitch writes."""
        followed = frozenset(edits)
        if followed != self._followed:
            self._followed = followed
            self._remote = sorted(_remote(followed))
            self._stamps = {path: stamp for path, stamp in self._stamps.items() if path in followed}
        if self._observer is not None:
            self._watch(_places(followed, own))

    def changed(self) -> set[Path]:
        """What was edited since the last call; all that is new to `follow`, and is there, counts as edited."""
        found = {path: _stamp(path) for path in self._followed}
        changed = {path for path, stamp in found.items() if self._stamps.get(path) != stamp}
        self._stamps |= found
        return changed

    def notes(self, look_every_s: float) -> list[str]:
        """Why some edits are noticed only when somebody calls `changed`, every `look_every_s`."""
        how = f"edits there are noticed by looking every {look_every_s:g} s"
        notes = [f"{path} lies on {kind}, which does not tell of changes: {how}" for path, kind in self._remote]
        notes += [
            f"{directory} had more than {_MOST_EVENTS} changes in a second: {how}" for directory in sorted(self._busy)
        ]
        if self._failure is not None:
            notes.append(f"edits are noticed by looking every {look_every_s:g} s, because {self._failure}")
        return notes

    def stop(self) -> None:
        """End it; nobody is called after that."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def dispatch(self, event: Any) -> None:
        """What watchdog calls for every event, in its thread."""
        for path in (event.src_path, event.dest_path):
            if path:
                self._happened(os.fsdecode(path))

    def _happened(self, path: str) -> None:
        directory, name = os.path.split(path)
        with self._lock:
            gone = self._watches.get(path)
            if gone is not None:
                gone.identity = (0, 0)  # the watch ended with the directory, whatever is there now
            is_busy = self._is_busy(directory)
            place = self._places.get(directory, _Place())
        if gone is not None or is_busy or place.matters(name):
            self._on_edit()
        if place.is_own:
            self._on_own_files()

    def _is_busy(self, directory: str) -> bool:
        """Whether the watch is to be given up, said once."""
        watch = self._watches.get(directory)
        if watch is None or directory in self._busy:
            return False
        second = int(self._clock())
        watch.events = watch.events + 1 if watch.second == second else 1
        watch.second = second
        if watch.events <= _MOST_EVENTS:
            return False
        self._busy[directory] = self._clock() + _LEFT_ALONE_S
        return True

    def _watch(self, places: Mapping[str, _Place]) -> None:
        now = self._clock()
        with self._lock:
            self._places = dict(places)
            self._busy = {name: until for name, until in self._busy.items() if name in places and until > now}
            wanted = {name: found for name in places if name not in self._busy and (found := _identity(name))}
            useless = [name for name, watch in self._watches.items() if wanted.get(name) != watch.identity]
            ended = [self._watches.pop(name) for name in useless]
        for watch in ended:
            self._unschedule(watch)
        self._failure = None
        for name, identity in wanted.items():
            if name not in self._watches:
                self._schedule(name, identity)

    def _schedule(self, directory: str, identity: tuple[int, int]) -> None:
        try:
            handle = self._observer.schedule(self, directory, recursive=False, event_filter=_kinds())  # type: ignore[union-attr]
        except OSError as error:
            self._failure = _explained(error)
            return
        with self._lock:
            self._watches[directory] = _Watch(handle, identity)

    def _unschedule(self, watch: _Watch) -> None:
        try:
            self._observer.unschedule(watch.handle)  # type: ignore[union-attr]
        except (OSError, KeyError):  # it ended by itself
            return


def _inotify() -> Observer:
    from watchdog.observers.inotify import InotifyObserver  # needs Linux, and a libc that knows inotify

    observer: Observer = InotifyObserver()
    return observer


def _kinds() -> list[Any]:
    """Not that something was opened, read or is being written: that it is complete, came or went."""
    from watchdog import events

    return [
        *(events.FileClosedEvent, events.FileCreatedEvent, events.FileDeletedEvent, events.FileMovedEvent),
        *(events.DirCreatedEvent, events.DirDeletedEvent, events.DirMovedEvent),
    ]


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return f"inotify is exhausted ({error.strerror}): raise {_LIMITS[error.errno]}"
    return f"inotify can't be used: {error}"


def _places(edits: Collection[Path], own: Collection[Path]) -> dict[str, _Place]:
    """The directories to watch, and what matters there."""
    places: dict[str, _Place] = {}
    for path in (*edits, *own):
        *way, (directory, name) = _way(path)
        for step in (*way, (directory, name)):
            places.setdefault(step[0], _Place()).names.add(step[1])
        inside = os.path.join(directory, name)  # noqa: PTH118 - strings, as watchdog has them
        if os.path.isdir(inside):  # noqa: PTH112
            place = places.setdefault(inside, _Place())
            place.is_own = place.is_own or path in own
            place.has_templates = place.has_templates or path in edits
    return places


def _way(path: Path) -> Iterator[tuple[str, str]]:
    """Directory and name of each symlink on the way to a file, then of the file; or of the first that is missing."""
    left = [*reversed(path.parts[1:])]
    directory, links = "/", 0
    while left:
        name = left.pop()
        if name in (".", ".."):
            directory = directory if name == "." else os.path.dirname(directory)  # noqa: PTH120
            continue
        here = os.path.join(directory, name)  # noqa: PTH118
        target = _target(here)
        if target is not None and links < _MOST_LINKS:
            yield directory, name
            links += 1
            directory = "/" if target.startswith("/") else directory
            left += [part for part in reversed(target.split("/")) if part]
        elif left and os.path.isdir(here):  # noqa: PTH112
            directory = here
        else:
            yield directory, name
            return
    yield os.path.split(directory)


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return None


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)  # noqa: PTH116
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _stamp(path: Path) -> object:
    """Differs when a file, or a template in a directory, was edited; None when it is not there."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return tuple((name, _stamp(path / name)) for name in sorted(os.listdir(path)) if name.endswith(_TEMPLATE))  # noqa: PTH208
    except OSError:
        return None
    # ctime changes with content, rights and renames, whatever somebody sets mtime to
    return (status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)


def _remote(paths: Collection[Path]) -> Iterator[tuple[str, str]]:
    """Those on file systems that other machines change, with the kind of file system."""
    import psutil

    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    for path in paths:
        real = Path(os.path.realpath(path))
        kind = next((mounts[str(parent)] for parent in (real, *real.parents) if str(parent) in mounts), "")
        if kind.partition(".")[0] in _NETWORK:
            yield str(path), kind
