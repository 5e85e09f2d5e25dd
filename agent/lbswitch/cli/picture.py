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
        self._values: dict[str, deque[float | None]] = {}

    def add(self, verdicts: list[dict[str, Any]]) -> None:
        """One more look."""
        for verdict in verdicts:
            values = self._values.setdefault(verdict["criterion"], deque(maxlen=_KEPT))
            values.append(verdict["value"])

    def line(self, name: str, threshold: float | None) -> str:
        """From 0 up to the threshold, or to the largest value if that is more; a gap where there was none."""
        values = self._values.get(name, ())
        top = max([threshold or 0.0, *(value for value in values if value is not None)]) or 1.0
        return "".join(" " if value is None else _bar(value / top) for value in values)


def _bar(share: float) -> str:
    return _BARS[max(0, min(len(_BARS) - 1, int(share * (len(_BARS) - 1) + 0.5)))]


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
        lines.append(paint(f"no rollback: {bake['holding']}", "red", color=color))
    problems = dict.fromkeys(_traffic(service, each).get("problem") for each in _COLORS)
    return lines + [paint(f"real traffic is not known: {each}", "yellow", color=color) for each in problems if each]


def _head(name: str, service: dict[str, Any], bake: dict[str, Any]) -> str:
    weights = service.get("weights") or {}
    shares = ", ".join(f"{color} {weights.get(color, 0)}%" for color in _COLORS)
    shield = f"; shield on {service['shield']}" if service.get("shield") == bake["color"] else ""
    state = {"baking": "is watched", "passed": "passed", "rolled-back": "was rolled back"}.get(
        bake["state"], bake["state"]
    )
    return f"{name}: {bake['color']} {state}; {shares}{shield}"


def _progress(bake: dict[str, Any], now: float, *, color: bool) -> str:
    """The whole watch, or a canary's step, and what comes then."""
    begin, end = _span(bake)
    at = min(now, bake["ended_at"] or now)
    done = min(1.0, max(0.0, (at - begin) / max(0.001, end - begin)))
    filled = round(done * _WIDTH)
    bar = paint("█" * filled, "green", color=color) + "░" * (_WIDTH - filled)
    return f"{bar} {done * 100:3.0f}%  {remaining(bake, now)}"


def _span(bake: dict[str, Any]) -> tuple[float, float]:
    if bake["steps"]:
        return bake["stepped_at"], bake["stepped_at"] + bake["every_s"]
    return bake["since"], bake["until"]


def remaining(bake: dict[str, Any], now: float) -> str:
    """Until the watch ends, or until a canary's next step."""
    if bake["ended_at"]:
        return f"after {_clock(bake['ended_at'] - bake['since'])}"
    left = _span(bake)[1] - now
    if not bake["steps"]:
        return f"{_clock(left)} left"
    step = ", then ".join(f"{step}%" for step in bake["steps"])
    return f"{step} in {_clock(left)}" if left > 0 else f"{step} as soon as every criterion passes"


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def _traffic(service: dict[str, Any], color: str) -> dict[str, Any]:
    return (service["evidence"].get(color) or {}).get("traffic") or {}


def _colors(service: dict[str, Any]) -> list[list[Cell]]:
    found = {color: _traffic(service, color) for color in _COLORS}
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
