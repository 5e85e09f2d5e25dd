"""The pointer: files that nginx looks for on every request, and the symlink that makes all of them current at once.

    live -> gen-000042                       relative, so that the state directory may be moved
    gen-000042/shop/green                    everything goes to green (`blue` otherwise)
    gen-000042/shop/state                    `shop 42 100`: generation and green's percentage
    gen-000042/shop/weighted, 0, 1, ... 9    a weighted service: bucket N goes to green where the file N exists

There are two directories: the one that `live` points at, and a spare that nothing reads. `prepare` brings the spare
up to date, gives it the name of its generation and makes it durable; `commit` renames a new symlink over `live`, and
prepares first what was not. So the cost grows with what changed, and a reader sees all of the old state or all of the
new. A spare of which anything is uncertain (after a restart, a failure, or a hand in the files) is thrown away and
built anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.errors import CommitFailed
from lbswitch.files import read_link, replace_symlink, sync_directory, write_file

_GENERATION = re.compile(r"^gen-(\d{6,})(?:\.\w+)?$", re.ASCII)
_WATCHED = 8  # directories by inotify, each a thread that begins anew after a switch; all are looked at every second
_SYNC_AT_ONCE = 16  # the file system puts fsyncs that come together into one journal commit


@dataclass(frozen=True, slots=True)
class _Copy:
    """What one directory holds. `stamps` are the service directories' mtimes: a hand in the files changes them.

    `is_durable` says that all of it is on disk under this name, `is_ready` that it was prepared for the commit that
    comes next, so that nobody can have had a hand in it.
    """

    name: str
    services: Mapping[str, ServiceIntent]
    stamps: Mapping[str, int]
    is_durable: bool = False
    is_ready: bool = False


class Pointer:
    """The pointer below one state directory. Commits take turns."""

    def __init__(self, state_dir: Path) -> None:
        """Remember where; nothing is read or made before it is needed."""
        self._state_dir = state_dir
        self.live = state_dir / "live"
        self._lock = threading.Lock()
        self._seal: tuple[int, int] | None = None
        self._current: _Copy | None = None
        self._spare: _Copy | None = None

    def prepare(self, intent: Intent) -> None:
        """Write all that the next commit needs if it is of this intent; no reader notices. Raises: CommitFailed."""
        with self._lock:
            self._recall()
            if not self._is_current(intent):
                before = self.target()
                try:
                    built = self._build(self._name(intent.generation, before), intent.services)
                    self._spare = replace(built, is_ready=True)
                except OSError as error:
                    self._retreat(before)
                    raise CommitFailed(self._failure(error)) from error

    def is_ahead(self, intent: Intent) -> bool:
        """Whether the directory of this intent is on disk already, as far as is known without looking."""
        with self._lock:
            spare = self._spare
            if spare is None or not spare.is_durable:
                return False
            return (_generation(spare.name), spare.services) == (intent.generation, dict(intent.services))

    def forget(self) -> None:
        """What was prepared is a spare like any other, and looked at before it is used."""
        with self._lock:
            if self._spare is not None:
                self._spare = replace(self._spare, is_ready=False)

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Serve these routes from now on, all at one instant.

        `changed` is not relied on: what differs is known from what the directories hold. Raises: CommitFailed.
        """
        del changed
        with self._lock:
            self._recall()
            if not self._is_current(intent):
                self._move(intent)
            if self._spare is None:
                self._prepare_spare()
                self._remove_others(kept for kept in (self._current, self._spare) if kept is not None)

    def watched(self, services: Iterable[str]) -> list[Path]:
        """Directories whose change may be a hand in the pointer; of many services the first ones."""
        return [self.live, *(self.live / name for name in islice(services, _WATCHED))]

    def restore(self, intent: Intent) -> None:
        """Serve these routes whatever hands have done below the state directory. Raises: CommitFailed.

        Nothing that is there is trusted: a new directory is built, made durable, and `live` renamed over.
        """
        with self._lock:
            self._current = self._spare = self._seal = None
            with contextlib.suppress(OSError):
                if self.live.is_dir() and not self.live.is_symlink():
                    self.live.rename(self.live.with_name(f"live.found-{time.time_ns()}"))
            self._move(intent)
            self._prepare_spare()

    def committed(self) -> Intent | None:
        """What the disk says, or None without a pointer. A service that can't be read is left out."""
        target = self.target()
        match = _GENERATION.match(target or "")
        directory = self._state_dir / (target or "")
        if match is None or not directory.is_dir():
            return None
        found = {name: intent for name in _names(directory) if (intent := read_service(directory / name)) is not None}
        return Intent(found, max([int(match[1]), *(intent.generation for intent in found.values())]))

    def target(self) -> str | None:
        """The name of the live directory; None without a pointer, or where one can't even be looked for."""
        try:
            return read_link(self.live)
        except OSError:
            return None

    # -- what is remembered ------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Trust memory only while nobody else has moved the symlink; else learn from the disk."""
        seal = self._look_at_seal()
        if seal is not None and seal == self._seal:
            return
        self._seal, self._spare = seal, None
        self._current = self._read_current()

    def _look_at_seal(self) -> tuple[int, int] | None:
        """Inode and time of the symlink itself: every move makes a new one."""
        try:
            status = self.live.lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _read_current(self) -> _Copy | None:
        """The live directory, if all of it is exactly what a commit would have written."""
        target = self.target()
        directory = self._state_dir / (target or "")
        if target is None or not _GENERATION.match(target) or not directory.is_dir():
            return None
        services = {}
        for name in _names(directory):
            intent = read_service(directory / name)
            if intent is None or not _is_exactly(directory / name, intent):
                return None
            services[name] = intent
        return _Copy(target, services, _stamps(directory))

    def _is_current(self, intent: Intent) -> bool:
        current = self._current
        if current is None or dict(current.services) != dict(intent.services):
            return False
        return _generation(current.name) == intent.generation and self._is_intact(current)

    def _is_intact(self, copy: _Copy) -> bool:
        try:
            return _stamps(self._state_dir / copy.name) == copy.stamps
        except OSError:
            return False

    # -- moving ------------------------------------------------------------------------------------------------

    def _move(self, intent: Intent) -> None:
        before = self.target()
        name = self._name(intent.generation, before)
        try:
            built = self._build(name, intent.services)
            replace_symlink(self.live, name)
        except OSError as error:
            self._retreat(before)
            raise CommitFailed(self._failure(error)) from error
        self._current, self._spare = built, self._current
        self._seal = self._look_at_seal()
        self._remove_others(kept for kept in (self._current, self._spare) if kept is not None)

    def _name(self, generation: int, live: str | None) -> str:
        """`gen-000042`; a return to the generation that is live needs another name than the live one."""
        name = f"gen-{generation:06d}"
        return name if live != name else f"{name}.1"

    def _build(self, name: str, wanted: Mapping[str, ServiceIntent]) -> _Copy:
        """A durable directory that holds exactly this; only what differs from the spare is written."""
        directory = self._state_dir / name
        spare, self._spare = self._spare, None
        is_intact = spare is not None and (spare.is_ready or self._is_intact(spare))
        if spare is not None and is_intact and spare.is_durable and (spare.name, spare.services) == (name, wanted):
            return replace(spare, is_ready=False)
        if spare is None or not is_intact:
            spare = _Copy(name, {}, {})
            shutil.rmtree(directory, ignore_errors=True)
            make_directory(self._state_dir)
            make_directory(directory)
        elif spare.name != name:
            shutil.rmtree(directory, ignore_errors=True)
            (self._state_dir / spare.name).rename(directory)
        stamps = _write_all(directory, spare, wanted)
        sync_directory(directory)
        sync_directory(self._state_dir)
        return _Copy(name, dict(wanted), stamps, is_durable=True)

    def _retreat(self, before: str | None) -> None:
        """After a failure: the symlink as it was, and nothing of the attempt left.

        The rename may have worked and only the fsync after it failed.
        """
        with contextlib.suppress(OSError):
            if before is not None and read_link(self.live) != before:
                replace_symlink(self.live, before)
        with contextlib.suppress(OSError):
            self.live.with_name(".live.new").unlink(missing_ok=True)
        self._current, self._seal = None, None
        self._remove_others(())

    def _failure(self, error: OSError) -> str:
        what = f"the pointer was not moved: {error.strerror or error}: {error.filename or self._state_dir}"
        committed = self.committed()
        if committed is None:
            return f"{what}; there was no pointer before, so every service still goes to blue"
        serving = [f"{name} {intent.route}" for name, intent in sorted(committed.services.items())]
        shown = ", ".join(serving) if len(serving) <= 3 else f"{len(serving)} services"
        return f"{what}; generation {committed.generation} ({shown}) still serves; mend the disk, then try again"

    # -- the spare ---------------------------------------------------------------------------------------------

    def _prepare_spare(self) -> None:
        """A second copy of what is live, so that the next commit writes only what changes. It may fail: then later.

        Files are linked, not written: a file is never changed in place, so both directories may share it.
        """
        current = self._current
        if current is None:
            return
        name = f"gen-{_generation(current.name):06d}.spare"
        directory = self._state_dir / name
        try:
            shutil.rmtree(directory, ignore_errors=True)
            make_directory(directory)
            for service, intent in current.services.items():
                make_directory(directory / service)
                for file in files_of(service, intent):
                    (directory / service / file).hardlink_to(self._state_dir / current.name / service / file)
            for service in current.services:
                sync_directory(directory / service)
            sync_directory(directory)
            self._spare = _Copy(name, current.services, _stamps(directory))
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)

    def _remove_others(self, kept: Iterable[_Copy]) -> None:
        """Directories that crashes and failures left; never the one that `live` points at."""
        with contextlib.suppress(OSError):
            names = {copy.name for copy in kept} | {read_link(self.live)}
            for name in _names(self._state_dir):
                if _GENERATION.match(name) and name not in names:
                    shutil.rmtree(self._state_dir / name, ignore_errors=True)


