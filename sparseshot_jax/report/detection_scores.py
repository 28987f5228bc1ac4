"""The scores of detection as sections of a page."""

from collections.abc import Mapping

from sparseshot_jax.metrics import DetectionEvaluation
from sparseshot_jax.report import detection_figures, detection_tables, parts, tables

POINT_TILES = {
    "fixed": "F1 at p > 0.5",
    "carried_over": "F1 at the validation threshold",
    "elkan_noto": "F1 at the Elkan\N{EN DASH}Noto threshold",
    "oracle": "F1 at the oracle threshold",
}


def results(evaluation: DetectionEvaluation) -> str:
    """Of one run: F1 at each operating point and AP, large; every measure; curves; classes."""
    values = [
        tables.tile(POINT_TILES.get(name, name), name, point["threshold"], point["f1_distance"])
        for name, point in evaluation["operating_points"].items()
    ]
    average = evaluation["ap_distance"]
    if average is not None:
        values.append(("Average precision", f"{average:.3f}", "over all thresholds"))
    table = tables.results_table(evaluation).html()
    found = parts.section("Results", f"<div class='beside'>{table}{_charts({'this run': evaluation})}</div>")
    return parts.tiles(values) + found + _classes(evaluation)


def comparison(
    evaluations: Mapping[str, DetectionEvaluation],
    *,
    measure: str | None = None,
    baseline: str | None = None,
) -> str:
    """Of several methods: a measure and average precision in tables, and the curves of all."""
    table = tables.comparison_table(evaluations, measure=measure, baseline=baseline)
    precision = detection_tables.precision_table(evaluations)
    return parts.section("Results", table.html() + _charts(evaluations) + precision.html())


def _classes(evaluation: DetectionEvaluation) -> str:
    if len(evaluation["class_names"]) == 1:
        return ""  # the class is all there is, and shown already
    point = detection_tables.shown_point(evaluation)
    chart = detection_figures.confusion_chart(evaluation, point)
    caption = detection_tables.CONFUSION.format_map(evaluation)
    measures = detection_tables.class_table(evaluation).html()
    counts = detection_tables.class_count_table(evaluation).html()
    return parts.section(
        "Classes",
        f"<div class='beside'>{measures}{parts.charts([chart])}</div><p class='muted'>{caption}</p>{counts}",
    )


def _charts(evaluations: Mapping[str, DetectionEvaluation]) -> str:
    return parts.charts(
        [
            detection_figures.f1_chart(evaluations),
            detection_figures.precision_recall_chart(evaluations),
        ]
    )
