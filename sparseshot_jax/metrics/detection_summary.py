"""Detections of a split -> the evaluation that is written as evaluation.json, and paired comparisons."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.average_precision import average_precision
from sparseshot_jax.metrics.bootstrap import Interval, paired_difference
from sparseshot_jax.metrics.detection import ImageObjects, ObjectPool, pool_objects
from sparseshot_jax.metrics.detection_evaluation import (
    EXCLUSIVE,
    GATED,
    GATES,
    MEASURES,
    RATIOS,
    ClassPoint,
    DetectionEvaluation,
    DetectionImage,
    DetectionImagePoint,
    DetectionPoint,
    ExclusivePoint,
)
from sparseshot_jax.metrics.matching import Pairs, join_pairs, one_to_one, point_pairs
from sparseshot_jax.metrics.overlap import dice_of, nearest_to_half
from sparseshot_jax.metrics.summary import (
    check_same_images,
    measured_over_images,
    named_point,
    named_thresholds,
)

STEPS = 1000  # of the finest grid of thresholds
# 0.01 apart, and 0.001 apart where p crowds: a loss without a weight has its best threshold near 0, one that
# ends at p = 1 near 1.
THRESHOLDS: Float64[np.ndarray, "117"] = (
    np.concatenate([np.arange(1, 10), np.arange(10, 991, 10), np.arange(991, 1000)]) / STEPS
)


def summarise_detections(
    truths: Sequence[ImageObjects],
    predictions: Sequence[ImageObjects],
    *,
    names: Sequence[str],
    class_names: Sequence[str],
    distance_um: float = 3.0,
    iou: float = 0.5,
    split: str,
    threshold_carried: float | None = None,
    elkan_noto_c: float | None = None,
    seed: int,
    level: float = 0.95,
    exclusive_class: str | None = None,
    extents_known: bool = True,
) -> DetectionEvaluation:
    """The evaluation of one split.

    Args:
        truths: objects of every image; label 0 is an object of unknown class, which counts in
            detection and is left out of what is measured by class.
        predictions: of the same images in the same order, at a low floor of the score (0.001, say):
            curves and average precision end there.
        names: of the images, in the order of `truths`.
        class_names: of classes 1..C.
        distance_um: a pair may match up to this distance of centres.
        iou: a pair may match from this IoU of boxes on.
        split: "test", "validation", ...
        threshold_carried: `best_detection_threshold` of validation images.
        elkan_noto_c: `elkan_noto.estimate_c` of the `matched_scores` of validation objects.
        seed: of the bootstrap.
        level: of the intervals.
        exclusive_class: the class whose exclusive recall is kept by image for `detection_difference`.
        extents_known: False where every true box is a mere square round a point; recorded, so that whoever
            shows the evaluation leaves out what is measured by IoU.

    Raises:
        InputError: no image, lists of different lengths, a label beyond the classes, a prediction
            without a class, a gate or threshold out of range.
    """
    pool = pool_objects(truths, predictions, distance_um=distance_um, iou=iou)
    _check(pool, names, class_names, threshold_carried, exclusive_class)
    true = len(pool.truth_label)
    curve = {gate: _curve(pool.candidates[gate], true, pool.score) for gate in GATES}
    oracle = nearest_to_half(THRESHOLDS, dice_of(curve["distance"]))
    exclusive = class_names.index(exclusive_class) + 1 if exclusive_class is not None else None
    points: dict[str, DetectionPoint] = {}
    images: list[DetectionImage] = [{"name": name, "points": {}} for name in names]
    thresholds = named_thresholds(oracle, threshold_carried, elkan_noto_c, steps=STEPS)
    for point, threshold in thresholds.items():
        above = pool.above(threshold)
        rows = _rows(pool, above, exclusive)
        about = named_point(point, threshold, elkan_noto_c)
        measured = _measured(pool, above, rows, class_names, seed, level)
        points[point] = cast(DetectionPoint, {**about, **measured})
        for k, image in enumerate(images):
            row = {kind: row[k].tolist() for kind, row in rows.items()}
            image["points"][point] = cast(DetectionImagePoint, row)
    aps = {gate: average_precision(pool, gate) for gate in GATES}
    return {
        "task": "detection",
        "split": split,
        "images": len(names),
        "level": level,
        "class_names": list(class_names),
        "exclusive_class": exclusive_class,
        "distance_um": distance_um,
        "iou": iou,
        "extents_known": extents_known,
        "operating_points": points,
        "curve": {
            "threshold": THRESHOLDS.tolist(),
            **{f"{m}_{gate}": f(curve[gate]).tolist() for gate in GATES for m, f in RATIOS.items()},
        },
        "ap_iou": aps["iou"],
        "ap_distance": aps["distance"],
        "ap_per_class": {
            name: {gate: average_precision(pool, gate, k) for gate in GATES}
            for k, name in enumerate(class_names, 1)
        },
        "per_image": images,
    }


def best_detection_threshold(
    truths: Sequence[ImageObjects], predictions: Sequence[ImageObjects], *, distance_um: float = 3.0
) -> float:
    """The threshold 0.001 .. 0.999 of the highest pooled F1 by distance; of several, the one nearest to
    0.5, then the lower.

    Found on validation images it may be carried over to others; found on the images that are scored
    it is an oracle and has to be named so.

    Raises:
        InputError: no image, lists of different lengths, `distance_um` is not above 0.
    """
    if not len(truths) or len(truths) != len(predictions):
        raise InputError(
            f"A threshold is chosen on at least one image, truth and predictions of each; got "
            f"{len(truths)} of truth and {len(predictions)} of predictions."
        )
    both = list(zip(truths, predictions))
    pairs = [point_pairs(t.xy_um, p.xy_um, gate=distance_um) for t, p in both]
    joined = join_pairs(pairs, [(len(t), len(p)) for t, p in both])
    score = np.concatenate([p.score for p in predictions])
    return nearest_to_half(THRESHOLDS, dice_of(_curve(joined, sum(map(len, truths)), score)))


def detection_difference(
    evaluation: DetectionEvaluation,
    baseline: DetectionEvaluation,
    *,
    point: str = "carried_over",
    baseline_point: str | None = None,
    measure: str = "f1_distance",
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Paired difference, first minus second, of a measure over the same images.

    Args:
        evaluation: of one method.
        baseline: of the other, on the same images in the same order.
        point: operating point of the first, and of the second unless `baseline_point` names another.
        baseline_point: operating point of the second.
        measure: a key of MEASURES: f1_, precision_, recall_ with distance or iou, counts_mae,
            exclusive_recall.
        seed: of the resamples.
        level: of the interval.

    Raises:
        InputError: the two were not made on the same images, at the same gate, or one lacks the
            point or the measure.
    """
    check_same_images(evaluation, baseline)
    for gate in ("distance_um", "iou", "exclusive_class"):
        if evaluation[gate] != baseline[gate]:
            raise InputError(
                f"A paired difference needs two evaluations with one {gate}; got {evaluation[gate]} and "
                f"{baseline[gate]}. Evaluate both alike."
            )
    if measure not in MEASURES:
        raise InputError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}.")
    kind, function, pooled = MEASURES[measure]
    rows = []
    for one, at in ((evaluation, point), (baseline, baseline_point or point)):
        if any(kind not in image["points"].get(at, {}) for image in one["per_image"]):
            raise InputError(f"An evaluation has no {measure} at the operating point {at!r}.")
        counts = np.array([image["points"][at][kind] for image in one["per_image"]], np.int64)
        rows.append(counts if pooled else function(counts))
    return paired_difference(rows[0], rows[1], function if pooled else None, seed=seed, level=level)


