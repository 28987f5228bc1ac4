"""AP against pycocotools with its cap on detections raised, and against a plain loop by distance."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparseshot_jax.metrics import ImageObjects
from sparseshot_jax.metrics.average_precision import RECALLS, average_precision
from sparseshot_jax.metrics.detection import pool_objects

seeds = st.integers(0, 2**32 - 1)
CLASSES = 3


def image(seed: int, n: int, unknown: bool = False) -> tuple[ImageObjects, ImageObjects]:
    """Boxes on whole numbers, so that IoU is the same float whichever way the area is computed."""
    generator = np.random.default_rng(seed)
    corner = generator.integers(0, int(4 * np.sqrt(n)) + 2, (n, 2))
    truth = np.concatenate([corner, corner + generator.integers(3, 9, (n, 2))], axis=1)
    moved = truth + generator.integers(-1, 2, truth.shape)
    spare = generator.permutation(truth)[: n // 2] + 1
    predicted = np.concatenate([moved, spare])
    label = generator.integers(0 if unknown else 1, CLASSES + 1, n)
    said = np.concatenate([np.maximum(label, 1), generator.integers(1, CLASSES + 1, n // 2)])
    score = generator.random(len(predicted)).round(3)  # some ties
    return objects(truth, label, np.ones(n)), objects(predicted, said, score)


def objects(boxes: np.ndarray, label: np.ndarray, score: np.ndarray) -> ImageObjects:
    boxes = boxes.astype(np.float64)
    return ImageObjects(
        xy_um=(boxes[:, :2] + boxes[:, 2:]) / 2, boxes_um=boxes, label=label.astype(np.int64), score=score
    )


def coco_ap(truths, predictions, *, iou: float, by_class: bool) -> dict[int, float]:
    """Class (0 = any) -> AP at one IoU, from pycocotools with 10,000 detections an image allowed."""

    def rows(images, scored):
        found = []
        for k, one in enumerate(images):
            for (x0, y0, x1, y1), label, score in zip(one.boxes_um, one.label, one.score):
                row = {"image_id": k + 1, "category_id": int(label) if by_class else 1, "iscrowd": 0}
                row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                found.append(row | ({"score": score} if scored else {}) | {"id": len(found) + 1})
        return found

    coco = COCO()
    coco.dataset = {
        "images": [{"id": k + 1} for k in range(len(truths))],
        "categories": [{"id": k} for k in range(1, CLASSES + 1)],
        "annotations": rows(truths, False),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(rows(predictions, True)), "bbox")
        judge.params.iouThrs = np.array([iou])
        judge.params.maxDets = [10_000]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    values = judge.eval["precision"][0, :, :, 0, 0].mean(0)
    return {k: float(values[k - 1]) for k in range(1, CLASSES + 1)} if by_class else {0: float(values[0])}


@settings(max_examples=12, deadline=None)
@given(seed=seeds, iou=st.sampled_from([0.3, 0.5, 0.75]))
def test_ap_is_that_of_pycocotools(seed, iou):
    truths, predictions = zip(*[image(seed + k, n) for k, n in enumerate((1, 12, 40))])
    pool = pool_objects(truths, predictions, distance_um=3.0, iou=iou)
    # pycocotools adds 2e-16 to the number of predictions
    any_class = coco_ap(truths, predictions, iou=iou, by_class=False)[0]
    assert average_precision(pool, "iou") == pytest.approx(any_class, abs=1e-12)
    for label, expected in coco_ap(truths, predictions, iou=iou, by_class=True).items():
        found = average_precision(pool, "iou", label)
        assert (-1 if found is None else found) == pytest.approx(expected, abs=1e-12)


def test_no_cap_on_the_detections_of_an_image():
    truth, predicted = image(0, 800)
    pool = pool_objects([truth], [predicted], distance_um=3.0, iou=0.5)
    expected = coco_ap([truth], [predicted], iou=0.5, by_class=False)[0]
    assert average_precision(pool, "iou") == pytest.approx(expected, abs=1e-12)
    perfect = pool_objects([truth], [truth], distance_um=3.0, iou=0.5)
    assert average_precision(perfect, "iou") == 1.0


def loop_ap(truths, predictions, gate: float, label: int | None) -> float:
    """AP by distance: every prediction in turn takes the nearest free object; unknown ones last."""
    queue = sorted(
        ((k, j) for k, p in enumerate(predictions) for j in range(len(p))),
        key=lambda at: -predictions[at[0]].score[at[1]],
    )
    free = [np.ones(len(t), bool) for t in truths]
    wanted = [t.label == label if label else np.ones(len(t), bool) for t in truths]
    hits = []
    for k, j in queue:
        if label and predictions[k].label[j] != label:
            continue
        distance = np.hypot(*(truths[k].xy_um - predictions[k].xy_um[j]).T)
        usable = free[k] & (distance <= gate)
        for group in (wanted[k], (truths[k].label == 0) & ~wanted[k]):
            if (usable & group).any():
                taken = np.argmin(np.where(usable & group, distance, np.inf))
                free[k][taken] = False
                if wanted[k][taken]:
                    hits.append(True)
                break
        else:
            hits.append(False)
    found = np.cumsum(hits)
    precision, recall = found / np.arange(1, len(hits) + 1), found / sum(w.sum() for w in wanted)
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in RECALLS]))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, label=st.sampled_from([None, 1, 2]))
def test_ap_by_distance_with_unknown_classes_is_that_of_a_loop(seed, label):
    generator = np.random.default_rng(seed)
    truths, predictions = [], []
    for n in (0, 7, 30):
        truth, predicted = image(seed + n, n, unknown=True)
        score = generator.random(len(predicted))
        moved = predicted.xy_um + generator.normal(size=(len(predicted), 2))  # no ties
        truths.append(truth)
        predictions.append(
            ImageObjects(xy_um=moved, boxes_um=predicted.boxes_um, label=predicted.label, score=score)
        )
    pool = pool_objects(truths, predictions, distance_um=3.0, iou=0.5)
    found = average_precision(pool, "distance", label)
    if found is None:
        assert not any((t.label == label).any() for t in truths)
    else:
        assert found == pytest.approx(loop_ap(truths, predictions, 3.0, label), abs=1e-12)


def test_without_truth_there_is_no_ap_and_without_predictions_it_is_zero():
    truth, _ = image(0, 5)
    none = truth.take(np.zeros(5, bool))
    assert average_precision(pool_objects([none], [truth], distance_um=3.0, iou=0.5), "iou") is None
    assert average_precision(pool_objects([truth], [none], distance_um=3.0, iou=0.5), "distance") == 0.0
