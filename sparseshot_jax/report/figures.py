"""Charts as SVG text, drawn by matplotlib without a display.

matplotlib is imported inside the functions: whoever writes no report does not wait for it.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparseshot_jax.metrics import Evaluation
from sparseshot_jax.report import tables

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
POINTS = 400  # of a drawn curve; longer ones are averaged in blocks
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "svg.hashsalt": "sparseshot",  # the same input gives the same file
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """A curve of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    marked: bool = False  # a dot at every value
    colour: str | None = None  # None takes the next of LINES
    dot: tuple[float, float] | None = None  # x, y of a place on it that is marked


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """A titled set of curves over one axis."""

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    y_label: str = ""
    unit: bool = False  # values lie in [0, 1]
    unit_x: bool = False  # and so does what they are drawn over
    legend: bool = False  # shown for a single line, too
    from_zero: bool = False  # the axis starts at 0, so that noise does not look like a trend

    def svg(self) -> str:
        """The chart as SVG text."""
        return drawn(self._draw)

    def _draw(self, axes) -> None:
        for line, colour in zip(self.lines, LINES * math.ceil(len(self.lines) / len(LINES))):
            x, y = _thinned(line)
            style = "--" if line.dashed else "-"
            dot = "o" if line.marked else None
            colour = line.colour or colour
            axes.plot(x, y, style, color=colour, label=line.label, marker=dot)
            if line.dot is not None:
                axes.plot(*line.dot, "o", color=colour, markersize=6)
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        if self.unit_x:
            axes.set(xlim=(-0.02, 1.02))
        if self.unit:
            axes.set(ylim=(-0.02, 1.02))
        elif self.from_zero:
            axes.set(ylim=(0, None))
        if len(self.lines) > 1 or self.legend:
            axes.legend(loc="best")


def training_charts(rows: Sequence[Mapping]) -> list[Chart]:
    """The charts of one run's log; what the log does not hold is left out."""
    train = [row for row in rows if row.get("event") == "train"]
    validation = [row for row in rows if row.get("event") == "validation"]
    measures = _measures(validation)
    wait = [v for v in _column(train, "wait_share") if math.isfinite(v)]
    waiting = f" (waiting for data: {np.median(wait):.0%})" if wait else ""
    charts = [
        Chart(title="Loss", lines=_lines(train, _losses(train))),
        Chart(
            title="Mean p and threshold of the mask",
            lines=_lines(
                train,
                {"p_annotated": "on annotated", "p_unannotated": "on unannotated", "rho": "rho"},
                dashed=("rho",),
            ),
            unit=True,
        ),
        Chart(
            title="Share of unannotated ground kept",
            lines=_lines(train, {"keep_rate": "keep rate"}),
            unit=True,
        ),
        Chart(
            title="Validation",
            lines=_lines(validation, {m: m.replace("_", " ") for m in measures}, marked=True),
        ),
        Chart(title="Learning rate", lines=_lines(train, {"learning_rate": "learning rate"})),
        Chart(
            title=f"Images a second{waiting}",
            lines=_lines(train, {"images_per_second": "images a second"}),
            from_zero=True,
        ),
    ]
    return [chart for chart in charts if chart.lines]


def comparison_charts(logs: Mapping[str, Sequence[Mapping]]) -> list[Chart]:
    """One chart for each logged quantity, one curve for each method."""
    titles = {
        "loss": "Loss",
        "keep_rate": "Share of unannotated ground kept",
        "p_annotated": "Mean p on annotated ground",
        "p_unannotated": "Mean p on unannotated ground",
    }
    validation = [row for rows in logs.values() for row in rows if row.get("event") == "validation"]
    measures = [key for key in _measures(validation) if "threshold" not in key]
    charts = []
    for key in [*titles, *measures]:
        lines = [
            dataclasses.replace(line, label=method)
            for method, rows in logs.items()
            for line in _lines(
                [row for row in rows if row.get("event") == ("train" if key in titles else "validation")],
                {key: key},
                marked=key in measures,
            )
        ]
        title = titles.get(key, f"Validation: {key.replace('_', ' ')}")
        charts.append(Chart(title=title, lines=lines, unit=key in titles and key != "loss"))
    return [chart for chart in charts if chart.lines]