def _curve(candidates: Pairs, true: int, score: Float[np.ndarray, " n"]) -> Int64[np.ndarray, "t 3"]:
    """TP, FP, FN of all images at every threshold, matched anew at each.

    Args:
        candidates: pairs that may match, of all images.
        true: number of true objects.
        score: of all predictions.
    """
    rows, last, hits = [], -1, 0
    for threshold in THRESHOLDS:
        above = score.astype(np.float32) > np.float32(threshold)  # as `ObjectPool.above`
        said = int(above.sum())
        # A higher threshold keeps a subset: as many predictions are the same predictions.
        if said != last:
            left = candidates.take(above[candidates.predicted])
            hits = len(one_to_one(left.truth, left.predicted, left.gain))
        rows.append((hits, said - hits, true - hits))
        last = said
    return np.array(rows, np.int64)


def _rows(
    pool: ObjectPool, above: Bool[np.ndarray, " n"], exclusive: int | None
) -> dict[str, Int64[np.ndarray, "images _"]]:
    """The counts of every image at one threshold, under the names of a DetectionImagePoint."""
    rows = {gate: pool.confusion(gate, above) for gate in GATES}
    rows["counts"] = pool.counts(above)
    if exclusive is not None:
        rows["exclusive"] = pool.exclusive_counts("distance", above, exclusive)
    return rows


