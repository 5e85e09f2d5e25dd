"""`scripts/bench`: run the suites, write what was measured, print it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark import bounds, machine, markdown, plots, programs, promises, summary
from scripts.benchmark.bench import Bench
from scripts.benchmark.figures import Record, say
from scripts.benchmark.place import Place
from scripts.benchmark.suites import SUITES

from lbswitch import __version__

_BALANCERS = ("nginx", "haproxy")
_DOCS = Path(__file__).resolve().parents[2] / "docs"
_RESULTS = _DOCS / "bench"
_PERFORMANCE = _DOCS / "performance.md"


def main() -> int:
    """Ends with 1 when something could not be measured that should have been; a missed promise is no failure."""
    options = _options()
    bounds.end_cleanly_on_sigterm()
    load_before = os.getloadavg()[0]
    with Place(owns_children=True) as place:
        bench = Bench(options.quick, _present(options.balancer), place)
        _remember_versions(bench)
        is_whole = _measure(bench, options.only)
    _leave_out_missing(bench, options.balancer)
    _publish(bench.record, machine.describe(load_before), options, _output(options) if is_whole else None)
    return 1 if bench.record.failures else 0


def _present(balancers: Sequence[str]) -> list[str]:
    """Those that are installed. Exits with 1 when none is."""
    present = [balancer for balancer in balancers if programs.of_the_host(balancer)]
    if not present:
        sys.exit(f"scripts/bench: none of {', '.join(balancers)} is installed")
    return present


def _remember_versions(bench: Bench) -> None:
    for balancer in bench.balancers:
        with bench.survive(f"the version of {balancer}"):
            bench.record.version(programs.version_of_the_host(balancer))


def _leave_out_missing(bench: Bench, balancers: Sequence[str]) -> None:
    for balancer in balancers:
        if balancer not in bench.balancers:
            bench.record.leave_out(balancer, "it is not installed")


def _measure(bench: Bench, suites: Sequence[str]) -> bool:
    """Whether nobody interrupted it. A suite that fails or takes too long is recorded, and the next one runs."""
    for name in suites:
        run, limit_s = SUITES[name]
        began = time.monotonic()
        try:
            with bounds.at_most(limit_s, name), bench.survive(name):
                run(bench)
        except bounds.TooLong as error:
            bench.record.fail(name, error)
            bench.place.sweep()
        except KeyboardInterrupt as error:
            bench.record.fail(name, error)
            return False
        say(f"-- {name}: {time.monotonic() - began:.0f} s")
    return True


def _output(options: argparse.Namespace) -> Path | None:
    """Where results go: a run that is not whole must not replace one that was."""
    is_whole = not options.quick and len(options.only) == len(SUITES) and len(options.balancer) == len(_BALANCERS)
    return options.output or (_RESULTS if is_whole else None)


def _publish(record: Record, described: Mapping[str, str], options: argparse.Namespace, output: Path | None) -> None:
    judged = promises.judge(record, is_quick=options.quick)
    drawn: list[str] = []
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw(record, output, __version__)
        document = _document(record, described, judged, options)
        (output / f"{__version__}.json").write_text(json.dumps(document) + "\n")
    page = markdown.page(record, described, judged, drawn)
    if output is not None:
        (output / f"{__version__}.md").write_text(page)
    if output == _RESULTS:
        _PERFORMANCE.write_text(summary.fill(_PERFORMANCE.read_text(), record, described["date"]))
    print(page)


def _document(
    record: Record, described: Mapping[str, str], judged: list[promises.Promise], options: argparse.Namespace
) -> dict[str, Any]:
    """All of it as JSON values."""
    return {
        "machine": dict(described),
        "quick": options.quick,
        "compared": sorted(record.versions),
        "left_out": record.left_out,
        "failures": record.failures,
        "promises": [{**one._asdict(), "verdict": one.verdict} for one in judged],
        "figures": [figure.to_json() | {"ratio": record.ratio(figure)} for figure in record.figures],
        "counts": [count.to_json() for count in record.counts],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=tuple(SUITES))
    parser.add_argument("--balancer", action="append", choices=_BALANCERS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.only = [name for name in SUITES if not options.only or name in options.only]
    options.balancer = [name for name in _BALANCERS if not options.balancer or name in options.balancer]
    return options


if __name__ == "__main__":
    sys.exit(main())
