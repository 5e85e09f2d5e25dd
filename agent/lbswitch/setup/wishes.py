"""What the person at `lbswitch init` wants; everything may be left to be found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lbswitch.core.config import BalancerKind, Control
from lbswitch.errors import InvalidRequest


class Missing(InvalidRequest):
    """Something can't be found out and has to be said; `flag` is the option that says it."""

    def __init__(self, flag: str, message: str) -> None:
        """Say what is missing; the flag is part of the message."""
        self.flag = flag
        super().__init__(f"{flag}: {message}")


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of the command, as they were given; None and () are "find out"."""

    config_path: Path
    balancer: BalancerKind | None = None
    managed: bool | None = None
    config: tuple[str, ...] = ()
    output_dir: str | None = None
    state_dir: str | None = None
    socket: str | None = None
    control: Control | None = None
    unit: str | None = None
    pid_file: str | None = None
    container: str | None = None
    master_socket: str | None = None
    service: str | None = None
    bind: str | None = None
    blue: tuple[str, ...] = ()
    green: tuple[str, ...] = ()
    adopt_blue: str | None = None
    adopt_green: str | None = None
    server: str | None = None
    health_path: str | None = None
    verify_host: str | None = None
    verify_prefix: str | None = None
    verify_tls: bool | None = None
    tune: bool = True
    user: str | None = None
