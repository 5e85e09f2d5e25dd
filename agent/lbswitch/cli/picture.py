"""The picture that `monitor` draws: both colors side by side, every criterion with a plot, and how far it is."""

from __future__ import annotations

from collections import deque
from typing import Any

from lbswitch.cli.output import Cell, paint, table

_COLORS = ("blue", "green")
_BARS = "▁▂▃▄▅▆▇█"
_KEPT = 40
_WIDTH = 40
_OUTCOME_STYLES = {"pass": "green", "breach": "red", "insufficient": "yellow"}
_HEADER = ("CRITERION", "VERDICT", "VALUE", "THRESHOLD", "WINDOW", "SAMPLES", "LATELY")


class Plots:
    """The last values of each criterion."""

    def __init__(self) -> None:
        """Empty."""
        self._values: dict[str, deque[float]] = {}

    def add(self, verdicts: list[dict[str, Any]]) -> None:
        """One more look."""
        for verdict in verdicts:
            values = self._values.setdefault(verdict["criterion"], deque(maxlen=_KEPT))
            values.append(float(verdict["value"] or 0.0))

    def line(self, name: str, threshold: float | None) -> str:
        """From 0 up to the threshold, or to the largest value if that is more."""
        values = self._values.get(name, ())
        top = max([*values, threshold or 0.0]) or 1.0
        return "".join(_BARS[min(len(_BARS) - 1, int(value / top * (len(_BARS) - 1) + 0.5))] for value in values)


def picture(name: str, service: dict[str, Any], plots: Plots, now: float, *, color: bool) -> list[str]:
    """Lines for a terminal, or for a page."""
    bake = service["bake"]
    lines = [_head(name, service, bake), _progress(bake, now, color=color), ""]
    lines += table(("", *_COLORS), _colors(service), color=color)
    verdicts = bake.get("verdicts") or []
    if verdicts:
        lines += ["", *table(_HEADER, [_verdict(verdict, plots) for verdict in verdicts], color=color)]
    lines += ["", *(paint(each, "red", color=color) for each in bake["breaches"])]
    if bake.get("holding"):
        lines.append(paint(f"holding: {bake['holding']}", "red", color=color))
    return lines


def _head(name: str, service: dict[str, Any], bake: dict[str, Any]) -> str:
    weights = service.get("weights") or {}
    shares = ", ".join(f"{color} {weights.get(color, 0)}%" for color in _COLORS)
    steps = f"; next steps {', '.join(f'{step}%' for step in bake['steps'])}" if bake["steps"] else ""
    shield = f"; shield on {service['shield']}" if service.get("shield") == bake["color"] else ""
    return f"{name}: {bake['color']} is watched ({bake['state']}); {shares}{steps}{shield}"


def _progress(bake: dict[str, Any], now: float, *, color: bool) -> str:
    whole = max(0.001, bake["until"] - bake["since"])
    done = min(1.0, max(0.0, (now - bake["since"]) / whole))
    filled = round(done * _WIDTH)
    left = max(0, round(bake["until"] - now))
    bar = paint("█" * filled, "green", color=color) + "░" * (_WIDTH - filled)
    return f"{bar} {done * 100:3.0f}%  {left // 60}:{left % 60:02d} left"


def _colors(service: dict[str, Any]) -> list[list[Cell]]:
    found = {color: (service["evidence"].get(color) or {}).get("traffic") or {} for color in _COLORS}
    rows = [
        ("requests/s", "requests_per_s", "{:,.1f}"),
        ("errors/s", "errors_per_s", "{:,.1f}"),
        ("error ratio", "error_ratio", "{:.2%}"),
    ]
    lines = [
        [Cell(title), *(Cell(_text(found[color].get(key), form)) for color in _COLORS)] for title, key, form in rows
    ]
    for quantile in ("p50", "p95", "p99"):
        values = [(found[color].get("latency_ms") or {}).get(quantile) for color in _COLORS]
        lines.append([Cell(f"{quantile} ms"), *(Cell(_text(value, "{:,.1f}")) for value in values)])
    lines.append(
        [Cell("healthy"), *(Cell(f"{service[color]['healthy']}/{service[color]['total']}") for color in _COLORS)]
    )
    return lines


def _verdict(verdict: dict[str, Any], plots: Plots) -> list[Cell]:
    outcome = verdict["outcome"]
    name, threshold = verdict["criterion"], verdict["threshold"]
    limit = "-" if threshold is None else f"{verdict['operator']} {threshold:g}"
    return [
        Cell(name),
        Cell(outcome, _OUTCOME_STYLES[outcome]),
        Cell(_text(verdict["value"], "{:.4g}")),
        Cell(limit),
        Cell(f"{verdict['window_s']:g}s"),
        Cell(f"{verdict['samples']:,}"),
        Cell(plots.line(name, threshold)),
    ]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
