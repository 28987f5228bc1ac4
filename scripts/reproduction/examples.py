"""Evaluations and runs -> the paper's figure 3 as PNG: crops of test images, and what is found in them."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reproduction.pictures import WIDTH
from reproduction.plan import DATA_SETS, Cell
from reproduction.runs import Bench, Evaluations
from sparseshot_jax import pictures
from sparseshot_jax.data.cases import Splits
from sparseshot_jax.report import DetectionPanel, Panel
from sparseshot_jax.report.figures import STYLE
from sparseshot_jax.report.overlay import COLOURS, Colour
from sparseshot_jax.report.panels import prediction_layers
from sparseshot_jax.report.shapes import draw_shapes

_SIDE_PX = 900  # of a detector's picture
_LINE_PX = 6.0
_LETTERS = 44  # of a line of the legend beside the pictures


def examples(found: Evaluations, bench: Bench, cells: Sequence[Cell], folder: Path) -> dict[Path, str]:
    """Figure 3: a crop of a test image of every data set, truth and what each method finds at p > 0.5.

    The image is the one of median score; a method whose run diverged is left out.

    Returns:
        Picture -> what it shows, a sentence.
    """
    written = {}
    for data in dict.fromkeys(cell.data for cell in cells):
        own = [cell for cell in cells if cell.data == data]
        ran = {cell.method: bench.run(cell, cell.seeds[0], DATA_SETS[data].last) for cell in own}
        runs = {method: run for method, run in ran.items() if run is not None}
        if not runs:
            continue
        scored = [found[data, cell.method, cell.keep][cell.seeds[0]] for cell in own if cell.method in runs]
        name = _typical([evaluation for evaluation in scored if evaluation is not None])
        test = next(iter(runs.values())).splits().test
        shown = Splits(train=(), validation=(), test=tuple(case for case in test if case.name == name))
        path = folder / f"figure_3_{data}.png"
        _sheet(pictures.panels(runs, shown)[0], DATA_SETS[data].title, name, path)
        written[path] = (
            f"{DATA_SETS[data].title}: a crop of test image {name}, its true objects, and what "
            f"{'; '.join(runs)} find at p > 0.5 from 30 % of the labels."
        )
    return written


def _typical(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The image whose score at 0.5, the mean of all methods, is the median; the lower of two."""
    scores: dict[str, float] = {}
    for image in (image for evaluation in evaluations for image in evaluation["per_image"]):
        scores[image["name"]] = scores.get(image["name"], 0.0) + _score(image["points"]["fixed"])
    return sorted(scores, key=scores.__getitem__)[(len(scores) - 1) // 2]


def _score(point: Mapping[str, Any]) -> float:
    """Dice of an image, or F1 by distance."""
    if "dice" in point:
        return point["dice"]
    hits, false, missed = point["distance"]
    return 2 * hits / max(2 * hits + false + missed, 1)


def _sheet(panel: Panel | DetectionPanel, title: str, image: str, path: Path) -> None:
    """Image, truth and legend above, the methods below, three to a row."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = _columns(panel)
    rows = 1 + math.ceil(len(panel.predictions) / 3)
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(WIDTH, 3.45 * rows + 0.25), layout="constrained")
        cells = sheet.subplots(rows, 3, squeeze=False).ravel()
        for axes in cells:
            axes.axis("off")
        for axes, name in zip([*cells[:2], *cells[3:]], ["Image", "Truth", *panel.predictions]):
            axes.imshow(columns[name])
            axes.set_title(name)
        sheet.suptitle(f"{title}: 30 % of the labels, p > 0.5\n", fontweight="bold", x=0.004, ha="left")
        marks = [
            Patch(color=(red / 255, green / 255, blue / 255), label=textwrap.fill(text, _LETTERS))
            for (red, green, blue), text in _legend(panel)
        ]
        about = f"Crop of test image {image}, whose score at 0.5, the mean of the methods, is the median."
        options: dict[str, Any] = {"alignment": "left", "fontsize": 8.5, "title_fontsize": 8.5}
        options |= {"labelspacing": 1.0, "handlelength": 1.5}
        legend = cells[2].legend(
            handles=marks, loc="center left", title=textwrap.fill(about, _LETTERS), **options
        )
        legend.set_in_layout(False)  # else a long line would take width from the pictures
        sheet.savefig(path, dpi=120)


def _columns(panel: Panel | DetectionPanel) -> dict[str, np.ndarray]:
    """The pictures of a panel; what detectors find in whole lines: dashes of small circles do not show."""
    columns = panel.pictures()
    if isinstance(panel, DetectionPanel):
        about = {"circles": panel.circles, "side_px": _SIDE_PX, "line_px": _LINE_PX}
        for method in panel.predictions:
            layers = [dataclasses.replace(one, dashed=False) for one in panel.prediction_layers(method)]
            columns[method] = draw_shapes(panel.image, layers, **about)
    return columns


def _legend(panel: Panel | DetectionPanel) -> list[tuple[Colour, str]]:
    """Colours that the pictures show, and what they say; nothing is marked here, and nothing dashed."""
    there = {COLOURS["truth"], *_kinds(panel)}
    return [
        (colour, text.replace("marked or ", "").replace(" (dashed)", ""))
        for colour, text in panel.legend()
        if colour in there
    ]


def _kinds(panel: Panel | DetectionPanel) -> set[Colour]:
    """Colours of what any method found or missed."""
    if isinstance(panel, DetectionPanel):
        shapes = [one for method in panel.predictions for one in panel.prediction_layers(method)]
        return {one.colour for one in shapes if len(one.boxes_yxyx_px)}
    masks = [p > panel.threshold_of(method) for method, p in panel.predictions.items()]
    layers = [one for mask in masks for one in prediction_layers(mask, panel.truth)]
    return {one.colour for one in layers if one.labels.any()}
