"""Directories for what a checker looks at: nobody else may look, and nothing stays, not even what a crash left.

TMPDIR/lbswitch-check-x7k2/             mode 0700: for a balancer of this host
OUTPUT/.check-x7k2/9f86d0.../           for one in a container, which may run as any user: the first can't be
                                        listed, and nobody guesses the name of the second
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_HERE, _IN_CONTAINER = "lbswitch-check-", ".check-"
_FORGOTTEN_S = 600.0


@contextlib.contextmanager
def staging(below: Path | None = None) -> Iterator[Path]:
    """An empty directory, gone afterwards; `below` names one that a container sees. Raises: OSError."""
    outer = _made(Path(tempfile.gettempdir()), _HERE) if below is None else _made(below, _IN_CONTAINER)
    try:
        yield outer if below is None else _hidden(outer)
    finally:
        shutil.rmtree(outer, ignore_errors=True)  # follows no symlink


def _made(directory: Path, prefix: str) -> Path:
    _remove_forgotten(directory, prefix)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=directory))  # mode 0700


def _hidden(outer: Path) -> Path:
    inner = outer / secrets.token_hex(16)
    inner.mkdir()
    inner.chmod(0o755)
    outer.chmod(0o711)
    return inner


def _remove_forgotten(directory: Path, prefix: str) -> None:
    """What a process of this user that was killed during a check has left."""
    for path in directory.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if is_ours and status.st_mtime < time.time() - _FORGOTTEN_S:
                shutil.rmtree(path, ignore_errors=True)
