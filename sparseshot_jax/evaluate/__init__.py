"""Predictions and truth to numbers: foreground pixel by pixel, detections object by object."""

from sparseshot_jax.evaluate.detection import (
    Detect,
    FindObjects,
    carried_from_detections,
    found_objects,
    image_objects,
    measure_detections,
    true_objects,
)
from sparseshot_jax.evaluate.segmentation import (
    Probability,
    ProbabilityMap,
    carried_from_pixels,
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
    "carried_from_detections",
    "carried_from_pixels",
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
