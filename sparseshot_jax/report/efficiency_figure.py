"""Score over annotated objects as a picture: what was measured, what is foretold, and how surely."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparseshot_jax.efficiency import FAR, Curve
from sparseshot_jax.report.figures import LINES, MUTED, STYLE

_DRAWN = 60  # places of a curve


def efficiency_png(
    curves: Mapping[str, Curve],
    *,
    today: int,
    title: str,
    beside: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> bytes:
    """PNG of one or more curves over the same axis; the first has its intervals drawn.

    Args:
        curves: name -> curve.
        today: annotated objects that there are.
        title: of the picture.
        beside: name -> (objects, value) of what is shown below them, with an axis of its own.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        lower = list((beside or {}).items())
        heights = [3.4, *([1.3] * len(lower))]
        figure = Figure(figsize=(6.4, sum(heights) + 0.2), layout="constrained")
        rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        _draw_curves(rows[0], curves, today)
        rows[0].set_title(title)
        for axes, (name, points) in zip(rows[1:], lower):
            axes.plot(*zip(*points), "o", color=LINES[2], markersize=4)
            axes.set(ylabel=name.replace(" called ", "\ncalled ").replace(" predicted ", "\npredicted "))
            axes.set_ylim(0, None)
        _label_objects(rows[-1])
        rows[-1].set_xlabel("annotated objects")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _draw_curves(axes: Any, curves: Mapping[str, Curve], today: int) -> None:
    first = next(iter(curves.values()))
    start, stop = float(first.objects.min()), first.measured
    if first.is_law:
        stop = max(stop, min(FAR * first.measured, FAR * today))
    for place, (name, curve) in enumerate(curves.items()):
        _draw_curve(axes, name, curve, LINES[place], start, stop, banded=place == 0)
    if stop > first.measured:
        axes.axvspan(first.measured, stop, color="#f5f0e6", zorder=0, lw=0)
        axes.annotate(
            "extrapolated",
            (np.sqrt(first.measured * stop), 0.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color=MUTED,
        )
    axes.axvline(today, color=MUTED, lw=1, ls=":")
    left = today < max(stop, today) / 1.5  # else there is no room on the right
    axes.annotate(
        f" today: {today} ",
        (today, 1.0),
        xycoords=("data", "axes fraction"),
        ha="left" if left else "right",
        va="top",
        fontsize=8,
        color=MUTED,
    )
    axes.set_xscale("log")
    axes.set_xlim(start / 1.12, max(stop, today) * 1.05)
    axes.set_ylabel("score")
    axes.legend(loc="center right" if stop > first.measured else "best")


def _draw_curve(
    axes: Any, name: str, curve: Curve, colour: str, start: float, stop: float, *, banded: bool
) -> None:
    filled = {} if banded else {"markerfacecolor": "white"}
    axes.plot(curve.objects, curve.scores, "o", color=colour, markersize=4.5, zorder=3, **filled)
    if start >= curve.measured:
        axes.plot([], [], "o", color=colour, label=name, **filled)
        return
    inside = np.geomspace(start, curve.measured, _DRAWN)
    axes.plot(inside, _values(curve, inside), "-", color=colour, label=name)
    beyond = np.geomspace(curve.measured, stop, _DRAWN) if stop > curve.measured else inside[:0]
    if len(beyond):
        axes.plot(beyond, _values(curve, beyond), "--", color=colour)
    if banded and curve.spread is not None:
        place = np.concatenate([inside, beyond])
        found = [curve.at(n).intervals for n in place]
        for level, alpha in ((0.95, 0.15), (0.8, 0.22)):
            low, high = np.array([pairs[level] for pairs in found if pairs]).T
            known = np.array([bool(pairs) for pairs in found])
            axes.fill_between(
                place[known],
                low,
                high,
                color=colour,
                alpha=alpha,
                lw=0,
                label=f"{100 * level:.0f} % interval",
            )


def _values(curve: Curve, places: np.ndarray) -> list[float]:
    return [curve.at(n).value for n in places]


def _label_objects(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
