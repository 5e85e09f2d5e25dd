"""Paths of this host as a container has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lbswitch.errors import CheckFailed

Pairs = Sequence[tuple[Path, Path]]
"""Directories or files of this host, each with where the container has it."""


class Mounts:
    """What the configuration says comes before what the engine says."""

    def __init__(self, container: str, configured: Mapping[Path, Path], mounted: Pairs) -> None:
        """`configured` is `balancer.container_paths`; `mounted` what the engine mounts."""
        self._container = container
        self._configured = tuple(configured.items())
        self._mounted = mounted

    def seen(self, path: Path) -> Path:
        """Where the container has it. Raises: CheckFailed.

        Links below a mount stay as they are, for the balancer to follow; links on the way to it are followed here.
        """
        plain = Path(os.path.normpath(path))
        for start in dict.fromkeys((plain, Path(os.path.realpath(path)))):
            found = _first(start, self._configured) or _first(start, self._mounted, self._is_hidden)
            if found is not None:
                return found
        directory = plain if plain.is_dir() else plain.parent
        raise CheckFailed(
            f"container {self._container} does not have {path}: mount its directory (docker run --volume "
            f"{directory}:{directory}), or say with balancer.container_paths where it is"
        )

    def _is_hidden(self, path: Path, mounted_at: Path) -> bool:
        """Whether something else is mounted over this path, further down."""
        over = [there for _, there in self._mounted if path.is_relative_to(there)]
        return any(len(there.parts) > len(mounted_at.parts) for there in over)


def _first(path: Path, pairs: Pairs, is_hidden: Callable[[Path, Path], bool] | None = None) -> Path | None:
    """The path in terms of the mount nearest to it."""
    real = [(os.path.realpath(here), there) for here, there in pairs]
    for ancestor in (path, *path.parents):
        resolved = os.path.realpath(ancestor)
        for here, there in real:
            found = there / path.relative_to(ancestor)
            if here == resolved and not (is_hidden is not None and is_hidden(found, there)):
                return found
    return None
