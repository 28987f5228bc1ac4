"""Predictions and truth to numbers: foreground pixel by pixel, detections object by object."""

from sparseshot_jax.evaluate.detection import (
    Detect,
    FindObjects,
    detection_threshold,
    found_objects,
    image_objects,
    measure_detections,
    true_objects,
)
from sparseshot_jax.evaluate.segmentation import (
    Probability,
    ProbabilityMap,
    foreground_of,
    measure_dense,
    measure_sparse,
    pixel_counts,
)
from sparseshot_jax.evaluate.sparse_detection import measure_sparse_detections, objects_of
from sparseshot_jax.evaluate.windows import by_truth, with_halo

__all__ = [
    "Detect",
    "FindObjects",
    "Probability",
    "ProbabilityMap",
    "by_truth",
    "detection_threshold",
    "foreground_of",
    "found_objects",
    "image_objects",
    "measure_dense",
    "measure_detections",
    "measure_sparse",
    "measure_sparse_detections",
    "objects_of",
    "pixel_counts",
    "true_objects",
    "with_halo",
]
