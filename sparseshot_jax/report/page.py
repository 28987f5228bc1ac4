"""One HTML file that says what a run did: no network, no scripts, pictures inside.

Sections are plain functions from results to HTML; a page is their concatenation.
"""

import html
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sparseshot_jax.data import storage
from sparseshot_jax.metrics import DetectionEvaluation, Evaluation
from sparseshot_jax.report import detection_scores, figures, parts, scores, tables
from sparseshot_jax.report.detection_panels import DetectionPanel
from sparseshot_jax.report.panels import Panel

NO_EVALUATION = "Nothing was evaluated: there are no scores in this report."
NO_VALIDATION = "The log holds no validation measures: no threshold was chosen on validation images."
NO_LOG = "The log is empty: there are no training curves in this report."


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    config: Mapping,
    rows: Sequence[Mapping],
    evaluation: Evaluation | DetectionEvaluation | None = None,
    held_out: Mapping | None = None,
    panels: Sequence[Panel | DetectionPanel] = (),
    notes: Sequence[str] = (),
    versions: Mapping[str, str],
) -> None:
    """Write the report of one run, under a temporary name that is renamed when all is written.

    Args:
        path: the HTML file; its folder is created.
        title: heading of the page.
        config: the resolved config, nested; shown folded.
        rows: the log, one mapping for each line of JSONL, with "event" "train" or "validation".
        evaluation: of `metrics.summarise` or `metrics.summarise_detections`.
        held_out: measures on held-out marks, name -> number. Without this and `evaluation` the page
            says plainly that nothing was evaluated.
        panels: images with their labels and predictions.
        notes: sentences that a reader has to know before the numbers.
        versions: package -> version.

    Raises:
        InputError: the file cannot be written.
    """
    missing = [NO_EVALUATION] if evaluation is None and held_out is None else []
    if not any(row.get("event") == "validation" for row in rows):
        missing.append(NO_VALIDATION if rows else NO_LOG)
    sections = [parts.note_list([*notes, *missing])]
    if evaluation is not None:
        sections.append(_scores_of(tables.task_of(evaluation)).results(evaluation))
    if held_out is not None:
        measures = tables.mapping_table(held_out, ("Measure", "Value"))
        sections.append(parts.section("Held-out marks", measures.html()))
    sections += [
        parts.section("Training", parts.charts(figures.training_charts(rows))),
        _panels(panels),
        _config({"All fields": config} if config else {}),
    ]
    write_page(path, title, "".join(sections), versions)


def write_comparison(
    path: str | os.PathLike[str],
    *,
    title: str,
    evaluations: Mapping[str, Evaluation] | Mapping[str, DetectionEvaluation],
    logs: Mapping[str, Sequence[Mapping]],
    panels: Sequence[Panel | DetectionPanel] = (),
    configs: Mapping[str, Mapping] | None = None,
    notes: Sequence[str] = (),
    versions: Mapping[str, str],
    measure: str | None = None,
    baseline: str | None = None,
) -> None:
    """Write the report of several methods on the same images, side by side.

    Args:
        path: the HTML file; its folder is created.
        title: heading of the page.
        evaluations: method -> its evaluation; all of one task.
        logs: method -> its log.
        panels: with one prediction for each method.
        configs: method -> its resolved config.
        notes: sentences that a reader has to know before the numbers.
        versions: package -> version.
        measure: that the table compares, a key of `tables.SEGMENTATION` or `tables.DETECTION`; None:
            pooled Dice, or F1 by distance.
        baseline: method from which paired differences are shown.

    Raises:
        InputError: methods of different tasks; the file cannot be written.
    """
    compared = ""
    if evaluations:
        task = tables.common_task(evaluations)
        compared = _scores_of(task).comparison(evaluations, measure=measure, baseline=baseline)
    sections = [
        parts.note_list([*notes, *([] if evaluations else [NO_EVALUATION])]),
        compared,
        _panels(panels),
        parts.section("Training", parts.charts(figures.comparison_charts(logs))),
        _config(configs or {}),
    ]
    write_page(path, title, "".join(sections), versions)


def _scores_of(task: str) -> Any:
    """The module that shows the scores of a task: `results` of one run, `comparison` of several."""
    return detection_scores if task == "detection" else scores


def _panels(rows: Sequence[Panel | DetectionPanel]) -> str:
    if not rows:
        return ""
    colours = dict.fromkeys(entry for panel in rows for entry in panel.legend())
    shown = [parts.legend(list(colours))]
    for panel in rows:
        columns = panel.pictures().items()
        captions = [(_caption(panel, column), picture) for column, picture in columns]
        shown.append(parts.picture_row(panel.title, captions))
    return parts.section("Images", "".join(shown))


def _caption(panel: Panel | DetectionPanel, column: str) -> str:
    return f"{column}, {tables.above(panel.threshold_of(column))}" if column in panel.predictions else column


def _config(configs: Mapping[str, Mapping]) -> str:
    folded = "".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"{tables.mapping_table(config, ('Field', 'Value')).html()}</details>"
        for name, config in configs.items()
    )
    return parts.section("Configuration", folded)


def write_page(
    path: str | os.PathLike[str], title: str, body: str, versions: Mapping[str, str], style: str = ""
) -> None:
    """Write a self-contained page: HTML of its body, with `style` added to the style of all pages.

    Raises:
        InputError: the file cannot be written.
    """
    style += importlib.resources.files("sparseshot_jax.report").joinpath("page.css").read_text("utf-8")
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    name = html.escape(title)
    text = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{name}</h1></header>\n<main>{body}</main>\n"
        f"<footer class='muted'>Made with {html.escape(used)}.</footer></body></html>\n"
    )
    storage.write_bytes(path, text.encode())
