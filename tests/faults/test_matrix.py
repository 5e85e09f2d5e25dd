"""The fault matrix: every way of switching, every step that it takes, every fault that can strike there.

Cells come from the steps that are announced while the way is tried once, so a new step is covered by itself. Here the
pointer of nginx and the maps of HAProxy meet every fault, the other ways one of each kind; `scripts/faults` and
`LBSWITCH_TEST_FAULTS=full` try all.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from lbswitch import restore, switch
from tests.faults.cell import Bench
from tests.faults.kinds import QUICK, matrix
from tests.faults.shim import compiler
from tests.faults.site import program
from tests.faults.ways import all_ways

_IN_FULL = ("nginx pointer", "haproxy map")
_FAULTS = {fault.name: fault for fault in matrix()}
_CASES = [
    pytest.param(way, fault, marks=pytest.mark.xdist_group(f"faults {way}"))
    for way in all_ways()
    for fault in _FAULTS
    if way in _IN_FULL or fault in QUICK or os.environ.get("LBSWITCH_TEST_FAULTS") == "full"
]
_TAKE_ALL = ("nginx first weight", "nginx pointer", "nginx restore")


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Bench]]:
    """One site at a time: the same for all faults of a way that come one after the other."""
    current: list[Bench] = []

    def get(name: str) -> Bench:
        if compiler() is None:
            pytest.skip("needs a C compiler for the file system that fails: apt-get install gcc libc6-dev")
        way = all_ways()[name]
        if program(way.kind) is None:
            pytest.skip(f"{way.kind} is not installed")
        if not current or current[0].way.name != name:
            if current:
                current.pop().__exit__()
            current.append(Bench(way).__enter__())
        return current[0]

    yield get
    if current:
        current.pop().__exit__()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("way", "fault"), _CASES)
def test_cells(bench: Callable[[str], Bench], way: str, fault: str) -> None:
    """After this fault, at whatever step, intended is on disk and running, and the history says what happened."""
    cells = list(bench(way).cells(_FAULTS[fault]))
    for cell in cells:
        print(f"{cell.verdict:4} {cell.took_s:5.1f} s  {cell.row}: {cell.what}")
    red = [f"{cell.row}: {cell.what}" for cell in cells if cell.verdict == "RED"]
    assert not red, "\n".join(red)
    assert {cell.verdict for cell in cells} <= {"ok", "n/a"}


@pytest.mark.timeout(400)
def test_every_step_is_taken(bench: Callable[[str], Bench]) -> None:
    """A step that no way of switching takes would not be tried; one that has no name in STEPS is not known."""
    named = {*switch.STEPS, *restore.STEPS}
    left = set(named)
    for way in dict.fromkeys((*_TAKE_ALL, *all_ways())):
        taken = {row.step for row in bench(way).rows}
        assert taken <= named
        left -= taken
        if not left:
            return
    assert left == set()
