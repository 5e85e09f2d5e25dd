"""What every suite is given: how thorough to be, where to write the results, and the servers to switch between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from scripts.benchmark.bounds import TooLong
from scripts.benchmark.figures import Record
from scripts.benchmark.native import Origin
from scripts.benchmark.place import Place
from scripts.benchmark.systems.system import Absent, Servers, System

S = TypeVar("S", bound=System)
BROKEN = (OSError, RuntimeError, AssertionError, LookupError, ValueError)  # what a system that fails raises


@dataclass(slots=True)
class Bench:
    """`is_quick`: fewer rounds. `balancers`: which of nginx and HAProxy."""

    is_quick: bool
    balancers: Sequence[str]
    place: Place
    record: Record = field(default_factory=Record)

    @contextlib.contextmanager
    def servers(self) -> Iterator[Servers]:
        """Two of the small origins, blue and green."""
        with Origin("blue") as blue, Origin("green") as green:
            yield Servers(blue.address, green.address)

    @contextlib.contextmanager
    def running(self, system: type[S], servers: Servers) -> Iterator[S]:
        """It, running on blue. Raises: Absent, and what `BROKEN` names."""
        with system(servers, self.place.directory()) as made:
            self.record.version(made.version)
            yield made

    @contextlib.contextmanager
    def survive(self, what: str) -> Iterator[None]:
        """Whatever is absent or fails in the block is recorded, and the run goes on after it."""
        try:
            yield
        except Absent as error:
            self.record.leave_out(what, str(error))
        except BROKEN as error:
            # An agent that is interrupted while it starts says so as an AssertionError.
            if isinstance(error.__cause__, KeyboardInterrupt | TooLong):
                raise error.__cause__ from None
            self.record.fail(what, error)
