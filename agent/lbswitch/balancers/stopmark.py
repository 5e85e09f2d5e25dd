"""Remembers that a person stopped the balancer, so that the agent does not start it again."""

from __future__ import annotations

from pathlib import Path


class StopMark:
    """The file `stopped` in the balancer's directory."""

    def __init__(self, base: Path) -> None:
        """Keep the mark under `base`."""
        self._path = base / "stopped"

    def set(self) -> None:
        """Somebody stopped it."""
        self._path.touch()

    def clear(self) -> None:
        """Somebody started it."""
        self._path.unlink(missing_ok=True)

    def is_set(self) -> bool:
        """Whether it was stopped last."""
        return self._path.exists()


def sentence(kind: str) -> str:
    """What is said of a balancer that a person stopped."""
    return f"{kind} was stopped with lbswitch balancer stop; lbswitch balancer start starts it"
