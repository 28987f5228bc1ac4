"""Counts of detections on scenes small enough to count by hand."""

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import ImageObjects
from sparseshot_jax.metrics.detection import pool_objects


def objects(*rows: tuple[float, int] | tuple[float, int, float]) -> ImageObjects:
    """Objects on a line, 4 um wide: (x, class) or (x, class, score)."""
    xy = np.array([[row[0], 0.0] for row in rows]).reshape(-1, 2)
    return ImageObjects(
        xy_um=xy,
        boxes_um=np.concatenate([xy - 2, xy + 2], axis=1),
        label=np.array([row[1] for row in rows], np.int64),
        score=np.array([row[2] if len(row) > 2 else 1.0 for row in rows]),
    )


def pooled(*images: tuple[ImageObjects, ImageObjects]):
    truths, predictions = zip(*images)
    pool = pool_objects(truths, predictions, distance_um=3.0, iou=0.5)
    return pool, pool.above(0.0)


def test_detection_counts_any_class_and_each_image_on_its_own():
    first = objects((0, 1), (10, 2), (20, 0)), objects((1, 2, 0.9), (22, 1, 0.8), (40, 1, 0.7))
    second = objects(), objects((10, 1, 0.6))  # where the first image has an object
    pool, above = pooled(first, second)
    assert pool.confusion("distance", above).tolist() == [[2, 1, 1], [0, 1, 0]]
    assert pool.confusion("iou", above).tolist() == [[1, 2, 2], [0, 1, 0]]  # 2 um off is IoU 1/3
    assert pool.counts(above).tolist() == [[3, 3], [0, 1]]
    assert pool.confusion("distance", pool.above(0.75)).tolist() == [[2, 0, 1], [0, 0, 0]]


def test_scores_are_compared_as_float32_and_strictly():
    score = np.array([0.3, 0.3, 0.5], np.float64)
    base = objects((0, 1), (10, 1), (20, 1))
    for dtype in (np.float32, np.float64):
        said = ImageObjects(
            xy_um=base.xy_um, boxes_um=base.boxes_um, label=base.label, score=score.astype(dtype)
        )
        assert pooled((base, said))[0].above(0.3).tolist() == [False, False, True]


def test_a_hit_on_an_object_of_unknown_class_is_no_false_alarm_of_a_class():
    truth = objects((0, 1), (10, 0), (20, 2))
    said = objects((0, 1), (10, 1), (20, 1), (30, 1))  # right; unknown; wrong class; nothing there
    pool, above = pooled((truth, said))
    assert pool.class_confusion("distance", above, 1).tolist() == [[1, 2, 0]]
    assert pool.class_confusion("distance", above, 2).tolist() == [[0, 0, 1]]
    assert pool.confusion("distance", above).tolist() == [[3, 1, 0]]


def test_the_matrix_of_classes_with_missed_and_false():
    truth = objects((0, 1), (10, 1), (20, 2), (30, 2), (40, 0), (50, 0))
    said = objects((0, 1), (10, 2), (20, 2), (40, 1), (60, 2), (70, 1))
    pool, above = pooled((truth, said))
    assert pool.confusion_matrix("distance", above, 2).tolist() == [
        [1, 1, 0],  # class 1: right, called 2, missed
        [0, 1, 1],
        [1, 1, 0],  # false alarms; the pair at 40 and the miss at 50 are of unknown class
    ]


def test_exclusive_recall_matches_twice():
    """One prediction may hit an object of its class and one of another class beside it."""
    truth = objects((0, 1), (10, 1), (2, 2), (20, 2), (30, 2), (40, 0))
    said = objects((0, 1), (20, 1), (40, 1), (30, 2))
    pool, above = pooled((truth, said))
    assert pool.exclusive_counts("distance", above, 1).tolist() == [[1, 2, 2, 3]]
    assert pool.exclusive_counts("distance", above, 2).tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xy_um": np.array([[0.0, 0], [np.nan, 0]])}, "xy_um must be finite; object 1"),
        ({"boxes_um": np.array([[0.0, 0, 4, 4], [4, 0, 0, 4]])}, "box 1"),
    ],
)
def test_broken_objects_are_refused(change, message):
    whole = vars(objects((0, 1), (10, 1)))
    with pytest.raises(InputError, match=message):
        ImageObjects(**{**whole, **change})


def test_every_image_needs_both_sides():
    with pytest.raises(InputError, match="at least one image"):
        pool_objects([], [], distance_um=3.0, iou=0.5)
    with pytest.raises(InputError, match="1 of truth and 0"):
        pool_objects([objects()], [], distance_um=3.0, iou=0.5)