def threshold_chart(evaluations: Mapping[str, Evaluation]) -> Chart:
    """Pooled Dice at every threshold: whether a method fails, or only its operating point does."""
    lines = [
        Line(label=name, x=e["dice_by_threshold"]["threshold"], y=e["dice_by_threshold"]["dice"])
        for name, e in evaluations.items()
    ]
    lines += operating_dots(evaluations, "dice_pooled")
    return Chart(title="Pooled Dice over thresholds", lines=lines, x_label="threshold of p", unit=True)


def operating_dots(evaluations: Mapping[str, Mapping], measure: str) -> list[Line]:
    """The operating points of a single evaluation, a dot each; of several they would hide the curves."""
    if len(evaluations) > 1:
        return []
    return [
        Line(
            label=f"{tables.POINTS[name]}, {tables.above(point['threshold'])}",
            x=[point["threshold"]],
            y=[point[measure]["mean"]],
            marked=True,
        )
        for evaluation in evaluations.values()
        for name, point in evaluation["operating_points"].items()
    ]


def reliability_chart(evaluations: Mapping[str, Evaluation]) -> Chart:
    """Share of foreground among pixels of like p; a calibrated model lies on the diagonal."""
    lines = [Line(label="calibrated", x=[0.0, 1.0], y=[0.0, 1.0], dashed=True, colour=MUTED)]
    for name, evaluation in evaluations.items():
        found = evaluation["reliability"]
        pairs = [(p, o) for p, o in zip(found["mean_p"], found["observed"]) if p is not None]
        error = found["expected_calibration_error"]
        label = name if error is None else f"{name} (error {error:.3f})"
        lines.append(Line(label=label, x=[p for p, _ in pairs], y=[o for _, o in pairs], marked=True))
    return Chart(title="Reliability of p", lines=lines[1:] + lines[:1], x_label="mean p", unit=True)


def drawn(draw: Callable[[Any], None], *, height: float = 2.7) -> str:
    """What `draw` puts on empty axes, as SVG text; `height` in inches, 4.4 wide."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _column(rows: Sequence[Mapping], key: str) -> list[float]:
    """Values of a key; nan where it is absent, null or infinite."""
    values = [row.get(key) for row in rows]
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in values]


def _losses(rows: Sequence[Mapping]) -> dict[str, str]:
    """The loss, the same with dropped terms capped, and the losses that it is the sum of."""
    names = dict.fromkeys(["loss", "capped_loss", *(key for row in rows for key in row)])
    return {name: name.replace("_", " ") for name in names if name == "loss" or name.endswith("_loss")}


def _measures(rows: Sequence[Mapping]) -> list[str]:
    """Numeric keys of the validation rows, in the order in which they appear."""
    keys = dict.fromkeys(key for row in rows for key in row)
    aside = {"event", "step", "seconds", "time"}
    return [k for k in keys if k not in aside and any(map(math.isfinite, _column(rows, k)))]


def _lines(
    rows: Sequence[Mapping], keys: Mapping[str, str], dashed: Sequence[str] = (), marked: bool = False
) -> list[Line]:
    steps = _column(rows, "step")
    columns = {key: _column(rows, key) for key in keys}
    return [
        Line(label=keys[key], x=steps, y=values, dashed=key in dashed, marked=marked)
        for key, values in columns.items()
        if any(map(math.isfinite, values))
    ]


def _thinned(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` values, each the mean of a block of neighbours."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    block = math.ceil(len(x) / POINTS)
    if block <= 1:
        return x, y
    starts = np.arange(0, len(x), block)
    good = np.isfinite(y)
    counts = np.add.reduceat(good.astype(float), starts)
    sums = np.add.reduceat(np.where(good, y, 0.0), starts)
    return x[starts], np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
