"""Results as tables: one content, shown in a terminal (rich) or in HTML."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as TerminalTable

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import (
    DetectionEvaluation,
    Evaluation,
    Interval,
    detection_difference,
    difference,
)

SEGMENTATION = {  # measure of an operating point -> its title
    "dice_image": "Dice, mean of images",
    "dice_pooled": "Dice, pooled",
    "iou_image": "IoU, mean of images",
    "iou_pooled": "IoU, pooled",
    "object_f1": "Object F1",
}
DETECTION = {  # the same for objects; gates and the class of the evaluation fill the braces
    "f1_distance": "F1 within {distance_um:g} µm",
    "precision_distance": "Precision within {distance_um:g} µm",
    "recall_distance": "Recall within {distance_um:g} µm",
    "f1_iou": "F1 at IoU ≥ {iou:g}",
    "precision_iou": "Precision at IoU ≥ {iou:g}",
    "recall_iou": "Recall at IoU ≥ {iou:g}",
    "counts_mae": "Count error an image",
    "exclusive_recall": "Exclusive recall, {exclusive_class}",
}
MEASURES = {"segmentation": SEGMENTATION, "detection": DETECTION}
DEFAULTS = {"segmentation": "dice_pooled", "detection": "f1_distance"}  # what a comparison shows
COLUMNS = {
    "fixed": "At p > 0.5",
    "carried_over": "At validation threshold",
    "elkan_noto": "Elkan\N{EN DASH}Noto threshold",
    "oracle": "Oracle threshold",
}
POINTS = {  # operating point -> how its threshold came about
    "fixed": "fixed",
    "carried_over": "from validation",
    "elkan_noto": "Elkan\N{EN DASH}Noto",
    "oracle": "oracle",
}
CORRECTED = " Elkan\N{EN DASH}Noto: p > c / 2, c the mean {of} of validation."
ORACLE = " The oracle threshold is the best one on these very images: an upper bound, no result."
BY_DISTANCE = (  # the same for objects
    " Thresholds other than 0.5 are chosen by distance{too}; the oracle is the best one on these very "
    "images: an upper bound of F1 by distance alone, no result."
)
POINTS_ONLY = " All true objects are points: IoU says nothing of their extent"
PARTED = "Objects are those at predict.threshold; the threshold here is on their mean p."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A value and a smaller remark to it."""

    text: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; the first column names the row."""

    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def html(self) -> str:
        """The table as HTML."""
        head = "".join(_html_cell(cell, "col") for cell in self.header)
        body = "".join(
            "<tr>"
            + "".join(_html_cell(cell, "row" if k == 0 else None) for k, cell in enumerate(row))
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return (
            f"<div class='scroll'><table>{caption}<thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def terminal(self) -> TerminalTable:
        """The table for a terminal: `rich.print(table.terminal())`."""
        table = TerminalTable(
            caption=self.caption or None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
            show_edge=False,
        )
        for k, cell in enumerate(self.header):
            intervals = any("\N{EN DASH}" in row[k].detail for row in self.rows)
            width = 11 if k and intervals else None  # never cut
            table.add_column(_terminal_cell(cell), justify="right" if k else "left", min_width=width)
        for row in self.rows:
            table.add_row(*map(_terminal_cell, row))
        return table


def task_of(evaluation: Mapping) -> str:
    """What was evaluated: a key of `MEASURES`. Files without a task are of segmentation."""
    return evaluation.get("task", "segmentation")


def common_task(evaluations: Mapping[str, Mapping]) -> str:
    """The one task of all.

    Raises:
        InputError: they are of different tasks.
    """
    tasks = {name: task_of(one) for name, one in evaluations.items()}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name} ({task})" for name, task in tasks.items())
        raise InputError(f"Methods that are compared must have one task; got {listed}. Compare them apart.")
    return next(iter(tasks.values()))


def extents_known(evaluation: Mapping) -> bool:
    """Whether what is measured by IoU means something: it does not where all true objects are points."""
    return evaluation.get("extents_known", True)


def results_table(evaluation: Evaluation | DetectionEvaluation, *, remark: str = "") -> Table:
    """Every measure of one evaluation, a row each, at every operating point.

    Args:
        evaluation: of either task; of points, what is measured by IoU is left out.
        remark: sentence that begins the caption.
    """
    points: Mapping[str, Any] = evaluation["operating_points"]
    rows = []
    for measure in MEASURES[task_of(evaluation)]:
        if measure.endswith("_iou") and not extents_known(evaluation):
            continue
        values = [_value(evaluation, name, measure) for name in points]
        if any(value is not None for value in values):
            cells = [_interval_cell(value, digits=_digits(measure)) for value in values]
            rows.append([Cell(text=_title(evaluation, measure)), *cells])
    header = [Cell(text=above(p["threshold"]), detail=_origin(name, p)) for name, p in points.items()]
    left_out = "" if extents_known(evaluation) else f"{POINTS_ONLY}, and is left out."
    caption = f"{remark} {_caption(evaluation)}{left_out}".strip()
    return Table(header=[Cell(text=""), *header], rows=rows, caption=caption)


def comparison_table(
    evaluations: Mapping[str, Evaluation] | Mapping[str, DetectionEvaluation],
    *,
    measure: str | None = None,
    baseline: str | None = None,
    seed: int = 0,
) -> Table:
    """One measure of several methods, a row each, at every operating point.

    Args:
        evaluations: name of the method -> its evaluation; all of one task.
        measure: a key of `SEGMENTATION` or `DETECTION`; None: that of `DEFAULTS`.
        baseline: a method from which the others' paired differences are shown, at the validation
            threshold where there is one, else at 0.5.
        seed: of the resamples of these differences.

    Raises:
        InputError: methods of different tasks, a measure that the task does not have.
    """
    task = common_task(evaluations)
    measure = DEFAULTS[task] if measure is None else measure
    if measure not in MEASURES[task]:
        raise InputError(f"measure must be one of {', '.join(MEASURES[task])}; got {measure!r}.")
    digits = _digits(measure)
    points = [name for name in POINTS if any(name in e["operating_points"] for e in evaluations.values())]
    paired = "carried_over" if "carried_over" in points else "fixed"
    rows = []
    for method, evaluation in evaluations.items():
        row = [Cell(text=method)]
        for name in points:
            point = evaluation["operating_points"].get(name)
            threshold = above(point["threshold"]) if point and name != "fixed" else ""
            row.append(_interval_cell(_value(evaluation, name, measure), threshold, digits=digits))
        if method == baseline:
            row.append(Cell(text="baseline"))
        elif baseline is not None:
            compare: Any = detection_difference if task == "detection" else difference
            gain = compare(evaluation, evaluations[baseline], point=paired, measure=measure, seed=seed)
            row.append(_interval_cell(gain, sign="+", digits=digits))
        rows.append(row)
    header = ["Method", *(COLUMNS[name] for name in points)]
    if baseline is not None:
        header.append(f"Less {baseline}, {COLUMNS[paired].lower()}")
    first = next(iter(evaluations.values()))
    meaning = f"{POINTS_ONLY}." if measure.endswith("_iou") and not extents_known(first) else ""
    caption = f"{_title(first, measure)}. {_caption(first)}{meaning}"
    return Table(header=[Cell(text=title) for title in header], rows=rows, caption=caption)


def mapping_table(values: Mapping, header: tuple[str, str]) -> Table:
    """A nested mapping as dotted names and values."""
    rows = [[Cell(text=name), Cell(text=str(value))] for name, value in flattened(values).items()]
    return Table(header=[Cell(text=title) for title in header], rows=rows)


def above(threshold: float) -> str:
    """The rule of a threshold, on one line.

    >>> above(0.5).replace("\N{NO-BREAK SPACE}", " ")
    'p > 0.5'
    """
    return f"p\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}{threshold:.3g}"


def flattened(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested keys joined by dots.

    >>> flattened({"loss": {"rho": 0.5}, "seed": 0})
    {'loss.rho': 0.5, 'seed': 0}
    """
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def tile(title: str, point: str, threshold: float, measured: Interval) -> tuple[str, str, str]:
    """Title, value and remark of a measure at an operating point, to be shown large."""
    low, high = measured["low"], measured["high"]
    bounds = f"{low:.3f}\N{EN DASH}{high:.3f}, " if low is not None and high is not None else ""
    remark = f"{bounds}pooled" + ("" if point == "fixed" else f", {above(threshold)}")
    return title, f"{measured['mean']:.3f}", remark


