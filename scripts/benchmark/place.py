"""The one directory of a run, and the end of every process that works in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from tests.support.agent import make_short_directory


class Place:
    """Gives directories. As a context manager it leaves nothing behind, whatever went wrong in the block."""

    def __init__(self, *, owns_children: bool = False) -> None:
        """`owns_children`: all children of this process are the run's, also those that don't know this place."""
        self.root = make_short_directory()
        self._owns_children = owns_children
        self._given = 0

    def directory(self) -> Path:
        """A new one, with a short name, that workers of other users may enter."""
        self._given += 1
        directory = self.root / str(self._given)
        directory.mkdir(mode=0o755)
        return directory

    def sweep(self) -> int:
        """Kill what names this place on its command line, with what those started; gives how many that were."""
        children = psutil.Process().children(recursive=True) if self._owns_children else []
        left = {process.pid: process for process in children}
        for process in psutil.process_iter(["cmdline"]):
            if process.pid != os.getpid() and any(str(self.root) in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    left |= {one.pid: one for one in [process, *process.children(recursive=True)]}
        for process in left.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(left.values()), timeout=10)
        return len(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.sweep()
        shutil.rmtree(self.root, ignore_errors=True)
