"""Logs that fill the disk while nobody looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from lbswitch.balancers.nginx_config import full_path
from lbswitch.core.config import Control
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, warning
from lbswitch.doctor.words import size

_LARGE = 100 << 20
_ROTATION = (Path("/etc/logrotate.conf"), Path("/etc/logrotate.d"))
_PATTERN = re.compile(r'"([^"\n]+)"|(/[^\s{"]+)')


def unrotated(case: Case) -> Iterator[Finding]:
    """A large log that nothing rotates."""
    patterns = list(_patterns(_ROTATION))
    for path in dict.fromkeys(_logs(case)):
        try:
            length = path.stat().st_size
        except OSError:
            continue
        if length > _LARGE and not any(fnmatch(str(path), pattern) for pattern in patterns):
            yield warning(
                f"{path} has {size(length)}, and no logrotate file names it (a warning from {size(_LARGE)} on)",
                f"a file in /etc/logrotate.d for {path}; truncate -s 0 {path} makes room now",
            )


def _logs(case: Case) -> Iterator[Path]:
    """Those of lbswitch itself, and those of an owner's nginx on this host."""
    yield from sorted(case.state_dir.glob("*/*.log"))
    yield from sorted(case.state_dir.glob("*.log"))
    if not (case.is_guest and case.is_nginx) or case.config.balancer.controlled_by is Control.DOCKER:
        return
    try:
        config = case.nginx
    except NotChecked:
        return
    for name in ("access_log", "error_log"):
        for place in config.find(name):
            target = place.directive.args[0] if place.directive.args else "off"
            if target != "off" and not target.startswith(("syslog:", "memory:", "stderr")) and "$" not in target:
                yield Path(full_path(target, config.main))


def _patterns(places: tuple[Path, ...]) -> Iterator[str]:
    """What logrotate is told to look after."""
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue
            for quoted, plain in _PATTERN.findall(text):
                yield quoted or plain