def _measured(
    pool: ObjectPool,
    above: Bool[np.ndarray, " n"],
    rows: dict[str, Int64[np.ndarray, "images _"]],
    class_names: Sequence[str],
    seed: int,
    level: float,
) -> dict[str, Any]:
    """The measures of a DetectionPoint."""

    def over_images(measures: Iterable[str], rows: dict[str, np.ndarray]) -> dict[str, Interval]:
        measured = {}
        for name in measures:
            kind, function, pooled = MEASURES[name]
            measured[name] = measured_over_images(rows[kind], function, pooled, seed, level)
        return measured

    labels = dict(enumerate(class_names, 1))
    per_class, exclusive = {}, {}
    for label, name in labels.items():
        of_class = {gate: pool.class_confusion(gate, above, label) for gate in GATES}
        sizes = {
            "truth": int((pool.truth_label == label).sum()),
            "predicted": int((pool.predicted_label[above] == label).sum()),
        }
        per_class[name] = cast(ClassPoint, sizes | over_images(GATED, of_class))
        if len(class_names) > 1:
            hits = {"exclusive": pool.exclusive_counts("distance", above, label)}
            exclusive[name] = cast(ExclusivePoint, over_images(EXCLUSIVE, hits))
    return {
        **over_images([*GATED, "counts_mae"], rows),
        "per_class": per_class,
        "exclusive_recall": exclusive,
        "confusion": {gate: pool.confusion_matrix(gate, above, len(class_names)).tolist() for gate in GATES},
    }


def _check(
    pool: ObjectPool,
    names: Sequence[str],
    class_names: Sequence[str],
    threshold_carried: float | None,
    exclusive_class: str | None,
) -> None:
    if len(names) != pool.images:
        raise InputError(f"Every image needs a name; got {pool.images} images and {len(names)} names.")
    if not class_names or len(set(class_names)) != len(class_names):
        raise InputError(f"class_names must be one or more different names; got {list(class_names)}.")
    for what, labels, lowest in (
        ("true object", pool.truth_label, 0),
        ("prediction", pool.predicted_label, 1),
    ):
        odd = labels[(labels < lowest) | (labels > len(class_names))]
        if len(odd):
            raise InputError(
                f"The class of a {what} must lie in {lowest} .. {len(class_names)} "
                f"({', '.join(class_names)}); got {odd[0]}."
            )
    if threshold_carried is not None and not 0 <= threshold_carried < 1:
        raise InputError(f"threshold_carried must lie in [0, 1); got {threshold_carried}.")
    if exclusive_class is not None and exclusive_class not in class_names:
        raise InputError(f"exclusive_class must be one of {', '.join(class_names)}; got {exclusive_class!r}.")
