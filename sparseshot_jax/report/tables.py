"""Results as tables: one content, shown in a terminal (rich) or in HTML."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as TerminalTable

from sparseshot_jax.metrics import Evaluation, Interval, difference

MEASURES = {  # measure of an operating point -> column title
    "dice_image": "Dice, mean of images",
    "dice_pooled": "Dice, pooled",
    "iou_image": "IoU, mean of images",
    "iou_pooled": "IoU, pooled",
    "object_f1": "Object F1",
}
COLUMNS = {"fixed": "At p > 0.5", "carried_over": "At validation threshold", "oracle": "Oracle threshold"}
POINTS = {  # operating point -> how its threshold came about
    "fixed": "fixed",
    "carried_over": "from validation",
    "oracle": "oracle",
}
ORACLE = " The oracle threshold is the best one on these very images: an upper bound, no result."


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
            width = 11 if k else None  # of an interval: never cut
            table.add_column(_terminal_cell(cell), justify="right" if k else "left", min_width=width)
        for row in self.rows:
            table.add_row(*map(_terminal_cell, row))
        return table


def results_table(evaluation: Evaluation) -> Table:
    """Every measure of one evaluation, a row each, at every operating point."""
    points = evaluation["operating_points"]
    rows = [
        [Cell(text=title), *(_interval_cell(point.get(name)) for point in points.values())]
        for name, title in MEASURES.items()
        if any(name in point for point in points.values())
    ]
    header = [Cell(text=above(p["threshold"]), detail=POINTS[name]) for name, p in points.items()]
    return Table(header=[Cell(text=""), *header], rows=rows, caption=_caption(evaluation))


def comparison_table(
    evaluations: Mapping[str, Evaluation],
    *,
    measure: str = "dice_pooled",
    baseline: str | None = None,
    seed: int = 0,
) -> Table:
    """One measure of several methods, a row each, at the three operating points.

    Args:
        evaluations: name of the method -> its evaluation.
        measure: a key of `MEASURES`.
        baseline: a method from which the others' paired differences are shown, at the validation
            threshold where there is one, else at 0.5.
        seed: of the resamples of these differences.
    """
    points = [name for name in POINTS if any(name in e["operating_points"] for e in evaluations.values())]
    paired = "carried_over" if "carried_over" in points else "fixed"
    rows = []
    for method, evaluation in evaluations.items():
        row = [Cell(text=method)]
        for name in points:
            point = evaluation["operating_points"].get(name)
            threshold = above(point["threshold"]) if point and name != "fixed" else ""
            row.append(_interval_cell(point and point.get(measure), threshold))
        if method == baseline:
            row.append(Cell(text="baseline"))
        elif baseline is not None:
            other = evaluations[baseline]
            gain = difference(evaluation, other, point=paired, measure=measure, seed=seed)
            row.append(_interval_cell(gain, sign="+"))
        rows.append(row)
    header = ["Method", *(COLUMNS[name] for name in points)]
    if baseline is not None:
        header.append(f"Less {baseline}, {COLUMNS[paired].lower()}")
    caption = f"{MEASURES[measure]}. " + "".join(map(_caption, list(evaluations.values())[:1]))
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


def _caption(evaluation: Evaluation) -> str:
    images, split = evaluation["images"], evaluation["split"]
    oracle = ORACLE if "oracle" in evaluation["operating_points"] else ""
    if images == 1:
        return f"Split “{split}”, one image, hence no intervals.{oracle}"
    level = f"{100 * evaluation['level']:g} %"
    return f"Split “{split}”, {images} images; small: {level} bootstrap intervals over images.{oracle}"


def _interval_cell(interval: Interval | None, remark: str = "", sign: str = "") -> Cell:
    if interval is None:
        return Cell(text="-")
    low, high = interval["low"], interval["high"]
    to = " to " if sign else "\N{EN DASH}"
    bounds = f"{low:{sign}.3f}{to}{high:{sign}.3f}" if low is not None and high is not None else ""
    detail = "\n".join(part for part in (bounds, remark) if part)
    return Cell(text=f"{interval['mean']:{sign}.3f}", detail=detail)


def _terminal_cell(cell: Cell) -> str:
    return escape(f"{cell.text}\n{cell.detail}".strip())


def _html_cell(cell: Cell, heads: str | None = None) -> str:
    tag, scope = ("th", f" scope='{heads}'") if heads else ("td", "")
    detail = f"<small>{html.escape(cell.detail)}</small>" if cell.detail else ""
    return f"<{tag}{scope}>{html.escape(cell.text)}{detail}</{tag}>"
