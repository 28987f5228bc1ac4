"""Predictions against truth, in pure NumPy: overlap, objects, detections, intervals.

`histograms` and `match_by_iou` count, an image at a time; `summarise` turns the counts of a split
into an `Evaluation`, the content of evaluation.json; `difference` compares two of them, paired by
image. Of detections, `ImageObjects` against `ImageObjects`, `summarise_detections` makes a
`DetectionEvaluation`, and `detection_difference` compares two. `estimate_c` and `threshold_elkan_noto`
correct the threshold of a model of positive and unlabelled data.
"""

from sparseshot_jax.metrics.bootstrap import Interval, interval, paired_difference
from sparseshot_jax.metrics.detection import ImageObjects
from sparseshot_jax.metrics.detection_evaluation import DetectionEvaluation
from sparseshot_jax.metrics.detection_summary import (
    best_detection_threshold,
    detection_difference,
    summarise_detections,
)
from sparseshot_jax.metrics.elkan_noto import (
    estimate_c,
    estimate_c_of_pixels,
    matched_scores,
    threshold_elkan_noto,
)
from sparseshot_jax.metrics.instances import aji, components, match_by_iou, panoptic_quality
from sparseshot_jax.metrics.matching import Pairs, match_boxes, match_points
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
    Carried,
    Evaluation,
    difference,
    operating_thresholds,
    summarise,
)

__all__ = [
    "Carried",
    "DetectionEvaluation",
    "Evaluation",
    "ImageObjects",
    "Interval",
    "Pairs",
    "aji",
    "best_detection_threshold",
    "best_threshold",
    "components",
    "detection_difference",
    "dice",
    "dice_of",
    "difference",
    "estimate_c",
    "estimate_c_of_pixels",
    "histograms",
    "interval",
    "iou",
    "iou_of",
    "match_boxes",
    "match_by_iou",
    "match_points",
    "matched_scores",
    "operating_thresholds",
    "paired_difference",
    "panoptic_quality",
    "reliability",
    "summarise",
    "summarise_detections",
    "threshold_elkan_noto",
]
