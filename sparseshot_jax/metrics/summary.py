"""Counts of a split -> the evaluation that is written as evaluation.json, and paired comparisons.

Everything here is made of plain Python numbers, strings, lists and dicts, so that it survives JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Int64

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.bootstrap import Interval, interval, paired_difference
from sparseshot_jax.metrics.elkan_noto import threshold_elkan_noto
from sparseshot_jax.metrics.overlap import (
    best_threshold,
    confusion,
    dice_of,
    iou_of,
    reliability,
    threshold_curve,
)

SOURCES = {  # operating point -> where its threshold comes from
    "fixed": "fixed",
    "carried_over": "validation",
    "elkan_noto": "validation positives",
    "oracle": "this split",  # chosen on the very images that are scored: an upper bound, no result
}


class OperatingPoint(TypedDict):
    """The measures at one threshold."""

    threshold: float
    source: str  # a value of SOURCES
    c: NotRequired[float]  # of "elkan_noto" alone: `estimate_c`, twice the threshold but for its grid
    dice_image: Interval  # mean over images, both empty = 1
    dice_pooled: Interval  # of the pixels of all images together
    iou_image: Interval
    iou_pooled: Interval
    object_f1: NotRequired[Interval]  # components matched one to one at IoU >= 0.5, pooled
    object_f1_image: NotRequired[Interval]


class Carried(TypedDict):
    """What validation images give to the evaluation of others."""

    threshold_carried: float  # the best one
    elkan_noto_c: float | None  # None without positives


class ImagePoint(TypedDict):
    """What one image adds at one operating point: enough to pool, compare and resample again."""

    pixels: list[int]  # TP, FP, FN
    objects: NotRequired[list[int]]  # TP, FP, FN
    dice: float
    iou: float
    object_f1: NotRequired[float]


class ImageResult(TypedDict):
    """One image of the split."""

    name: str
    points: dict[str, ImagePoint]


class Evaluation(TypedDict):
    """The content of evaluation.json."""

    task: str  # "segmentation"
    split: str
    images: int
    level: float  # of the intervals, which are over images
    # "carried_over" is absent without dense validation truth, "elkan_noto" without validation positives
    # and in files of earlier versions.
    operating_points: dict[str, OperatingPoint]
    dice_by_threshold: dict[str, list[float]]  # "threshold" and pooled "dice", about 100 of each
    reliability: dict  # of `overlap.reliability`
    per_image: list[ImageResult]


# measure of an OperatingPoint -> (counts of an ImagePoint, function of TP, FP, FN, pooled over
# images)
MEASURES = {
    "dice_image": ("pixels", dice_of, False),
    "dice_pooled": ("pixels", dice_of, True),
    "iou_image": ("pixels", iou_of, False),
    "iou_pooled": ("pixels", iou_of, True),
    "object_f1": ("objects", dice_of, True),
    "object_f1_image": ("objects", dice_of, False),
}


def operating_thresholds(
    counts: Int64[np.ndarray, "n 2 b"],
    threshold_carried: float | None = None,
    elkan_noto_c: float | None = None,
) -> dict[str, float]:
    """The thresholds at which objects have to be counted before `summarise` is called."""
    oracle = best_threshold(counts, "pooled Dice")
    return named_thresholds(oracle, threshold_carried, elkan_noto_c, steps=counts.shape[-1])


def named_thresholds(
    oracle: float, threshold_carried: float | None, elkan_noto_c: float | None, *, steps: int
) -> dict[str, float]:
    """Operating point -> threshold, of those that there are; c / 2 on a grid of so many steps."""
    carried = {} if threshold_carried is None else {"carried_over": threshold_carried}
    corrected = {} if elkan_noto_c is None else {"elkan_noto": threshold_elkan_noto(elkan_noto_c, steps)}
    return {"fixed": 0.5, **carried, **corrected, "oracle": oracle}


def summarise(
    counts: Int64[np.ndarray, "n 2 b"],
    objects: Mapping[float, Int64[np.ndarray, "n 3"]] | None = None,
    *,
    split: str,
    names: Sequence[str],
    threshold_carried: float | None = None,
    elkan_noto_c: float | None = None,
    seed: int,
    level: float = 0.95,
) -> Evaluation:
    """The evaluation of one split.

    Args:
        counts: `overlap.histograms` of every image.
        objects: threshold -> TP, FP, FN of every image's objects, as `match_by_iou` counts them, at
            each of `operating_thresholds`; None leaves objects out.
        split: "test", "validation", ...
        names: of the images, in the order of `counts`.
        threshold_carried: chosen on validation images, on the grid of `counts`.
        elkan_noto_c: `elkan_noto.estimate_c` of validation positives.
        seed: of the bootstrap.
        level: of the intervals.

    Raises:
        InputError: objects were not counted at one of the thresholds; no image; c out of range.
    """
    if not len(counts) or len(names) != len(counts):
        raise InputError(
            f"An evaluation needs at least one image and a name for each; got {len(counts)} images "
            f"and {len(names)} names."
        )
    thresholds = operating_thresholds(counts, threshold_carried, elkan_noto_c)
    points: dict[str, OperatingPoint] = {}
    images: list[ImageResult] = [{"name": name, "points": {}} for name in names]
    for point, threshold in thresholds.items():
        rows = {"pixels": confusion(counts, threshold)}
        if objects is not None:
            rows["objects"] = _objects_at(objects, threshold)
        measured = {
            name: measured_over_images(rows[kind], function, pooled, seed, level)
            for name, (kind, function, pooled) in MEASURES.items()
            if kind in rows
        }
        about = named_point(point, threshold, elkan_noto_c)
        points[point] = cast(OperatingPoint, {**about, **measured})
        for k, image in enumerate(images):
            image["points"][point] = _image_point({kind: row[k] for kind, row in rows.items()})
    return {
        "task": "segmentation",
        "split": split,
        "images": len(counts),
        "level": level,
        "operating_points": points,
        "dice_by_threshold": _curve(counts),
        "reliability": reliability(counts),
        "per_image": images,
    }


def difference(
    evaluation: Evaluation,
    baseline: Evaluation,
    *,
    point: str = "carried_over",
    measure: str = "dice_pooled",
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Paired difference, first minus second, of a measure at an operating point, image by image.

    Raises:
        InputError: the two were not made on the same images, or one lacks the point or the measure.
    """
    check_same_images(evaluation, baseline)
    kind, function, pooled = MEASURES[measure]
    rows = []
    for one in (evaluation, baseline):
        if any(kind not in image["points"].get(point, {}) for image in one["per_image"]):
            raise InputError(f"An evaluation has no {measure} at the operating point {point!r}.")
        counts = np.array([image["points"][point][kind] for image in one["per_image"]], np.int64)
        rows.append(counts if pooled else function(counts))
    return paired_difference(rows[0], rows[1], function if pooled else None, seed=seed, level=level)