def make_directory(path: Path) -> None:
    """Make it (and what is above it) so that workers of any user can enter, whatever the umask is."""
    missing = [path, *path.parents]
    for directory in reversed([one for one in missing if not one.is_dir()]):
        directory.mkdir()
        directory.chmod(0o755)
    if path.stat().st_mode & 0o055 != 0o055:
        path.chmod(0o755)


def files_of(service: str, intent: ServiceIntent) -> dict[str, bytes]:
    """Every file of a service with its content."""
    share = intent.route.share(Color.GREEN)
    files = {"state": f"{service} {intent.generation} {share}\n".encode(), str(intent.route.live): b""}
    if intent.weighted:
        files |= dict.fromkeys(("weighted", *map(str, range(share))), b"")
    return files


def read_service(directory: Path) -> ServiceIntent | None:
    """What nginx makes of these files, which is what counts if a hand has been in them; None if the state is broken."""
    try:
        names = set(_names(directory))
        _, generation, _ = (directory / "state").read_text("ascii").split()
        flag = Color.GREEN if str(Color.GREEN) in names else Color.BLUE
        if "weighted" not in names:
            return ServiceIntent(Route(flag), int(generation))
        share = sum(str(bucket) in names for bucket in range(100))
        return ServiceIntent(Route(flag).with_share(Color.GREEN, share), int(generation), weighted=True)
    except (OSError, ValueError):
        return None


