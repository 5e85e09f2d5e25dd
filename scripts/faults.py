"""The fault matrix and the storm, as tables. See scripts/faults."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cell import Bench, Cell
from tests.faults.kinds import QUICK, Fault, matrix
from tests.faults.site import program
from tests.faults.storm import storm
from tests.faults.ways import Way, all_ways

from lbswitch import restore, switch

_MARKS = {"ok": "ok", "n/a": "-", "RED": "RED"}
_BEGIN, _END = "<!-- begin of the matrix -->", "<!-- end of the matrix -->"


@dataclass(frozen=True)
class Table:
    """All cells of one way of switching; `missing` is why there are none."""

    way: str
    cells: tuple[Cell, ...]
    took_s: float
    missing: str | None = None

    def counts(self) -> Counter[str]:
        return Counter(cell.verdict for cell in self.cells)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        if self.missing is not None:
            yield f"### {self.way}: NOT TRIED: {self.missing}"
            return
        yield f"### {self.way}: {_counted(self.counts())}"
        yield ""
        faults = list(dict.fromkeys(cell.fault for cell in self.cells))
        rows = list(dict.fromkeys(str(cell.row) for cell in self.cells))
        marks = {(str(cell.row), cell.fault): _MARKS[cell.verdict] for cell in self.cells}
        widths = [max(len(row) for row in ["step", *rows]), *(max(len(fault), 3) for fault in faults)]
        yield _line(["step", *faults], widths)
        yield _line(["-" * width for width in widths], widths)
        for row in rows:
            yield _line([row, *(marks[row, fault] for fault in faults)], widths)
        for cell in self.cells:
            if cell.verdict == "RED":
                yield f"\nRED {cell.fault} at {cell.row}: {cell.what}"

    def reasons(self) -> Counter[tuple[str, str]]:
        """Why cells do not apply, by fault."""
        return Counter((cell.what, cell.fault) for cell in self.cells if cell.verdict == "n/a")


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)) + " |"


def _counted(counts: Counter[str]) -> str:
    return f"{counts['ok']} ok, {counts['RED']} red, {counts['n/a']} do not apply"


def _try_way(way: Way, faults: Sequence[Fault]) -> Table:
    began = time.monotonic()
    if program(way.kind) is None:
        return Table(way.name, (), 0.0, f"{way.kind} is not installed")
    with Bench(way) as bench:
        cells = tuple(cell for fault in faults for cell in bench.cells(fault))
    table = Table(way.name, cells, time.monotonic() - began)
    print(f"{table}\n", flush=True)
    return table


def _try_all(ways: Sequence[Way], names: Sequence[str], at_once: int) -> list[Table]:
    # each way has faults of its own: they remember what they stopped
    with ThreadPoolExecutor(at_once) as pool:
        trials = [pool.submit(_try_way, way, [fault for fault in matrix() if fault.name in names]) for way in ways]
        return [trial.result() for trial in trials]


def _untaken(tables: Sequence[Table]) -> set[str]:
    """Steps that nobody took, where all ways were tried."""
    taken = {cell.row.step for table in tables for cell in table.cells}
    return {*switch.STEPS, *restore.STEPS} - taken


def _summary(tables: Sequence[Table]) -> Iterator[str]:
    counts = sum((table.counts() for table in tables), Counter())
    yield f"All: {_counted(counts)}, {sum(counts.values())} cells."
    yield ""
    yield "`ok`: all invariants hold afterwards; `-`: does not apply, for one of these reasons:"
    yield ""
    reasons = sum((table.reasons() for table in tables), Counter())
    for why in dict.fromkeys(why for why, _ in reasons):
        faults = {fault: count for (reason, fault), count in reasons.items() if reason == why}
        yield f"- {why}: {sum(faults.values())} cells ({', '.join(faults)})"


def _write(path: Path, text: str) -> None:
    """Between the marks of a file that has them, else all of it."""
    before, after = "", ""
    if path.exists() and _BEGIN in (whole := path.read_text()):
        before, after = whole.partition(_BEGIN)[0], whole.partition(_END)[2]
    path.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after or chr(10)}")


def _storms(seconds: float) -> bool:
    outcomes = []
    for kind in ("nginx", "haproxy"):
        if program(kind) is None:
            print(f"{kind}: NOT TRIED: it is not installed")
            continue
        outcomes.append(storm(kind, seconds))
        print(outcomes[-1], flush=True)
    return all(outcome.is_well for outcome in outcomes)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--way", action="append", choices=list(all_ways()))
    parser.add_argument("--fault", action="append", choices=[fault.name for fault in matrix()])
    parser.add_argument("--storm", type=float, metavar="SECONDS")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    parser.add_argument("--at-once", type=int, default=3, metavar="N")
    return parser.parse_args()


def main() -> int:
    options = _parse()
    if options.storm is not None:
        return 0 if _storms(options.storm) else 1
    ways = [all_ways()[name] for name in options.way or all_ways()]
    names = options.fault or (QUICK if options.quick else [fault.name for fault in matrix()])
    began = time.monotonic()
    tables = _try_all(ways, names, options.at_once)
    untaken = set() if options.way else _untaken(tables)
    summary = "\n".join(_summary(tables))
    print(f"{summary}\n\n{time.monotonic() - began:.0f} s")
    if untaken:
        print(f"RED: no way of switching takes the steps {', '.join(sorted(untaken))}")
    if options.output is not None:
        _write(options.output, "\n\n".join([summary, *(str(table) for table in tables)]))
    is_red = any(table.counts()["RED"] for table in tables)
    return 1 if is_red or untaken else 0


if __name__ == "__main__":
    sys.exit(main())
