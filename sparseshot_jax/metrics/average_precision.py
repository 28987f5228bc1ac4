"""Average precision over all thresholds at once, with no cap on the detections of an image."""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sparseshot_jax.metrics.detection import ObjectPool
from sparseshot_jax.metrics.matching import Pairs

RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision


def average_precision(pool: ObjectPool, gate: str, label: int | None = None) -> float | None:
    """COCO's AP of one class (or of objects of any class) at one gate, "distance" or "iou".

    Detections of all images, best score first (of equal scores the earlier), each take the free true
    object that lies nearest; the mean over 101 recalls of the highest precision at that recall or a
    higher one. COCO counts 100 detections an image and drops the rest, this counts all. A detection
    that takes an object of unknown class counts neither for nor against its own.

    Source: cocoapi, PythonAPI/pycocotools/cocoeval.py, `evaluateImg` and `accumulate`.

    Returns:
        [0, 1]; None where there is no true object. It ends at the lowest score that is given.
    """
    pairs, chosen = pool.candidates[gate], np.ones(len(pool.score), bool)
    wanted = np.ones(len(pool.truth_label), bool)
    if label is not None:
        chosen, wanted = pool.predicted_label == label, pool.truth_label == label
        usable = wanted | (pool.truth_label == 0)
        pairs = pairs.take(chosen[pairs.predicted] & usable[pairs.truth])
    if not wanted.any():
        return None
    order = np.argsort(-pool.score, kind="stable")
    takes = _take_in_turn(pairs, order, wanted)
    order = order[chosen[order]]
    hit = takes[order] >= 0
    excused = hit & ~wanted[takes[order]]
    return _area(hit[~excused], int(wanted.sum()))


def _take_in_turn(
    pairs: Pairs, order: Int64[np.ndarray, " n"], wanted: Bool[np.ndarray, " m"]
) -> Int64[np.ndarray, " n"]:
    """The true object that each prediction takes, -1 for none; objects that are not wanted go last."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    # Of equal gains COCO takes the last object.
    turns = np.lexsort((-pairs.truth, -pairs.gain, ~wanted[pairs.truth], rank[pairs.predicted]))
    takes, taken = np.full(len(order), -1), [False] * len(wanted)
    last = -1  # the last prediction that was served; its pairs are neighbours
    for truth, predicted in zip(pairs.truth[turns].tolist(), pairs.predicted[turns].tolist()):
        if predicted != last and not taken[truth]:
            takes[predicted], taken[truth], last = truth, True, predicted
    return takes


def _area(hit: Bool[np.ndarray, " k"], objects: int) -> float:
    found = np.cumsum(hit)
    precision: Float64[np.ndarray, " k"] = found / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / objects, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[first].mean())