def _origin(name: str, point: Mapping) -> str:
    return f"{POINTS[name]}\nc = {point['c']:.3g}" if "c" in point else POINTS[name]


def _value(evaluation: Mapping, point: str, measure: str) -> Interval | None:
    """A measure at an operating point; None where the evaluation has it not."""
    values = evaluation["operating_points"].get(point, {})
    if measure == "exclusive_recall":
        values = values.get("exclusive_recall", {}).get(evaluation["exclusive_class"], {})
    return values.get(measure)


def _title(evaluation: Mapping, measure: str) -> str:
    return MEASURES[task_of(evaluation)][measure].format_map(evaluation)


def _digits(measure: str) -> int:
    return 1 if measure == "counts_mae" else 3


def _caption(evaluation: Mapping) -> str:
    images, split = evaluation["images"], evaluation["split"]
    points, detection = evaluation["operating_points"], task_of(evaluation) == "detection"
    thresholds = ORACLE if "oracle" in points else ""
    if thresholds and detection:
        thresholds = BY_DISTANCE.format(too=", for the IoU too" if extents_known(evaluation) else "")
    if "elkan_noto" in points:
        of = "score of the objects" if detection else "p on the objects"
        thresholds = CORRECTED.format(of=of) + thresholds
    if images == 1:
        return f"Split “{split}”, one image, hence no intervals.{thresholds}"
    level = f"{100 * evaluation['level']:g} %"
    return f"Split “{split}”, {images} images; small: {level} bootstrap intervals over images.{thresholds}"


def _interval_cell(interval: Interval | None, remark: str = "", sign: str = "", digits: int = 3) -> Cell:
    if interval is None:
        return Cell(text="-")
    low, high, form = interval["low"], interval["high"], f"{sign}.{digits}f"
    to = " to " if sign else "\N{EN DASH}"
    bounds = f"{low:{form}}{to}{high:{form}}" if low is not None and high is not None else ""
    detail = "\n".join(part for part in (bounds, remark) if part)
    return Cell(text=f"{interval['mean']:{form}}", detail=detail)


def _terminal_cell(cell: Cell) -> str:
    return escape(f"{cell.text}\n{cell.detail}".strip())


def _html_cell(cell: Cell, heads: str | None = None) -> str:
    tag, scope = ("th", f" scope='{heads}'") if heads else ("td", "")
    detail = f"<small>{html.escape(cell.detail)}</small>" if cell.detail else ""
    return f"<{tag}{scope}>{html.escape(cell.text)}{detail}</{tag}>"