def _is_exactly(directory: Path, intent: ServiceIntent) -> bool:
    files = files_of(directory.name, intent)
    return set(_names(directory)) == files.keys() and (directory / "state").read_bytes() == files["state"]


def _write_all(directory: Path, spare: _Copy, wanted: Mapping[str, ServiceIntent]) -> dict[str, int]:
    """Turn what the spare holds into what is wanted, and give the new stamps."""
    stamps = dict(spare.stamps)
    for name in spare.services.keys() - wanted.keys():
        shutil.rmtree(directory / name)
        del stamps[name]
    known = spare.services
    different = [name for name, intent in wanted.items() if known.get(name) is not intent and known.get(name) != intent]

    def write(name: str) -> int:
        return _write(directory / name, spare.services.get(name), wanted[name])

    if len(different) < _SYNC_AT_ONCE:
        return stamps | {name: write(name) for name in different}
    with ThreadPoolExecutor(_SYNC_AT_ONCE) as pool:
        return stamps | dict(zip(different, pool.map(write, different), strict=True))


def _write(directory: Path, before: ServiceIntent | None, after: ServiceIntent) -> int:
    """Make one service's files durable; a file that changes is a new file, since a worker may be sending the old."""
    old = {} if before is None else files_of(directory.name, before)
    new = files_of(directory.name, after)
    if before is None:
        make_directory(directory)
    for name in old.keys() - new.keys():
        (directory / name).unlink()
    # What has to be fsynced comes last, so that one commit of the file system's journal takes the names along.
    for name, content in sorted(new.items(), key=lambda file: bool(file[1])):
        if old.get(name) == content:
            continue
        if name in old:
            (directory / name).unlink()
        if content:
            write_file(directory / name, content)
        else:
            (directory / name).touch()
            (directory / name).chmod(0o644)
    sync_directory(directory)
    return directory.stat().st_mtime_ns


def _names(directory: Path) -> list[str]:
    return os.listdir(directory)  # noqa: PTH208 - names are wanted, not a thousand Path objects


def _stamps(directory: Path) -> dict[str, int]:
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries}


def _generation(name: str) -> int:
    match = _GENERATION.match(name)
    return int(match[1]) if match else -1
