"""Rendered configurations on disk: a directory for each revision, and the symlink `current` to the one installed.

    base/rendered/3f2a.../nginx.conf
    base/current -> rendered/3f2a...

All files of a revision change together, with one rename(2), and the previous revision is still there to return to.

A revision certifies itself: its name is the hash of its files. What was installed through one object is also kept in
memory, so that a directory which somebody edited can be written again and compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lbswitch.balancers.diffs import of_texts
from lbswitch.balancers.staging import staging
from lbswitch.errors import LbswitchError, StateError
from lbswitch.files import read_link, replace_symlink, sync_directory, write_file
from lbswitch.ports import REVISION_MARK, Difference, Rendered, RenderedFile

_KEEP = 10
_STAGED, _FORGOTTEN_S = ".install-", 600.0
_REMEMBERED = 2  # the installed one, and the one before to return to
_REVISION = re.compile(r"^[0-9a-f]{12}$")


class RenderedDirectory:
    """The revisions of one balancer under `base`."""

    def __init__(self, base: Path) -> None:
        """Remember where; nothing is made before the first installation."""
        self._base = base
        self._rendered = base / "rendered"
        self.current = base / "current"
        self._intended: str | None = None
        self._known: dict[str, Rendered] = {}
        self._clean: tuple[str, object] | None = None
        self._moves = 0  # odd while files are being changed by us

    @property
    def moves(self) -> int | None:
        """A number that grows with every change of ours; None while one is under way."""
        return None if self._moves % 2 else self._moves

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """What others see of the files meanwhile is our doing. Changes take turns: the agent sees to that."""
        was = self._moves
        self._moves = was | 1
        try:
            yield
        finally:
            self._moves = was if was % 2 else was + 2

    def installed(self) -> str | None:
        """The revision that `current` points at; None without one, or for who may not look there."""
        with contextlib.suppress(OSError):
            target = read_link(self.current)
            revision = None if target is None else Path(target).name
            found = revision if revision and (self._rendered / revision).is_dir() else None
            self._intended = self._intended or found
            return found
        return None

    @property
    def intended(self) -> str | None:
        """The revision that was last installed or put back through this object, or was found first."""
        return self._intended or self.installed()

    @contextlib.contextmanager
    def staged(self, rendered: Rendered) -> Iterator[Path]:
        """A directory with these files for the checker to look at; gone afterwards. Raises: StateError.

        It is a temporary one that only this user may enter, so that who may not write below `base` can check, too.
        """
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(staging())
                for file in rendered.files:
                    _write_briefly(directory / file.name, file)
            except OSError as error:
                raise StateError(
                    f"nowhere to check: {error.strerror}; nothing was changed (TMPDIR names another directory)"
                ) from error
            yield directory

    def install(self, rendered: Rendered) -> None:
        """Write the revision and point `current` at it. Raises: StateError."""
        with self._moving():
            self._install(rendered)

    def _install(self, rendered: Rendered) -> None:
        directory = self._rendered / rendered.revision
        staging = self._rendered / f"{_STAGED}{rendered.revision}-{os.getpid()}"
        try:
            if not self._holds(rendered):
                self._write(staging, rendered)
                self._put_in_place(staging, directory)
            os.utime(directory)
        except OSError as error:
            raise StateError(self._not_written(directory, error)) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._point_at(rendered.revision)
        self._remember(rendered)
        self._prune(rendered.revision)

    def reinstall(self, revision: str) -> None:
        """Point `current` back at a kept revision, which is what it was. Raises: StateError."""
        if revision in self._known:
            self.install(self._known[revision])
            return
        if not (self._rendered / revision).is_dir():
            raise StateError(f"revision {revision} is no longer kept under {self._rendered}")
        if not is_intact(self._read(revision)):
            raise StateError(
                f"revision {revision} under {self._rendered} was changed by somebody and is not put back as it is; "
                "the installed configuration is unchanged"
            )
        with self._moving():
            self._point_at(revision)

    def read(self, revision: str) -> Rendered:
        """The files of a kept revision, as they were rendered where that is known. Raises: StateError."""
        return self._known.get(revision) or self._read(revision)

    def _read(self, revision: str) -> Rendered:
        """As they are on disk. Raises: StateError."""
        directory = self._rendered / revision
        try:
            files = tuple(_file(path) for path in sorted(directory.iterdir()))
        except OSError as error:
            raise StateError(f"revision {revision} can't be read: {error.strerror}: {directory}") from error
        return Rendered(files, revision)

    def _point_at(self, revision: str) -> None:
        try:
            replace_symlink(self.current, f"rendered/{revision}")
        except OSError as error:
            raise StateError(self._not_written(self.current, error)) from error
        self._intended = revision

    def _not_written(self, path: Path, error: OSError) -> str:
        """What failed, what holds, and for rights what to do."""
        said = f"{path}: {error.strerror}; the installed configuration is unchanged"
        top = self.current.parent
        if error.errno == errno.EROFS:
            return f"{said}; the agent's unit needs ReadWritePaths={top}, and a restart"
        if isinstance(error, PermissionError):
            return f"{said}; the agent has to own what is there: chown -R {_user()}: {top}"
        return said

    def _holds(self, rendered: Rendered) -> bool:
        """Whether its directory is there and holds exactly these files."""
        with contextlib.suppress(StateError):
            return set(self._read(rendered.revision).files) == set(rendered.files)
        return False

    def _remember(self, rendered: Rendered) -> None:
        self._known.pop(rendered.revision, None)
        self._known[rendered.revision] = rendered
        for old in list(self._known)[:-_REMEMBERED]:
            self._known.pop(old, None)

    def _put_in_place(self, staging: Path, directory: Path) -> None:
        """A damaged directory of that name goes out of the way first."""
        aside = staging.with_name(f"{staging.name}.old")
        if os.path.lexists(directory):
            directory.rename(aside)
        try:
            staging.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
        sync_directory(self._rendered)
        _remove(aside)

    # -- drift -------------------------------------------------------------------------------------------------

    def differences(self, render: Callable[[], Rendered] | None = None) -> list[Difference]:
        """What of `intended` is not on disk as it was written; cheap while nothing has moved. Never raises.

        `render` may know the content (and may raise BalancerError), if nothing here does.
        """
        revision = self.intended
        if revision is None:
            return []
        seal = (revision, self._seal(revision))
        if seal == self._clean:
            return []
        found = [*self._link_differences(revision), *self._file_differences(revision, render)]
        if not found:
            self._clean = seal
        return found

    def restore(self, rendered: Rendered | None) -> bool:
        """Have `intended` on disk again, all files at once; False when it was there. Raises: StateError.

        `rendered` is its content, if the caller has it; what was installed or seen intact is known here.
        """
        if not self.differences():
            return False
        revision = self.intended or ""
        known = self._known.get(revision)
        if rendered is not None and rendered.revision == revision:
            known = rendered
        if known is not None:
            self._give_way()
            self.install(known)
        else:
            self.reinstall(revision)
        return True

    def _give_way(self) -> None:
        """Something that is no symlink stands where `current` belongs."""
        with contextlib.suppress(OSError):
            if self.current.is_dir() and not self.current.is_symlink():
                self.current.rename(self.current.with_name(f".current.found-{time.time_ns()}"))

    def _seal(self, revision: str) -> object:
        """Changes with every change of the link, the directory or a file in it."""
        directory = self._rendered / revision
        try:
            link = self.current.lstat()
            with os.scandir(directory) as entries:
                files = sorted((entry.name, *_stamp(entry.stat(follow_symlinks=False))) for entry in entries)
            return (link.st_ino, link.st_mtime_ns, _stamp(directory.stat()), tuple(files))
        except OSError:
            return object()  # equals nothing

    def _link_differences(self, revision: str) -> Iterator[Difference]:
        wanted = f"rendered/{revision}"
        try:
            target = read_link(self.current)
        except OSError:
            target = "(not a symlink)"
        if target == wanted:
            return
        found = "is gone" if target is None else f"points at {target}"
        yield Difference(
            "disk",
            str(self.current),
            f"{self.current} {found}, intended is {wanted}: the next reload or restart would not read what is intended",
            diff=of_texts(
                str(self.current), f"current -> {wanted}\n", "" if target is None else f"current -> {target}\n"
            ),
        )

    def _learn(self, revision: str, on_disk: Rendered, render: Callable[[], Rendered] | None) -> Rendered | None:
        """The content of a revision: as remembered, as on disk if that is intact, or as rendered again."""
        if revision not in self._known:
            if is_intact(on_disk):
                self._remember(on_disk)
            elif render is not None:
                with contextlib.suppress(LbswitchError):
                    rendered = render()
                    if rendered.revision == revision:
                        self._remember(rendered)
        return self._known.get(revision)

    def _file_differences(self, revision: str, render: Callable[[], Rendered] | None) -> Iterator[Difference]:
        directory = self._rendered / revision
        try:
            found = {file.name: file for file in self._read(revision).files}
        except StateError:
            yield Difference("disk", str(directory), f"the rendered files {directory} are gone or can't be read")
            return
        known = self._learn(revision, Rendered(tuple(found.values()), revision), render)
        if known is None:
            yield Difference("disk", str(directory), f"rendered files in {directory} are not what was rendered")
            return
        wanted = {file.name: file for file in known.files}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                yield _file_difference(directory / name, wanted.get(name), found.get(name))

    def _write(self, directory: Path, rendered: Rendered) -> None:
        try:
            self._rendered.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o755)
            for file in rendered.files:
                write_file(directory / file.name, file.content, 0o600 if file.secret else 0o644)
            sync_directory(directory)
        except OSError as error:
            raise StateError(self._not_written(directory, error)) from error

    def _prune(self, keep: str) -> None:
        """Keep the newest revisions; `reinstall` needs the last one, people may want a few more."""
        kept = [path for path in self._rendered.iterdir() if _REVISION.match(path.name)]
        newest_first = sorted(kept, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in newest_first[_KEEP:]:
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)
        self._remove_forgotten()

    def _remove_forgotten(self) -> None:
        """What an agent that was killed while it installed has left."""
        for path in self._rendered.glob(f"{_STAGED}*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - _FORGOTTEN_S:
                    _remove(path)


def is_intact(rendered: Rendered) -> bool:
    """Whether the files are those that the revision is the hash of."""
    mark, value = REVISION_MARK.encode(), rendered.revision.encode()
    marked = [RenderedFile(file.name, file.content.replace(value, mark)) for file in rendered.files]
    return Rendered.of(marked).revision == rendered.revision


def _user() -> str:
    """Whose process this is."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _file_difference(path: Path, wanted: RenderedFile | None, found: RenderedFile | None) -> Difference:
    if wanted is None:
        what, before, after = "is not from lbswitch", b"", found.content if found is not None else b""
    elif found is None:
        what, before, after = "is gone", wanted.content, b""
    elif wanted.content == found.content:
        what, before, after = "has other permissions than it was written with", b"", b""
    else:
        what = f"was changed ({len(wanted.content)} bytes intended, {len(found.content)} found)"
        before, after = wanted.content, found.content
    is_secret = any(file is not None and file.is_hidden for file in (wanted, found))
    diff = "" if is_secret else of_texts(str(path), _text(before), _text(after))
    hidden = "; it is secret, so the difference is not shown" if is_secret and before != after else ""
    return Difference("disk", str(path), f"{path} {what}{hidden}", diff=diff)


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _file(path: Path) -> RenderedFile:
    """Reads no link, which may lead to what nobody is to be shown, nor a pipe, which may never end. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        return RenderedFile(path.name, file.read(), secret=status.st_mode & 0o077 == 0)


def _stamp(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_briefly(path: Path, file: RenderedFile) -> None:
    """As it would be installed, but it does not have to outlive a power cut."""
    path.touch(mode=0o600 if file.secret else 0o644)
    path.write_bytes(file.content)
