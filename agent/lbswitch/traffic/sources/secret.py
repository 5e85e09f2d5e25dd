"""Secrets, read from their files at each use: whoever renews one has nothing to restart."""

from __future__ import annotations

import os
from pathlib import Path

from lbswitch.ports import SourceDown

_MOST_BYTES = 8192


def read_secret(path: str, key: str) -> str:
    """The text of a file without white space around it; `key` is the setting that names it. Raises: SourceDown."""
    try:
        # A FIFO would let the event loop wait for whoever writes to it.
        with os.fdopen(os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SourceDown(f"{key} {path} can't be read ({error.strerror}): mend its path or its owner") from error
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(data) > _MOST_BYTES or not text.isprintable():
        raise SourceDown(f"{key} {path} does not hold one line of text: write the secret into it, and nothing else")
    return text
