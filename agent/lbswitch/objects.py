"""Files under the name of their content: written once, never changed, verified when they are read.

directory/objects/9f86d081884c7d65...        mode 0600 below a directory of mode 0700: some hold keys
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from lbswitch.errors import StateError
from lbswitch.files import sync_directory, write_file

_FRESH_S = 600.0  # what was written or asked for lately may be about to be referenced


def digest_of(content: bytes) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


class Objects:
    """The objects below one directory; may be used by several threads."""

    def __init__(self, directory: Path) -> None:
        """Nothing is made before the first `put`."""
        self._base = directory
        self._directory = directory / "objects"
        self._lock = threading.Lock()

    def put(self, contents: Iterable[bytes]) -> list[str]:
        """Write those that are not there yet, durably; gives their digests, in order. Raises: StateError."""
        try:
            with self._lock:
                self._make()
                found = [self._put(content) for content in contents]
                sync_directory(self._directory)
        except OSError as error:
            raise StateError(f"no snapshot could be written: {self._directory}: {error.strerror or error}") from error
        return found

    def _make(self) -> None:
        for directory in (self._base, self._directory):
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700, parents=True)
                sync_directory(directory.parent)

    def _put(self, content: bytes) -> str:
        digest = digest_of(content)
        path = self._directory / digest
        try:
            os.utime(path)
        except FileNotFoundError:
            self._write(path, content)
        return digest

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{path.name}.new")
        try:
            write_file(temporary, content, 0o600)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, digest: str) -> bytes:
        """The content. Raises: StateError when it is gone or not what was written."""
        path = self._directory / digest
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StateError(f"a part of the snapshot can't be read: {path}: {error.strerror}") from error
        if digest_of(content) != digest:
            raise StateError(f"a part of the snapshot is damaged: {path} does not hold what its name says")
        return content

    def sweep(self, keep: Collection[str]) -> int:
        """Remove all others, but for those of the last ten minutes; gives how many. Raises: StateError."""
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - names are wanted, not Path objects
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StateError(f"{self._directory}: {error.strerror}") from error
        return sum(self._remove(self._directory / name) for name in set(names).difference(keep))

    def _remove(self, path: Path) -> bool:
        with self._lock, contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > _FRESH_S:
                path.unlink()
                return True
        return False
