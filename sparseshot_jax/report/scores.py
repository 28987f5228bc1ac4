"""The scores of segmentation as sections of a page."""

from collections.abc import Mapping

from sparseshot_jax.metrics import Evaluation
from sparseshot_jax.report import figures, parts, tables

POINT_TILES = {
    "fixed": "Dice at p > 0.5",
    "carried_over": "Dice at the validation threshold",
    "elkan_noto": "Dice at the Elkan\N{EN DASH}Noto threshold",
    "oracle": "Dice at the oracle threshold",
}


def results(evaluation: Evaluation) -> str:
    """Of one run: pooled Dice at each operating point, large; every measure; curves."""
    values = [
        tables.tile(POINT_TILES.get(name, name), name, point["threshold"], point["dice_pooled"])
        for name, point in evaluation["operating_points"].items()
    ]
    table = tables.results_table(evaluation).html()
    charts = _charts({"this run": evaluation})
    found = parts.section("Results", f"<div class='beside'>{table}{charts}</div>")
    return parts.tiles(values) + found + _objects(evaluation)


def comparison(
    evaluations: Mapping[str, Evaluation], *, measure: str | None = None, baseline: str | None = None
) -> str:
    """Of several methods: one measure in a table, and the curves of all."""
    table = tables.comparison_table(evaluations, measure=measure, baseline=baseline)
    return parts.section("Results", table.html() + _charts(evaluations))


def _objects(evaluation: Mapping) -> str:
    """The objects that a segmentation was parted into, where they were scored as detections are."""
    if "objects" not in evaluation:
        return ""
    table = tables.results_table(evaluation["objects"], remark=tables.PARTED)
    return parts.section("Separate objects", table.html())


def _charts(evaluations: Mapping[str, Evaluation]) -> str:
    return parts.charts([figures.threshold_chart(evaluations), figures.reliability_chart(evaluations)])
