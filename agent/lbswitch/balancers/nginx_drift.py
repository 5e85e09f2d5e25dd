"""What of an nginx is not as lbswitch made it: pointer, rendered files, and what the workers run; and putting it right.

Workers read the pointer per request, so what is on disk is what every one of them serves, also those that drain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from lbswitch.balancers.diffs import of_texts
from lbswitch.balancers.nginx_pointer import Pointer, files_of, read_service
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.running import RunningRevision
from lbswitch.core.model import Intent, Observation, ServiceIntent
from lbswitch.ports import Difference, Rendered

_ENTER = 0o055  # what workers of any user need


class NginxDrift:
    """Compares and repairs for one adapter; may be called from several threads."""

    def __init__(
        self,
        pointer: Pointer,
        rendered: RenderedDirectory,
        observe: Callable[[str], Observation],
        workers: Callable[[], Collection[int]],
        render: Callable[[Intent], Rendered],
    ) -> None:
        """`observe` asks the listener of a service (raises NotSeen); `workers` gives the pids, none when it is down.

        `render` is the adapter's; it is asked when what was installed is not remembered.
        """
        self._pointer = pointer
        self._rendered = rendered
        self._render = render
        self._running = RunningRevision("nginx", rendered, observe, workers)
        self._clean: tuple[Intent, object] | None = None

    def _damage(self, intent: Intent) -> list[Difference]:
        """What is wrong with the rendered files on disk."""
        return self._rendered.differences(partial(self._render, intent))

    def differences(self, intent: Intent) -> list[Difference]:
        """Everything, the disk first. Never raises."""
        workers = self._running.workers()
        files = self._damage(intent)
        return [*self._pointer_differences(intent), *files, *self._running.differences(intent, workers, files)]

    def repair(self, intent: Intent, rendered: Rendered | None, reload: Callable[[], None]) -> None:
        """Traffic first, so the pointer; then the files; a reload if other files run. Raises: CommitFailed, StateError.

        `reload` may raise ReloadFailed.
        """
        if self._pointer_differences(intent):
            self._pointer.restore(intent)
        workers = self._running.workers()
        damaged = self._damage(intent)
        runs_others = self._running.differences(intent, workers, damaged)
        self._rendered.restore(rendered)
        if runs_others:
            reload()
            self._running.reloaded()

    # -- the pointer -------------------------------------------------------------------------------------------

    def _pointer_differences(self, intent: Intent) -> list[Difference]:
        seal = self._seal(intent)
        if self._clean is not None and self._clean[0] is intent and self._clean[1] == seal:
            return []
        found = list(self._compare(intent))
        self._clean = None if found else (intent, seal)
        return found

    def _seal(self, intent: Intent) -> object:
        """Changes with every hand in the pointer: the symlink, the directories' entries and modes, the state files."""
        live = self._pointer.live
        try:
            link = live.lstat()
            whole = live.stat()
            services = []
            for name in intent.services:
                directory = os.stat(f"{live}/{name}")  # noqa: PTH116 - a thousand of them, often
                state = os.stat(f"{live}/{name}/state")  # noqa: PTH116
                services.append((directory.st_mtime_ns, directory.st_mode, *_stamp(state)))
        except OSError:
            return object()  # equals nothing
        return (link.st_ino, link.st_mtime_ns, whole.st_ino, whole.st_mtime_ns, whole.st_mode, tuple(services))

    def _compare(self, intent: Intent) -> Iterator[Difference]:
        try:
            yield from self._compare_whole(intent)
        except OSError as error:
            yield Difference(
                "disk", str(self._pointer.live), f"the pointer can't be read: {error.strerror}: {error.filename}"
            )

    def _compare_whole(self, intent: Intent) -> Iterator[Difference]:
        live = self._pointer.live
        names = sorted(os.listdir(live)) if live.is_dir() else None  # noqa: PTH208 - names are wanted
        target = self._pointer.target() or "nothing"
        wanted = f"gen-{intent.generation:06d}"
        if names is None or not live.is_symlink() or "/" in target:
            yield self._without_pointer(wanted, is_gone=names is None)
        elif live.stat().st_mode & _ENTER != _ENTER:
            mode = f"{live.stat().st_mode & 0o777:o}"
            yield Difference(
                "disk", str(live), f"{live} has mode {mode}: workers of another user find no pointer there"
            )
        for service, route in intent.services.items():
            yield from _service_differences(live / service, route)
        for name in (name for name in names or () if name not in intent.services):
            yield Difference("disk", str(live / name), f"{live / name} is not from lbswitch")

    def _without_pointer(self, wanted: str, *, is_gone: bool) -> Difference:
        live = self._pointer.live
        target = self._pointer.target()
        found = f"points at {target}" if target is not None else "is no symlink" if os.path.lexists(live) else "is gone"
        effect = ": nginx sends every service to blue" if is_gone else ", which is not from lbswitch"
        after = "" if target is None else f"live -> {target}\n"
        return Difference(
            "disk",
            str(live),
            f"the pointer {live} {found}{effect}",
            diff=of_texts(str(live), f"live -> {wanted}\n", after),
        )


def _service_differences(directory: Path, wanted: ServiceIntent) -> Iterator[Difference]:
    """What hands have done to one service's files, and what that makes nginx do."""
    name = directory.name
    intended, found = _listing(files_of(name, wanted)), _listing(_contents(directory))
    is_closed = directory.is_dir() and directory.stat().st_mode & _ENTER != _ENTER
    if intended == found and not is_closed:
        return
    served = read_service(directory)
    if served is None:
        effect = "nothing that could be understood" if directory.is_dir() else "nothing, so nginx sends it to blue"
    elif is_closed:
        effect = "nothing to workers of another user, for whom its directory is closed"
    else:
        effect = f"{served.route} of generation {served.generation}"
    what = f"{name}: intended is {wanted.route} of generation {wanted.generation}, the pointer says {effect}"
    if served is not None and served == wanted:
        what = f"{name}: files of the pointer were changed, which changes nothing of where requests go"
    yield Difference("disk", str(directory), what, name, of_texts(str(directory), intended, found))


def _listing(files: Mapping[str, bytes]) -> str:
    """The files of a service, a line each, all buckets in one; those that are no mere flags with their content."""
    lines = [
        f"{name}: {content.decode(errors='replace').rstrip()}" if name == "state" else name
        for name, content in sorted(files.items())
        if not _is_bucket(name)
    ]
    buckets = sorted(int(name) for name in files if _is_bucket(name))
    if buckets:
        lines.append(f"buckets {', '.join(_runs(buckets))}")
    return "".join(f"{line}\n" for line in lines)


def _is_bucket(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def _runs(numbers: Sequence[int]) -> list[str]:
    """Such as `0-29` and `31`: a hundred lines would tell nobody anything."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]


def _contents(directory: Path) -> dict[str, bytes]:
    """Raises: OSError other than that there is nothing."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are wanted
        return {name: (directory / name).read_bytes() if name == "state" else b"" for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """Without the time of the inode's change: a hard link to the file, as the spare makes one, changes that."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
