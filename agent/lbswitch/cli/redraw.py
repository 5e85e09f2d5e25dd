"""A picture on a terminal that is drawn again and again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def redrawn() -> Iterator[Callable[[Sequence[str]], None]]:
    """Gives what draws over the last picture; lines are cut at the terminal's edge while this goes on (DECAWM)."""
    import shutil

    def show(lines: Sequence[str]) -> None:
        height = shutil.get_terminal_size().lines
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines[: max(3, height - 1)]) + "\x1b[J")
        sys.stdout.flush()

    sys.stdout.write("\x1b[?7l\x1b[2J")
    try:
        yield show
    finally:
        sys.stdout.write("\x1b[?7h\n")
        sys.stdout.flush()
