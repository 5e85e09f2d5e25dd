"""Secrets in files: read anew for every use, never repeated in a message."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from lbswitch.errors import LbswitchError

_LARGEST = 8192
_LEAST_WORTH_HIDING = 4  # characters; shorter parts of a URL would blot out half of a message


class NotDelivered(LbswitchError):
    """An attempt failed; the message holds no secret. `is_about_message`: this alert is what is refused."""

    def __init__(self, message: str, *, is_about_message: bool = False) -> None:
        """Say why."""
        self.is_about_message = is_about_message
        super().__init__(message)


def read_secret(path: str) -> str:
    """The one line of a file that only its owner, and at most its group, may read. Raises: NotDelivered."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            content = os.read(descriptor, _LARGEST + 1) if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NotDelivered(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise NotDelivered(f"{path} is no file")
    if found.st_mode & 0o027:
        mode = stat.S_IMODE(found.st_mode)
        raise NotDelivered(f"{path} has mode {mode:04o}, so that others may use the secret in it: chmod 0640 {path}")
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) != 1 or len(content) > _LARGEST:
        raise NotDelivered(f"{path} has to hold one line, it has {len(lines)}")
    return lines[0]


def why_unusable(path: Path) -> str | None:
    """What is wrong with such a file, or None."""
    try:
        read_secret(str(path))
    except NotDelivered as error:
        return str(error)
    return None


def redact(text: str, *secrets: str) -> str:
    """The text without these secrets, or any part of a URL that could be one."""
    parts = {part for secret in secrets for part in (secret, *re.split(r"[/:@?&=#,\s]+", secret))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _LEAST_WORTH_HIDING and part not in ("http", "https"):
            text = text.replace(part, "***")
    return text
