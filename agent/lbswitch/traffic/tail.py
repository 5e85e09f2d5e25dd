"""Follows a log that others append to, and keeps it small: what was read is truncated away.

It follows the file through rotation: one that was renamed is read to its end while its successor is read already. The
file that is emptied is the one under the path alone (and one without any name), never what somebody keeps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

MODE = 0o660
"""Paths of requests are for nobody else on this host. For SIGUSR1 nginx gives its logs to its workers' user; the agent,
if it is not root, then has its rights as the group."""
LARGE_BYTES = 8 << 20
KEPT_S = 60.0
"""How long a line that was read stays there at most, and how large the file may become (both: at most, while read)."""
_CHUNK_BYTES = 8 << 20
_LONGEST_LINE_BYTES = 1 << 20
_MOST_FILES = 3
_ROTATED_S = 60.0  # workers from before a rotation may go on writing into the old file
_RECENT_S = 60.0  # what an agent that ended this long ago had not read is still news


class Tail:
    """Complete lines of one log. `open`, then `read` again and again; `lost` counts what was no line."""

    def __init__(self, path: Path, memory: Path) -> None:
        """`memory` is where the position is kept for the next agent."""
        self._path = path
        self._memory = Memory(memory)
        self._files: list[_File] = []
        self._emptied_at: float | None = None
        self.lost = 0

    def open(self, now: float) -> None:
        """Make the file if it is not there, and begin at its end, or where an agent stopped a moment ago.

        Nobody but this user and its group can read it from now on. Raises: OSError.
        """
        self.close()
        file = _File.open(self._path)
        position = self._memory.recall(file.inode, now)
        file.position = file.size() if position is None else min(position, file.size())
        file.written_at = now
        self._files = [file]
        self._emptied_at = None

    def read(self, now: float) -> bytes:
        """All complete lines that were written since, 8 MiB at most. Raises: OSError."""
        self._follow(now)
        parts = []
        room = _CHUNK_BYTES
        for file in self._files:
            part, lost = file.read(room)
            self.lost += lost
            if part:
                file.written_at = now
                parts.append(part)
                room -= len(part)
            if room <= 0:
                break
        if parts:
            self._memory.keep(self._files[-1], now)
        return b"".join(parts)

    def _follow(self, now: float) -> None:
        """Read what is under the path now, too; forget files that nobody writes to any more."""
        newest = self._files[-1] if self._files else None
        if newest is None or _inode(self._path) != newest.inode:
            self._files.append(_File.open(self._path))
            self._files[-1].written_at = now
        *older, newest = self._files
        kept = [file for file in older if now - file.written_at < _ROTATED_S][1 - _MOST_FILES :]
        for file in older:
            if file not in kept:
                file.close()
        self._files = [*kept, newest]

    def tidy(self, now: float) -> None:
        """Empty the file when it is large or was not emptied for a while, and everything in it was read.

        What is written in the same instant is lost: about 2 us in `KEPT_S`. Raises: OSError.
        """
        is_due = self._emptied_at is None or not 0 <= now - self._emptied_at < KEPT_S
        for file in self._files:
            if file.position > (0 if is_due else LARGE_BYTES) and (file is self._files[-1] or file.is_nameless()):
                if not file.empty():
                    return
                self._memory.keep(self._files[-1], now)
        if is_due:
            self._emptied_at = now

    def close(self) -> None:
        """Forget the files; they stay as they are."""
        for file in self._files:
            file.close()
        self._files = []
        self._memory.close()


class _File:
    """One file, whatever it is called now, read up to `position`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino
        self.position = 0
        self.written_at = 0.0

    @classmethod
    def open(cls, path: Path) -> _File:
        """A regular file, made if there is none, that strangers can't read. Raises: OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = cls(os.open(path, flags, MODE))
        try:
            file.keep_private(path)
        except OSError:
            file.close()
            raise
        return file

    def keep_private(self, path: Path) -> None:
        """Of a file that somebody else made, too. Raises: OSError, also when it is no file."""
        mode = os.fstat(self.descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if stat.S_IMODE(mode) == MODE:
            return
        try:
            os.fchmod(self.descriptor, MODE)
        except PermissionError:
            if mode & stat.S_IRWXO:
                raise

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def is_nameless(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0

    def read(self, most: int) -> tuple[bytes, int]:
        """Complete lines, and how many were given up because they have no end."""
        size = self.size()
        if size < self.position:  # somebody truncated it
            self.position = 0
        if size == self.position:
            return b"", 0
        data = os.pread(self.descriptor, max(most, _LONGEST_LINE_BYTES), self.position)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) >= _LONGEST_LINE_BYTES:
            self.position += len(data)
            return b"", 1
        self.position += end
        return data[:end], 0

    def empty(self) -> bool:
        """Truncate it if all of it was read, and say whether it was."""
        # Both calls without giving up the interpreter's lock between them: so little can be written in between.
        if _libc().lseek(self.descriptor, 0, os.SEEK_END) != self.position:
            return False
        if _libc().ftruncate(self.descriptor, 0) != 0:
            os.ftruncate(self.descriptor, 0)
        self.position = 0
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


class Memory:
    """Where a reader was, for the next agent: inode, position and time in one line that is overwritten."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._descriptor: int | None = None

    def recall(self, inode: int, now: float) -> int | None:
        """How far that file was read, if that was a moment ago."""
        try:
            known, position, at = map(int, self._path.read_text().split())
        except (OSError, ValueError):
            return None
        return position if known == inode and 0 <= now - at <= _RECENT_S and position >= 0 else None

    def keep(self, file: _File, now: float) -> None:
        """Not durable: after a crash of the machine nothing of this matters. Raises: OSError."""
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
        os.pwrite(self._descriptor, b"%020d %020d %020d\n" % (file.inode, file.position, int(now)), 0)

    def close(self) -> None:
        """Leave it to the next agent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


@cache
def _libc() -> Any:
    """C functions that are called with the interpreter's lock held, with 64-bit offsets."""
    import ctypes

    libc = ctypes.PyDLL(None)
    libc.lseek.argtypes, libc.lseek.restype = (ctypes.c_int, ctypes.c_long, ctypes.c_int), ctypes.c_long
    libc.ftruncate.argtypes = (ctypes.c_int, ctypes.c_long)
    return libc
