"""A file of the operator's that is replaced in one step, and put back in one step if what follows fails.

.lbswitch.yaml.lbswitch-new        the new content, durable before anything else happens
.lbswitch.yaml.lbswitch-old        a second name of the old file, so that going back takes no room on a full disk
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from lbswitch.errors import StateError
from lbswitch.files import sync_directory, write_file


class Replacement:
    """New content for one file: `stage`, `apply`, and `revert` or not, then `clean`. A symlink keeps pointing."""

    def __init__(self, path: Path) -> None:
        """Nothing is touched yet."""
        self.path = Path(os.path.realpath(path))
        self._new = self.path.with_name(f".{self.path.name}.lbswitch-new")
        self._old = self.path.with_name(f".{self.path.name}.lbswitch-old")
        self._is_applied = False

    def holds(self, content: bytes) -> bool:
        """Whether the file is so already."""
        with contextlib.suppress(OSError):
            return self.path.read_bytes() == content
        return False

    def obstacle(self) -> str | None:
        """Why this user can't replace the file, in words; None when nothing is in the way."""
        directory = self.path.parent
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            return f"{self.path} can't be replaced: the agent (uid {os.geteuid()}) may not write in {directory}"
        return None if self._may_keep_owner() else f"{self.path} can't be replaced: it is not the agent's own file"

    def _may_keep_owner(self) -> bool:
        """Whether the new file can be given the owner and group of the old one."""
        if os.geteuid() == 0 or not self.path.exists():
            return True
        old = self.path.stat()
        return old.st_uid == os.geteuid() and old.st_gid in (os.getegid(), *os.getgroups())

    def stage(self, content: bytes) -> None:
        """Write the new content, durably, with owner and mode of the old. Raises: StateError."""
        try:
            self._stage(content)
        except OSError as error:
            self.clean()
            raise StateError(f"{self.path} can't be replaced: {error.strerror or error}") from error

    def _stage(self, content: bytes) -> None:
        self.clean()
        old = self.path.stat() if self.path.exists() else None
        write_file(self._new, content, 0o644 if old is None else stat.S_IMODE(old.st_mode))
        if old is not None:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(self._new, old.st_uid, old.st_gid)
            self._old.hardlink_to(self.path)
        sync_directory(self.path.parent)

    def apply(self) -> None:
        """Put the new content in its place. Raises: StateError; then `revert`."""
        try:
            self._new.rename(self.path)
            self._is_applied = True
            sync_directory(self.path.parent)
        except OSError as error:
            raise StateError(f"{self.path} could not be replaced: {error.strerror or error}") from error

    def revert(self) -> None:
        """Put the old file back, if `apply` got so far. Raises: StateError."""
        if not self._is_applied:
            return
        try:
            if self._old.exists():
                self._old.rename(self.path)
            else:
                self.path.unlink(missing_ok=True)
            self._is_applied = False
            sync_directory(self.path.parent)
        except OSError as error:
            raise StateError(f"{self.path} could not be put back: {error.strerror or error}") from error

    def clean(self) -> None:
        """Remove what lies beside the file."""
        for path in (self._new, self._old):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
