"""Files as they are and as they would be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lbswitch.files import sync_directory
from lbswitch.setup import edits
from lbswitch.setup.edits import Edit


@dataclass(frozen=True, slots=True)
class Content:
    """What is at a path: the bytes of a file with its mode and owner, or the target of a symlink."""

    data: bytes
    mode: int = 0o644
    uid: int | None = None
    gid: int | None = None
    is_link: bool = False

    def is_same(self, other: Content | None) -> bool:
        """Whether the content is the same, whoever owns it."""
        return other is not None and (self.data, self.is_link) == (other.data, other.is_link)


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file, before and after; None is "not there".

    `path` is the file itself, never a symlink to it. `edits` are ours in a file of somebody else's.
    """

    path: Path
    before: Content | None
    after: Content | None
    edits: tuple[Edit, ...] = ()

    def diff(self) -> str:
        """A unified diff of a file; of a symlink where it points."""
        old, new = self.before, self.after
        link = next((content for content in (new, old) if content is not None and content.is_link), None)
        if link is not None:
            sign = "-" if new is None else "+"
            return f"--- {self.path}\n+++ {self.path}\n{sign}symlink to {link.data.decode()}\n"
        return edits.diff(self.path, None if old is None else old.data, None if new is None else new.data)


def look(path: Path) -> Content | None:
    """What is there now. Raises: OSError."""
    try:
        status = path.lstat()
        if path.is_symlink():
            return Content(os.fsencode(path.readlink()), 0o777, status.st_uid, status.st_gid, is_link=True)
        return Content(path.read_bytes(), status.st_mode & 0o7777, status.st_uid, status.st_gid)
    except (FileNotFoundError, NotADirectoryError):
        return None


def edited(path: Path, wanted: Sequence[Edit]) -> FileChange:
    """A change of the file that `path` leads to. Raises: OSError."""
    target = Path(os.path.realpath(path))
    before = look(target)
    if before is None:
        raise FileNotFoundError(2, "No such file or directory", str(target))
    ordered = tuple(sorted(wanted, key=lambda edit: edit.at))
    return FileChange(target, before, replace(before, data=edits.apply(before.data, ordered)), ordered)


def put(path: Path, content: Content | None) -> None:
    """Make it so, in one step and durably, with mode and owner. Raises: OSError."""
    if content is None:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
        return
    temporary = path.with_name(f".{path.name}.lbswitch-new")
    temporary.unlink(missing_ok=True)
    try:
        if content.is_link:
            temporary.symlink_to(os.fsdecode(content.data))
        else:
            _write(temporary, content)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _write(path: Path, content: Content) -> None:
    """Never readable for more people than the file it takes the place of."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.data)
        status = os.fstat(descriptor)
        owner = (content.uid, content.gid)
        if None not in owner and owner != (status.st_uid, status.st_gid):
            os.fchown(descriptor, *owner)  # type: ignore[arg-type]  # mypy does not see that neither is None
        os.fchmod(descriptor, content.mode)
        file.flush()
        os.fsync(descriptor)
