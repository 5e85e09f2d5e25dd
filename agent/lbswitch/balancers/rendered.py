"""Rendered configurations on disk: a directory for each revision, and the symlink `current` to the one installed.

    base/rendered/3f2a.../nginx.conf
    base/current -> rendered/3f2a...

All files of a revision change together, with one rename(2), and the previous revision is still there to return to.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lbswitch.errors import StateError
from lbswitch.files import read_link, replace_symlink, sync_directory, write_file
from lbswitch.ports import Rendered, RenderedFile

_KEEP = 10
_REVISION = re.compile(r"^[0-9a-f]{12}$")


class RenderedDirectory:
    """The revisions of one balancer under `base`."""

    def __init__(self, base: Path) -> None:
        """Remember where; nothing is made before the first installation."""
        self._base = base
        self._rendered = base / "rendered"
        self.current = base / "current"

    def installed(self) -> str | None:
        """The revision that `current` points at; None without one, or for who may not look there."""
        with contextlib.suppress(PermissionError):
            target = read_link(self.current)
            revision = None if target is None else Path(target).name
            return revision if revision and (self._rendered / revision).is_dir() else None
        return None

    @contextlib.contextmanager
    def staged(self, rendered: Rendered) -> Iterator[Path]:
        """A directory with these files for the checker to look at; gone afterwards. Raises: StateError.

        It is a temporary one that only this user may enter, so that who may not write below `base` can check, too.
        """
        with contextlib.ExitStack() as stack:
            try:
                staging = Path(stack.enter_context(_temporary_directory()))
                for file in rendered.files:
                    _write_briefly(staging / file.name, file)
            except OSError as error:
                raise StateError(
                    f"nowhere to check: {error.strerror}; nothing was changed (TMPDIR names another directory)"
                ) from error
            yield staging

    def install(self, rendered: Rendered) -> None:
        """Write the revision and point `current` at it. Raises: StateError."""
        directory = self._rendered / rendered.revision
        staging = self._rendered / f".install-{rendered.revision}-{os.getpid()}"
        try:
            if not directory.is_dir():
                self._write(staging, rendered)
                staging.rename(directory)
                sync_directory(self._rendered)
            os.utime(directory)
        except OSError as error:
            raise StateError(f"{directory}: {error.strerror}; the installed configuration is unchanged") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._point_at(rendered.revision)
        self._prune(rendered.revision)

    def reinstall(self, revision: str) -> None:
        """Point `current` back at a kept revision. Raises: StateError."""
        if not (self._rendered / revision).is_dir():
            raise StateError(f"revision {revision} is no longer kept under {self._rendered}")
        self._point_at(revision)

    def read(self, revision: str) -> Rendered:
        """The files of a kept revision. Raises: StateError."""
        directory = self._rendered / revision
        try:
            files = tuple(
                RenderedFile(path.name, path.read_bytes(), secret=path.stat().st_mode & 0o077 == 0)
                for path in sorted(directory.iterdir())
            )
        except OSError as error:
            raise StateError(f"revision {revision} can't be read: {error.strerror}: {directory}") from error
        return Rendered(files, revision)

    def _point_at(self, revision: str) -> None:
        try:
            replace_symlink(self.current, f"rendered/{revision}")
        except OSError as error:
            raise StateError(f"{self.current}: {error.strerror}; the installed configuration is unchanged") from error

    def _write(self, directory: Path, rendered: Rendered) -> None:
        try:
            self._rendered.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o755)
            for file in rendered.files:
                write_file(directory / file.name, file.content, 0o600 if file.secret else 0o644)
            sync_directory(directory)
        except OSError as error:
            raise StateError(f"{directory}: {error.strerror}; the installed configuration is unchanged") from error

    def _prune(self, keep: str) -> None:
        """Keep the newest revisions; `reinstall` needs the last one, people may want a few more."""
        kept = [path for path in self._rendered.iterdir() if _REVISION.match(path.name)]
        newest_first = sorted(kept, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in newest_first[_KEEP:]:
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lbswitch-check-", ignore_cleanup_errors=True)  # mode 0700


def _write_briefly(path: Path, file: RenderedFile) -> None:
    """As it would be installed, but it does not have to outlive a power cut."""
    path.touch(mode=0o600 if file.secret else 0o644)
    path.write_bytes(file.content)
