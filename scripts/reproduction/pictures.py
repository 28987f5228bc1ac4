"""Evaluations and runs -> the paper's figures 3 to 5 as PNG."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduction.plan import DATA_SETS, Budget, Cell, figure
from reproduction.runs import Bench, Evaluations, Seeds, pairs
from reproduction.tables import POINTS, at_point, value_of
from sparseshot_jax import pictures
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.report.figures import LINES, STYLE

_MARKS = "os^Dv*P"


def curves(found: Evaluations, number: int, budget: Budget, path: Path) -> None:
    """Figure 4 or 5: the measure over the share of the labels, at 0.5 and at the carried-over threshold."""
    import matplotlib
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(cell.data for cell in figure(number, budget)))
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(9.5, 3.6 * len(sets) + 0.5), layout="constrained")
        grid = sheet.subplots(len(sets), 2, sharey=True, squeeze=False)
        drawn: dict[str, Any] = {}
        for row, data in zip(grid, sets):
            for axes, point in zip(row, ("fixed", "carried_over")):
                for k, method in enumerate(budget.figures):
                    line = _curve(axes, list(pairs(found, data, method)), data, point, k)
                    drawn |= {} if line is None else {method: line}
                axes.set(title=f"{DATA_SETS[data].title}: {POINTS[point]}", ylim=(-0.02, 1.0))
                axes.set(xlabel="share of the labels", ylabel=DATA_SETS[data].measure.replace("_", " "))
        # Below all axes: inside it would lie on the curves of one data set or another.
        sheet.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=3)
        sheet.savefig(path, dpi=120)


def _curve(axes: Any, cells: Sequence[tuple[float, Seeds]], data: str, point: str, k: int) -> Any:
    """One method's line, broken where a share has no value; None where none has, and nothing is drawn."""
    measure = DATA_SETS[data].measure
    values = [
        [value_of(evaluation, point, measure) for evaluation in at_point(seeds, point)] for _, seeds in cells
    ]
    if not any(values):
        return None
    shares = [keep for keep, _ in cells]
    means = [statistics.mean(some) if some else float("nan") for some in values]
    spreads = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in values]
    about = {"color": LINES[k % len(LINES)], "marker": _MARKS[k % len(_MARKS)], "capsize": 2}
    return axes.errorbar(shares, means, yerr=spreads, **about)


def examples(bench: Bench, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Figure 3: a crop of a test image of every data set, truth and what each method finds at p > 0.5.

    A method whose run diverged is left out.
    """
    written = []
    for data in dict.fromkeys(cell.data for cell in cells):
        own = {
            cell.method: bench.run(cell, cell.seeds[0], DATA_SETS[data].last)
            for cell in cells
            if cell.data == data
        }
        runs = {method: run for method, run in own.items() if run is not None}
        if not runs:
            continue
        splits = next(iter(runs.values())).splits()
        # One image: the first of the test part.
        shown = Splits(train=(), validation=(), test=splits.test[:1])
        panel = pictures.panels(runs, shown)[0]
        written.append(_sheet(panel, DATA_SETS[data].title, folder / f"figure_3_{data}.png"))
    return written


def _sheet(panel: Any, title: str, path: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = panel.pictures()
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(3.1 * len(columns), 3.9), layout="constrained")
        for axes, (name, picture) in zip(sheet.subplots(1, len(columns)), columns.items()):
            axes.imshow(picture)
            axes.set_title(name)
            axes.axis("off")
        sheet.suptitle(f"{title}, 30 % of the labels, p > 0.5")
        marks = [Patch(color=tuple(c / 255 for c in colour), label=text) for colour, text in panel.legend()]
        sheet.legend(handles=marks, loc="outside lower center", ncols=3)
        sheet.savefig(path, dpi=120)
    return path