def check_same_images(evaluation: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Refuse a paired comparison of two evaluations of different images."""
    names, baseline_names = ([i["name"] for i in e["per_image"]] for e in (evaluation, baseline))
    if names != baseline_names:
        odd = sorted(set(names) ^ set(baseline_names))[:3]
        raise InputError(
            "A paired difference needs two evaluations of the same images in the same order; they "
            f"differ{' in ' + ', '.join(odd) if odd else ' in order'}. Evaluate both on one split."
        )


def named_point(point: str, threshold: float, elkan_noto_c: float | None) -> dict[str, Any]:
    """What an operating point says of its threshold."""
    estimate = {"c": elkan_noto_c} if point == "elkan_noto" else {}
    return {"threshold": threshold, "source": SOURCES[point], **estimate}


def measured_over_images(
    rows: np.ndarray, function: Callable[..., np.ndarray], pooled: bool, seed: int, level: float
) -> Interval:
    """A measure with its interval: of the counts pooled, or as the mean over images."""
    if pooled:
        return interval(rows, function, seed=seed, level=level)
    return interval(function(rows), seed=seed, level=level)


def _curve(counts: np.ndarray) -> dict[str, list[float]]:
    thresholds, values = threshold_curve(counts, "pooled Dice")
    step = max(1, counts.shape[-1] // 100)
    thinned = slice(step - 1, None, step)
    return {"threshold": thresholds[thinned].tolist(), "dice": values[thinned].tolist()}


def _image_point(rows: dict[str, np.ndarray]) -> ImagePoint:
    pixels = rows["pixels"]
    point: ImagePoint = {
        "pixels": pixels.tolist(),
        "dice": float(dice_of(pixels)),
        "iou": float(iou_of(pixels)),
    }
    if "objects" in rows:
        point["objects"] = rows["objects"].tolist()
        point["object_f1"] = float(dice_of(rows["objects"]))
    return point


def _objects_at(objects: Mapping[float, np.ndarray], threshold: float) -> np.ndarray:
    if threshold not in objects:
        raise InputError(
            f"Objects must be counted at every operating threshold; {threshold} is missing, got "
            f"{', '.join(map(str, objects))}. `operating_thresholds` lists them."
        )
    return objects[threshold]
