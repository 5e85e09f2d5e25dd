"""Questions that init may have, whoever answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lbswitch.setup.wishes import Missing


class Option(NamedTuple):
    """One answer, and what it means."""

    value: str
    label: str


class Ask(Protocol):
    """Answers a question with one of the options, or with text; `why` is one line."""

    def choose(self, flag: str, question: str, why: str, options: Sequence[Option], default: str | None) -> str:
        """The value of an option. Raises: Missing."""

    def text(self, flag: str, question: str, why: str, default: str | None) -> str:
        """Any text. Raises: Missing."""


class Nobody:
    """Takes what is proposed; where nothing can be proposed, the flag has to say it."""

    def choose(self, flag: str, question: str, why: str, options: Sequence[Option], default: str | None) -> str:  # noqa: ARG002 - the port's signature
        """The default. Raises: Missing with the options."""
        if default is None:
            listed = "".join(f"\n  {option.value}: {option.label}" for option in options)
            raise Missing(flag, f"{question}{listed}" if options else question)
        return default

    def text(self, flag: str, question: str, why: str, default: str | None) -> str:
        """The default. Raises: Missing."""
        if default is None:
            raise Missing(flag, f"{question} {why}".strip())
        return default
