"""One HTML file that says what a run did: no network, no scripts, pictures inside.

Sections are plain functions from results to HTML; a page is their concatenation.
"""

import base64
import contextlib
import html
import importlib.resources
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import Evaluation
from sparseshot_jax.report import figures, panels, tables
from sparseshot_jax.report.overlay import COLOURS
from sparseshot_jax.report.panels import Panel

NO_EVALUATION = "Nothing was evaluated: there are no scores in this report."
NO_VALIDATION = "The log holds no validation measures: no threshold was chosen on validation images."
NO_LOG = "The log is empty: there are no training curves in this report."
POINT_TILES = {
    "fixed": "Dice at p > 0.5",
    "carried_over": "Dice at the validation threshold",
    "oracle": "Dice at the oracle threshold",
}


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    config: Mapping,
    rows: Sequence[Mapping],
    evaluation: Evaluation | None = None,
    held_out: Mapping | None = None,
    panels: Sequence[Panel] = (),
    notes: Sequence[str] = (),
    versions: Mapping[str, str],
) -> None:
    """Write the report of one run, under a temporary name that is renamed when all is written.

    Args:
        path: the HTML file; its folder is created.
        title: heading of the page.
        config: the resolved config, nested; shown folded.
        rows: the log, one mapping for each line of JSONL, with "event" "train" or "validation".
        evaluation: of `metrics.summarise`.
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
    sections = [_notes([*notes, *missing])]
    if evaluation is not None:
        run, results = {"this run": evaluation}, tables.results_table(evaluation)
        sections += [
            _tiles(evaluation),
            section("Results", f"<div class='beside'>{results.html()}{_scores(run)}</div>"),
        ]
    if held_out is not None:
        measures = tables.mapping_table(held_out, ("Measure", "Value"))
        sections.append(section("Held-out marks", measures.html()))
    sections += [
        section("Training", _charts(figures.training_charts(rows))),
        _panels(panels),
        _config({"All fields": config} if config else {}),
    ]
    write_page(path, title, "".join(sections), versions)


def write_comparison(
    path: str | os.PathLike[str],
    *,
    title: str,
    evaluations: Mapping[str, Evaluation],
    logs: Mapping[str, Sequence[Mapping]],
    panels: Sequence[Panel] = (),
    configs: Mapping[str, Mapping] | None = None,
    notes: Sequence[str] = (),
    versions: Mapping[str, str],
    measure: str = "dice_pooled",
    baseline: str | None = None,
) -> None:
    """Write the report of several methods on the same images, side by side.

    Args:
        path: the HTML file; its folder is created.
        title: heading of the page.
        evaluations: method -> its evaluation.
        logs: method -> its log.
        panels: with one prediction for each method.
        configs: method -> its resolved config.
        notes: sentences that a reader has to know before the numbers.
        versions: package -> version.
        measure: that the table compares, a key of `tables.MEASURES`.
        baseline: method from which paired differences are shown.

    Raises:
        InputError: the file cannot be written.
    """
    compared = tables.comparison_table(evaluations, measure=measure, baseline=baseline)
    sections = [
        _notes([*notes, *([] if evaluations else [NO_EVALUATION])]),
        section("Results", compared.html() + _scores(evaluations)) if evaluations else "",
        _panels(panels),
        section("Training", _charts(figures.comparison_charts(logs))),
        _config(configs or {}),
    ]
    write_page(path, title, "".join(sections), versions)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<ul class='notes'>{items}</ul>" if items else ""


def _tiles(evaluation: Evaluation) -> str:
    """The pooled Dice at each operating point, large."""
    parts = []
    for name, point in evaluation["operating_points"].items():
        dice = point["dice_pooled"]
        low, high = dice["low"], dice["high"]
        bounds = f"{low:.3f}\N{EN DASH}{high:.3f}, " if low is not None and high is not None else ""
        remark = f"{bounds}pooled" + ("" if name == "fixed" else f", {tables.above(point['threshold'])}")
        parts.append(
            f"<div class='tile'><span>{html.escape(POINT_TILES.get(name, name))}</span>"
            f"<b>{dice['mean']:.3f}</b><small>{html.escape(remark)}</small></div>"
        )
    return f"<div class='tiles'>{''.join(parts)}</div>"


def _scores(evaluations: Mapping[str, Evaluation]) -> str:
    return _charts([figures.threshold_chart(evaluations), figures.reliability_chart(evaluations)])


def _charts(charts: Sequence[figures.Chart]) -> str:
    pictures = "".join(
        f"<img alt='{html.escape(chart.title, quote=True)}' src='{_data(chart.svg().encode(), 'svg+xml')}'>"
        for chart in charts
    )
    return f"<div class='charts'>{pictures}</div>" if pictures else ""


def _panels(rows: Sequence[Panel]) -> str:
    if not rows:
        return ""
    used = panels.LEGEND if any(p.truth is not None for p in rows) else panels.PLAIN_LEGEND
    legend = "".join(
        f"<li><i style='background: rgb{COLOURS[name]}'></i>{html.escape(text)}</li>"
        for name, text in used.items()
    )
    parts = [f"<ul class='legend'>{legend}</ul>"]
    for panel in rows:
        shown = panels.pictures(panel)
        across = len(shown) if len(shown) <= 5 else 3
        columns = "".join(
            f"<figure><img alt='{html.escape(title, quote=True)}' src='{jpeg_data(picture)}'>"
            f"<figcaption>{html.escape(_column_title(panel, title))}</figcaption></figure>"
            for title, picture in shown.items()
        )
        heading = f"<h3>{html.escape(panel.title)}</h3>"
        parts.append(
            f"<div class='panel'>{heading}"
            f"<div class='pictures' style='--across: {across}'>{columns}</div></div>"
        )
    return section("Images", "".join(parts))


def _column_title(panel: Panel, title: str) -> str:
    return f"{title}, {tables.above(panel.threshold_of(title))}" if title in panel.predictions else title


def _config(configs: Mapping[str, Mapping]) -> str:
    folded = "".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"{tables.mapping_table(config, ('Field', 'Value')).html()}</details>"
        for name, config in configs.items()
    )
    return section("Configuration", folded)


def section(heading: str, content: str) -> str:
    """A part of a page under its heading; `content` is HTML."""
    """A section under its heading; nothing where there is nothing to show."""
    return f"<section><h2>{html.escape(heading)}</h2>{content}</section>" if content else ""


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
    target = epath.Path(path)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: the report cannot be written ({error}). Try another folder.") from error


def jpeg_data(picture: np.ndarray) -> str:
    """A picture [h, w, 3] as the address of an image element."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return _data(buffer.getvalue(), "jpeg")


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
