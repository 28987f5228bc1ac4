"""What an evaluation of detections says class by class, as tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from sparseshot_jax.metrics import DetectionEvaluation, Interval
from sparseshot_jax.report.tables import COLUMNS, Cell, Table, above, extents_known

CONFUSION = (
    "In the chart a row is the class of a true object, a column the class of the prediction matched to it "
    "one to one, centres within {distance_um:g} µm. True objects of unknown class are left out."
)
AVERAGE = "AP: average precision over all thresholds, with no limit on detections."
ANY = "any class"


def shown_point(evaluation: DetectionEvaluation) -> str:
    """The operating point of tables that show one: the validation threshold, else p > 0.5."""
    return "carried_over" if "carried_over" in evaluation["operating_points"] else "fixed"


def class_table(evaluation: DetectionEvaluation) -> Table:
    """Every class, a row each, and objects of any class, at one operating point."""
    point = shown_point(evaluation)
    values = evaluation["operating_points"][point]
    exclusive = values["exclusive_recall"]  # empty with a single class
    rows = [
        _ratios(name, values["per_class"][name], exclusive.get(name)) for name in evaluation["class_names"]
    ]
    if exclusive:
        rows.append([*_ratios(ANY, values, None), Cell(text="")])
    header = ["Class", "F1", "Precision", "Recall", *(["Exclusive recall"] if exclusive else [])]
    caption = (
        f"{COLUMNS[point]}, {above(values['threshold'])}; centres within {evaluation['distance_um']:g} µm."
    )
    return Table(header=[Cell(text=title) for title in header], rows=rows, caption=caption)


def class_count_table(evaluation: DetectionEvaluation) -> Table:
    """Numbers of objects and average precision of every class, a row each, and of any class."""
    point = shown_point(evaluation)
    values = evaluation["operating_points"][point]
    rows = []
    for name in evaluation["class_names"]:
        one, average = values["per_class"][name], evaluation["ap_per_class"][name]
        averages = [average[gate] for gate in _gates(evaluation)]
        rows.append(_counts(name, one["truth"], one["predicted"], averages))
    true, predicted = np.sum([image["points"][point]["counts"] for image in evaluation["per_image"]], axis=0)
    rows.append(_counts(ANY, true, predicted, [evaluation[f"ap_{gate}"] for gate in _gates(evaluation)]))
    header = ("Class", "True", "Predicted", *_average_titles(evaluation))
    caption = f"Predicted: {above(values['threshold'])}. {AVERAGE}"
    return Table(header=[Cell(text=title) for title in header], rows=rows, caption=caption)


def precision_table(evaluations: Mapping[str, DetectionEvaluation]) -> Table:
    """Average precision and errors of counts of several methods, a row each."""
    first = next(iter(evaluations.values()))
    header = ("Method", *_average_titles(first), "Count error an image, p > 0.5")
    rows = [
        [
            Cell(text=name),
            *(_number(one[f"ap_{gate}"]) for gate in _gates(first)),
            _cell(one["operating_points"]["fixed"]["counts_mae"], 1),
        ]
        for name, one in evaluations.items()
    ]
    return Table(
        header=[Cell(text=title) for title in header], rows=rows, caption=f"{AVERAGE} Objects of any class."
    )


def _ratios(name: str, measured: Mapping, exclusive: Mapping | None) -> list[Cell]:
    """A row of `class_table`."""
    ratios = [_cell(measured[f"{ratio}_distance"]) for ratio in ("f1", "precision", "recall")]
    return [Cell(text=name), *ratios, *([] if exclusive is None else [_cell(exclusive["exclusive_recall"])])]


def _counts(
    name: str, true: int | np.integer, predicted: int | np.integer, averages: Sequence[float | None]
) -> list[Cell]:
    """A row of `class_count_table`."""
    return [Cell(text=name), Cell(text=str(true)), Cell(text=str(predicted)), *map(_number, averages)]


def _gates(evaluation: DetectionEvaluation) -> tuple[str, ...]:
    """The gates at which average precision means something."""
    return ("distance", "iou") if extents_known(evaluation) else ("distance",)


def _average_titles(evaluation: DetectionEvaluation) -> list[str]:
    titles = {
        "distance": f"AP within {evaluation['distance_um']:g} µm",
        "iou": f"AP at IoU ≥ {evaluation['iou']:g}",
    }
    return [titles[gate] for gate in _gates(evaluation)]


def _cell(interval: Interval, digits: int = 3) -> Cell:
    low, high = interval["low"], interval["high"]
    bounds = "" if low is None or high is None else f"{low:.{digits}f}\N{EN DASH}{high:.{digits}f}"
    return Cell(text=f"{interval['mean']:.{digits}f}", detail=bounds)


def _number(value: float | None) -> Cell:
    return Cell(text="-" if value is None else f"{value:.3f}")
