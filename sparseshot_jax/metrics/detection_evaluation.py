"""What evaluation.json of a detector holds, and its measures as functions of stored counts.

Everything in it is made of plain Python numbers, strings, lists and dicts, so that it survives JSON.
"""

from collections.abc import Callable
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float64, Num
from numpy.typing import ArrayLike

from sparseshot_jax.metrics.bootstrap import Interval
from sparseshot_jax.metrics.overlap import dice_of


class ClassPoint(TypedDict):
    """One class at one threshold: its predictions against its true objects, matched on their own.

    A prediction that hits a true object of unknown class counts neither for nor against.
    """

    truth: int  # objects of the class in all images
    predicted: int  # predictions of the class
    f1_distance: Interval  # pooled over images, as all that follow
    precision_distance: Interval
    recall_distance: Interval
    f1_iou: Interval
    precision_iou: Interval
    recall_iou: Interval


class ExclusivePoint(TypedDict):
    """Whether predictions of class y hit objects of y, and only those, within the distance."""

    recall: Interval  # Rec(y)
    other_recall: Interval  # Rec(!= y): share of the other classes' objects hit by predictions of y
    exclusive_recall: Interval  # Rec(y) * (1 - Rec(!= y))


class DetectionPoint(TypedDict):
    """The measures at one threshold; of objects of any class unless it says otherwise.

    Thresholds that are chosen, "carried_over" and "oracle", are the best for F1 by distance, "elkan_noto" has
    its c from matches by distance, and measures by IoU are taken at the same: the oracle is an upper bound of
    `f1_distance` alone, and another threshold may have a higher `f1_iou`.
    """

    threshold: float  # predictions with score > threshold
    source: str  # a value of summary.SOURCES
    c: NotRequired[float]  # of "elkan_noto" alone: `estimate_c`, twice the threshold but for its grid
    f1_distance: Interval  # TP, FP, FN of all images together
    precision_distance: Interval
    recall_distance: Interval
    f1_iou: Interval
    precision_iou: Interval
    recall_iou: Interval
    counts_mae: Interval  # mean over images of |predicted - true objects|
    per_class: dict[str, ClassPoint]
    exclusive_recall: dict[str, ExclusivePoint]  # of each class; empty with a single class
    # "distance" and "iou" -> [C + 1][C + 1] counts: rows truth, columns prediction, in the order of
    # class_names; last row: false alarms, last column: missed. Truth of unknown class is left out.
    confusion: dict[str, list[list[int]]]


class DetectionImagePoint(TypedDict):
    """What one image adds at one operating point: enough to pool, compare and resample again."""

    distance: list[int]  # TP, FP, FN by centre distance, of any class
    iou: list[int]  # TP, FP, FN by IoU
    counts: list[int]  # true objects, predictions
    # Of the `exclusive_class`: hit, objects, others hit, others.
    exclusive: NotRequired[list[int]]


class DetectionImage(TypedDict):
    """One image of the split."""

    name: str
    points: dict[str, DetectionImagePoint]


class DetectionEvaluation(TypedDict):
    """The content of evaluation.json of a detector."""

    task: str  # "detection"
    split: str
    images: int
    level: float  # of the intervals, which are over images
    class_names: list[str]  # of classes 1..C
    exclusive_class: str | None
    distance_um: float  # gate on the distance of centres
    iou: float  # gate on the overlap of boxes
    # False: every true object is a point, its box a square of a set radius, and what is measured by IoU
    # says nothing of extents. Files without it are read as True.
    extents_known: NotRequired[bool]
    # fixed, carried_over (where validated), elkan_noto (where validation has objects; not in files of
    # earlier versions), oracle
    operating_points: dict[str, DetectionPoint]
    # "threshold" (0.001 .. 0.999) and pooled f1_, precision_, recall_ by distance and by iou.
    curve: dict[str, list[float]]
    ap_iou: float | None  # objects of any class; None without a true object
    ap_distance: float | None
    ap_per_class: dict[str, dict[str, float | None]]  # class -> "iou", "distance"
    per_image: list[DetectionImage]


def precision_of(confusion: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n"]:
    """TP / (TP + FP); without a prediction 0, or 1 where there is nothing to find either.

    >>> precision_of(np.array([[3, 1, 0], [0, 0, 5], [0, 0, 0]])).tolist()
    [0.75, 0.0, 1.0]
    """
    tp, fp, fn = np.moveaxis(confusion, -1, 0)
    return _share(tp, tp + fp, fn == 0)


def recall_of(confusion: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n"]:
    """TP / (TP + FN); without a true object 0, or 1 where nothing is predicted either."""
    tp, fp, fn = np.moveaxis(confusion, -1, 0)
    return _share(tp, tp + fn, fp == 0)


def class_recall_of(counts: Num[np.ndarray, "*n 4"]) -> Float64[np.ndarray, "*n"]:
    """Rec(y) of `exclusive_counts`; 1 where there is no object of the class."""
    hit, objects, _, _ = np.moveaxis(counts, -1, 0)
    return _share(hit, objects, 1.0)


def other_recall_of(counts: Num[np.ndarray, "*n 4"]) -> Float64[np.ndarray, "*n"]:
    """Rec(!= y) of `exclusive_counts`; 0 where there is no object of another class."""
    _, _, hit, objects = np.moveaxis(counts, -1, 0)
    return _share(hit, objects, 0.0)


def exclusive_recall_of(counts: Num[np.ndarray, "*n 4"]) -> Float64[np.ndarray, "*n"]:
    """Rec(y) * (1 - Rec(!= y)) of `exclusive_counts`.

    >>> exclusive_recall_of(np.array([3, 4, 1, 2])).tolist()
    0.375
    """
    return np.asarray(class_recall_of(counts) * (1 - other_recall_of(counts)))


def count_error_of(counts: Num[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n"]:
    """|predicted - true objects| of `ObjectPool.counts`."""
    return np.asarray(np.abs(counts[..., 1] - counts[..., 0]), np.float64)


def _share(part: ArrayLike, whole: ArrayLike, empty: ArrayLike | float) -> Float64[np.ndarray, "*n"]:
    return np.asarray(
        np.where(np.asarray(whole) > 0, np.divide(part, np.maximum(whole, 1)), np.asarray(empty, np.float64))
    )


GATES = ("distance", "iou")
RATIOS = {"f1": dice_of, "precision": precision_of, "recall": recall_of}
GATED = [f"{ratio}_{gate}" for gate in GATES for ratio in RATIOS]
EXCLUSIVE = ("recall", "other_recall", "exclusive_recall")

# measure -> (counts of a DetectionImagePoint, function of them, pooled over images)
MEASURES: dict[str, tuple[str, Callable[..., np.ndarray], bool]] = {
    **{f"{ratio}_{gate}": (gate, function, True) for gate in GATES for ratio, function in RATIOS.items()},
    "counts_mae": ("counts", count_error_of, False),
    "recall": ("exclusive", class_recall_of, True),
    "other_recall": ("exclusive", other_recall_of, True),
    "exclusive_recall": ("exclusive", exclusive_recall_of, True),
}
