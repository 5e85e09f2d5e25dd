"""What every section of the configuration file is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A mapping whose keys are all known, and whose values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Misfit(NamedTuple):
    """Two settings of one section that don't fit; `at` is the key to blame, from the section down."""

    at: tuple[str, ...]
    message: str


def refuse(misfits: Iterable[Misfit]) -> None:
    """Tell pydantic of all of them at once; the error's context carries them under `misfits`."""
    found = list(misfits)
    if found:
        words = "; ".join(f"{'.'.join(misfit.at)}: {misfit.message}" for misfit in found)
        raise PydanticCustomError("misfits", "{words}", {"words": words, "misfits": found})
