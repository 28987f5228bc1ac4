"""The measures of a detector as functions of stored counts, where a side is empty above all."""

import numpy as np
import pytest

from sparseshot_jax.metrics import dice_of
from sparseshot_jax.metrics.detection_evaluation import (
    MEASURES,
    class_recall_of,
    count_error_of,
    exclusive_recall_of,
    other_recall_of,
    precision_of,
    recall_of,
)


def test_precision_and_recall_where_a_side_is_empty():
    rows = np.array([[6, 2, 4], [0, 3, 0], [0, 0, 3], [0, 0, 0]])
    assert precision_of(rows).tolist() == [0.75, 0, 0, 1]
    assert recall_of(rows).tolist() == [0.6, 0, 0, 1]
    together = (
        2 * precision_of(rows[:1]) * recall_of(rows[:1]) / (precision_of(rows[:1]) + recall_of(rows[:1]))
    )
    assert together == pytest.approx(dice_of(rows[:1]), abs=1e-15)


def test_exclusive_recall_and_its_parts():
    rows = np.array([[8, 10, 1, 4], [0, 0, 1, 4], [8, 10, 0, 0], [4, 4, 4, 4]])
    assert class_recall_of(rows).tolist() == [0.8, 1, 0.8, 1]
    assert other_recall_of(rows).tolist() == [0.25, 0.25, 0, 1]
    np.testing.assert_allclose(exclusive_recall_of(rows), [0.6, 0.75, 0.8, 0], rtol=1e-15)


def test_count_error_has_no_sign():
    assert count_error_of(np.array([[3, 5], [5, 3], [0, 0]])).tolist() == [2, 2, 0]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_takes_resamples_of_its_counts(measure):
    kind, function, _ = MEASURES[measure]
    length = {"distance": 3, "iou": 3, "counts": 2, "exclusive": 4}[kind]
    assert function(np.ones((7, length))).shape == (7,)
