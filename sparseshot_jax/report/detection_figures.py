"""Charts of an evaluation of detections: curves over thresholds, and which class is taken for which."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from sparseshot_jax.metrics import DetectionEvaluation
from sparseshot_jax.report.figures import INK, Chart, Line, drawn, operating_dots

MISSED, FALSE = "missed", "false alarm"


def f1_chart(evaluations: Mapping[str, DetectionEvaluation]) -> Chart:
    """Pooled F1 by distance at every threshold."""
    lines = [
        Line(label=name, x=one["curve"]["threshold"], y=one["curve"]["f1_distance"])
        for name, one in evaluations.items()
    ]
    lines += operating_dots(evaluations, "f1_distance")
    title = f"F1 within {_distance(evaluations)} over thresholds"
    return Chart(title=title, lines=lines, x_label="threshold of p", unit=True)


def precision_recall_chart(evaluations: Mapping[str, DetectionEvaluation]) -> Chart:
    """Precision over recall by distance, a point a threshold; a dot where p > 0.5."""
    lines = []
    for name, one in evaluations.items():
        average = one["ap_distance"]
        label = name if average is None else f"{name} (AP {average:.3f})"
        curve, fixed = one["curve"], one["operating_points"]["fixed"]
        # Where nothing is predicted there is no precision.
        some = [k for k, recall in enumerate(curve["recall_distance"]) if recall > 0]
        lines.append(
            Line(
                label=label,
                x=[curve["recall_distance"][k] for k in some],
                y=[curve["precision_distance"][k] for k in some],
                dot=(fixed["recall_distance"]["mean"], fixed["precision_distance"]["mean"]),
            )
        )
    title = f"Precision and recall within {_distance(evaluations)}"
    return Chart(
        title=title,
        lines=lines,
        x_label="recall (dot: p > 0.5)",
        y_label="precision",
        unit=True,
        unit_x=True,
        legend=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionChart:
    """Counts as a grid: shaded by share of the row, the numbers written in."""

    title: str
    counts: Int64[np.ndarray, "rows columns"]
    rows: Sequence[str]
    columns: Sequence[str]

    def svg(self) -> str:
        """The chart as SVG text."""
        return drawn(self._draw, height=max(2.7, 0.42 * len(self.rows) + 1.2))

    def _draw(self, axes) -> None:
        totals = self.counts.sum(1, keepdims=True)
        share = self.counts / np.maximum(totals, 1)
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for i, j in np.ndindex(*self.counts.shape):
            if i == len(self.rows) - 1 and j == len(self.columns) - 1:
                continue  # neither true nor predicted: nobody counts these
            colour = "white" if share[i, j] > 0.55 else INK
            axes.text(j, i, str(self.counts[i, j]), ha="center", va="center", color=colour)
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=25, ha="right")
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.set(title=self.title, xlabel="predicted", ylabel="true")
        axes.grid(visible=False)
        axes.tick_params(length=0)


def confusion_chart(evaluation: DetectionEvaluation, point: str) -> ConfusionChart:
    """Which class is taken for which at an operating point, by distance."""
    values = evaluation["operating_points"][point]
    names = evaluation["class_names"]
    return ConfusionChart(
        title=f"True and predicted class, p > {values['threshold']:.3g}",
        counts=np.array(values["confusion"]["distance"], np.int64),
        rows=[*names, FALSE],
        columns=[*names, MISSED],
    )


def _distance(evaluations: Mapping[str, DetectionEvaluation]) -> str:
    gates = dict.fromkeys(f"{one['distance_um']:g}" for one in evaluations.values())
    return f"{' or '.join(gates)} µm"
