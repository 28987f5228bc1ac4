"""Evaluations -> the paper's figures 4 and 5 as PNG, as wide as a page of documentation."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reproduction.plan import DATA_SETS, Budget, figure
from reproduction.runs import Evaluations, Seeds, pairs
from reproduction.tables import MEASURES, at_point
from sparseshot_jax.report.figures import LINES, MUTED, STYLE

POINTS = {"fixed": "p > 0.5", "carried_over": "threshold carried over"}
_MARKS = "os^Dv*P"
WIDTH = 9.5  # inches
_APART = 0.018  # of the share of the labels, between two methods
_BARS: dict[str, dict[str, Any]] = {
    "one seed: 95 % bootstrap interval over images": {"elinewidth": 1.0, "alpha": 0.6},
    "several seeds: ± standard deviation": {"elinewidth": 2.2, "capsize": 3.5, "capthick": 1.6},
}
_ONE, _SEVERAL = _BARS
_BELOW = "value below the panel"
_AXES = "Each panel has its own y axis."


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Point:
    """A method at a share of the labels; nan where no run has a value."""

    keep: float
    mean: float
    low: float
    high: float
    bar: str = ""  # key of _BARS; "" where there is none


def curves(found: Evaluations, number: int, budget: Budget, path: Path) -> None:
    """Figure 4 or 5: the measure over the share of the labels, at 0.5 and at the carried-over threshold."""
    import matplotlib
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(cell.data for cell in figure(number, budget)))
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(WIDTH, 3.4 * len(sets) + 0.8), layout="constrained")
        drawn: dict[str, Any] = {}
        for row, data in zip(sheet.subplots(len(sets), 2, squeeze=False), sets):
            measure = DATA_SETS[data].measure
            for axes, point in zip(row, POINTS):
                lines = {
                    method: [
                        _point(keep, seeds, point, measure) for keep, seeds in pairs(found, data, method)
                    ]
                    for method in budget.figures
                }
                drawn |= _panel(axes, lines)
                axes.set(title=DATA_SETS[data].title, ylabel=MEASURES[measure])
                axes.set_title(POINTS[point], loc="right", fontweight="normal", fontsize=9)
        # Below all axes: inside they would lie on the curves of one data set or another.
        about = [name for name in (*_BARS, _BELOW) if name in drawn]
        methods = [name for name in budget.figures if name in drawn]
        for names, place, columns, title in ((methods, "left", 2, ""), (about, "right", 1, _AXES)):
            style: dict[str, Any] = {"ncols": columns, "title": title, "title_fontsize": 8}
            style |= {"alignment": "left", "loc": f"outside lower {place}"}
            sheet.legend([drawn[n] for n in names], names, **style)
        sheet.savefig(path, dpi=120)


def _point(keep: float, seeds: Seeds, point: str, measure: str) -> _Point:
    there = [evaluation["operating_points"][point][measure] for evaluation in at_point(seeds, point)]
    if not there:
        return _Point(keep=keep, mean=math.nan, low=math.nan, high=math.nan)
    mean = statistics.mean(one["mean"] for one in there)
    if len(there) > 1:
        spread = statistics.stdev(one["mean"] for one in there)
        return _Point(keep=keep, mean=mean, low=mean - spread, high=mean + spread, bar=_SEVERAL)
    if there[0]["low"] is None:  # of a single image
        return _Point(keep=keep, mean=mean, low=mean, high=mean)
    return _Point(keep=keep, mean=mean, low=there[0]["low"], high=there[0]["high"], bar=_ONE)


def _panel(axes: Any, lines: Mapping[str, Sequence[_Point]]) -> dict[str, Any]:
    """A line a method, broken where a share has no value; what was drawn, by its name in the legend."""
    points = [point for line in lines.values() for point in line]
    shares = sorted({point.keep for point in points})
    apart = min([_APART, *(0.5 * float(gap) / len(lines) for gap in np.diff(shares))])
    bottom, top = _limits([point for point in points if not math.isnan(point.mean)])
    drawn: dict[str, Any] = {}
    for k, (method, line) in enumerate(lines.items()):
        if any(not math.isnan(point.mean) for point in line):
            # Bars at one share would hide one another.
            aside = (k - (len(lines) - 1) / 2) * apart
            drawn |= {method: _line(axes, line, aside, k)} | _bars(axes, line, aside, k, bottom)
    axes.set(xlabel="share of the labels", ylim=(bottom, top))
    axes.set_xticks(shares, [f"{100 * share:.0f} %" for share in shares])
    axes.locator_params(axis="y", nbins=7, steps=[1, 2, 5, 10])
    axes.grid(axis="x", visible=False)
    return drawn


def _line(axes: Any, line: Sequence[_Point], aside: float, k: int) -> Any:
    about = {"color": LINES[k % len(LINES)], "marker": _MARKS[k % len(_MARKS)], "markersize": 4.5}
    return axes.plot([p.keep + aside for p in line], [p.mean for p in line], **about)[0]


def _bars(axes: Any, line: Sequence[_Point], aside: float, k: int, bottom: float) -> dict[str, Any]:
    """The spread of each point; where a point lies below the panel its value at the lower rim."""
    colour, drawn = LINES[k % len(LINES)], {}
    for point in line:
        x = point.keep + aside
        if point.mean < bottom:
            rim = {"transform": axes.get_xaxis_transform(), "color": colour, "clip_on": False}
            axes.plot(x, 0.015, "v", markersize=6, **rim)
            axes.text(x, 0.05, f"{point.mean:.2f}", rotation=90, ha="center", va="bottom", fontsize=8, **rim)
            (drawn[_BELOW],) = axes.plot([], [], "v", color=MUTED, markersize=6)
        elif point.bar:
            error, style = [[point.mean - point.low], [point.high - point.mean]], _BARS[point.bar]
            axes.errorbar(x, point.mean, yerr=error, fmt="none", ecolor=colour, **style)
            drawn[point.bar] = axes.errorbar([], [], yerr=[], fmt="none", ecolor=MUTED, **style)
    return drawn


def _limits(points: Sequence[_Point]) -> tuple[float, float]:
    """Of the axis: all points, but those far below the others (three interquartile ranges, Tukey)."""
    if not points:
        return 0.0, 1.0
    first, third = np.quantile([point.mean for point in points], [0.25, 0.75])
    fence = first - max(3 * (third - first), 0.1)
    low = min(point.low for point in points if point.mean >= fence)
    high = max(point.high for point in points)
    pad = 0.05 * max(high - low, 0.05)
    # Room for the marks of the points that are left out.
    left_out = any(point.mean < fence for point in points)
    return float(low - (3 if left_out else 1) * pad), float(high + pad)
