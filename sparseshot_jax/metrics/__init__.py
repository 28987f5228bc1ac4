"""Predictions against truth, in pure NumPy: overlap, objects, intervals.

`histograms` and `match_by_iou` count, an image at a time; `summarise` turns the counts of a split
into an `Evaluation`, the content of evaluation.json; `difference` compares two of them, paired by
image.
"""

from sparseshot_jax.metrics.bootstrap import Interval, interval, paired_difference
from sparseshot_jax.metrics.instances import aji, components, match_by_iou, panoptic_quality
from sparseshot_jax.metrics.overlap import (
    best_threshold,
    dice,
    dice_of,
    histograms,
    iou,
    iou_of,
    reliability,
)
from sparseshot_jax.metrics.summary import (
    Evaluation,
    difference,
    operating_thresholds,
    summarise,
)

__all__ = [
    "Evaluation",
    "Interval",
    "aji",
    "best_threshold",
    "components",
    "dice",
    "dice_of",
    "difference",
    "histograms",
    "interval",
    "iou",
    "iou_of",
    "match_by_iou",
    "operating_thresholds",
    "paired_difference",
    "panoptic_quality",
    "reliability",
    "summarise",
]
