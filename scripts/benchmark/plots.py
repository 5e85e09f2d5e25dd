"""The distribution of a figure over its cases, as SVG."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmark.figures import Figure, Record
from scripts.benchmark.suites import scale, switch
from scripts.benchmark.systems.agents import WAYS

_LEAST_MS = 0.1  # on a log axis nothing is at 0; the load has a request every 0.25 ms


def draw(record: Record, directory: Path, prefix: str) -> list[str]:
    """Write what there is data for; gives the names of the files. Without matplotlib there are none, and it is said."""
    try:
        import matplotlib as mpl
    except ImportError:
        record.leave_out("plots", "matplotlib is not installed (the extra 'bench')")
        return []
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = prefix  # the same figures give the same file
    names = []
    if old := list(record.of_group(switch.LAST_OLD)):
        title = "From the command to the last request answered by the old color"
        names.append(_distribution(old, title, directory / f"{prefix}-last-old-answer.svg"))
    if grown := list(record.of_group(f"{scale.GROUP}request")):
        names += _growth(grown, directory / f"{prefix}-services.svg")
    return names


def _distribution(figures: list[Figure], title: str, path: Path) -> str:
    """A row of dots for each case, its median as a line, on a log axis."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.45 * len(figures) + 1.2), layout="constrained")
    ordered = sorted(figures, key=lambda one: one.median, reverse=True)
    for row, one in enumerate(ordered):
        color = "tab:blue" if one.case.startswith("lbswitch") else "tab:gray"
        spread = [row + (index % 7 - 3) * 0.07 for index in range(len(one.samples))]
        axes.scatter([max(sample, _LEAST_MS) for sample in one.samples], spread, s=9, alpha=0.5, color=color, lw=0)
        axes.plot([max(one.median, _LEAST_MS)] * 2, [row - 0.35, row + 0.35], color="black", lw=1.5)
    axes.set_yticks(range(len(ordered)), [f"{one.case}  {one.median:.1f}" for one in ordered])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ms (log); bar and number: median")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, axis="x", which="both", alpha=0.25)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path.name


def _growth(figures: list[Figure], path: Path) -> list[str]:
    """The switch of one service of so many, with its 5th and 95th percentile."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    drawn = False
    for balancer, way in WAYS.items():
        of_it = [one for one in figures if one.case.startswith(f"{balancer} {way}: switch 1 of ")]
        if not of_it:
            continue
        counts = [int(one.case.rpartition(" ")[2]) for one in of_it]
        below = [one.median - one.p5 for one in of_it]
        above = [one.p95 - one.median for one in of_it]
        axes.errorbar(
            counts, [one.median for one in of_it], [below, above], marker="o", capsize=3, label=f"{balancer} {way}"
        )
        drawn = True
    if drawn:
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("services configured")
        axes.set_ylabel("ms")
        axes.set_title("A switch of one service, request to answer", fontsize=10)
        axes.legend()
        axes.grid(visible=True, alpha=0.25)
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return [path.name] if drawn else []
