"""Numbers -> tables, figures, one HTML page."""

from sparseshot_jax.report.detection_panels import DetectionPanel, Predicted
from sparseshot_jax.report.detection_tables import class_count_table, class_table
from sparseshot_jax.report.overlay import COLOURS, Layer, overlay
from sparseshot_jax.report.page import write_comparison, write_report
from sparseshot_jax.report.panels import Panel
from sparseshot_jax.report.tables import (
    PARTED,
    Cell,
    Table,
    comparison_table,
    extents_known,
    results_table,
)

__all__ = [
    "COLOURS",
    "PARTED",
    "Cell",
    "DetectionPanel",
    "Layer",
    "Panel",
    "Predicted",
    "Table",
    "class_count_table",
    "class_table",
    "comparison_table",
    "extents_known",
    "overlay",
    "results_table",
    "write_comparison",
    "write_report",
]
