"""Matching against a brute force that compares every object with every other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import aji, components, dice_of, match_by_iou, panoptic_quality

seeds = st.integers(0, 2**32 - 1)


def label_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of rectangles, the second a shifted copy with objects split, dropped and added."""
    generator = np.random.default_rng(seed)
    truth, predicted = np.zeros((2, 40, 40), np.int32)
    for k in range(1, 9):
        y, x = generator.integers(0, 34, 2)
        h, w = generator.integers(2, 10, 2)
        truth[y : y + h, x : x + w] = k
        dy, dx = generator.integers(-1, 2, 2)
        if generator.random() < 0.8:
            y, x = max(y + dy, 0), max(x + dx, 0)
            predicted[y : y + h, x : x + w // 2] = 10 * k
            predicted[y : y + h, x + w // 2 : x + w] = 10 * k + (generator.random() < 0.3)
    return truth, predicted


def all_ious(truth, predicted):
    masks = [[labels == k for k in np.unique(labels[labels > 0])] for labels in (truth, predicted)]
    iou = [[(a & b).sum() / (a | b).sum() for b in masks[1]] for a in masks[0]]
    return masks, np.array(iou).reshape(len(masks[0]), len(masks[1]))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, gate=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.75, 1.0]))
def test_matches_are_those_of_a_full_hungarian(seed, gate):
    truth, predicted = label_maps(seed)
    _, iou = all_ious(truth, predicted)
    gain = np.where(iou >= gate, 100 + iou, 0)  # as many as possible, then the largest sum of IoU
    rows, columns = linear_sum_assignment(gain, maximize=True)
    good = iou[rows, columns] >= gate
    found = int(good.sum())
    matches = match_by_iou(truth, predicted, gate)
    assert matches.confusion.tolist() == [found, iou.shape[1] - found, iou.shape[0] - found]
    assert matches.iou.sum() == pytest.approx(iou[rows, columns][good].sum(), abs=1e-9)
    assert len(set(matches.truth_ids)) == len(set(matches.predicted_ids)) == found
    for i, j, value in zip(matches.truth_ids, matches.predicted_ids, matches.iou):
        a, b = truth == i, predicted == j
        assert value == (a & b).sum() / (a | b).sum()


def test_two_halves_of_one_object_are_one_match_and_one_false_positive():
    truth = np.ones((2, 4), np.int32)
    predicted = np.array([[1, 1, 2, 2]] * 2)
    assert match_by_iou(truth, predicted).confusion.tolist() == [1, 1, 0]
    swapped = match_by_iou(predicted, truth)
    assert (swapped.tp, swapped.fp, swapped.fn) == (1, 0, 1)
    assert panoptic_quality(truth, predicted) == 0.0  # counts only pairs above 0.5


def test_more_matches_beat_a_better_one():
    # A and B against P and Q: the pair A-P has the highest IoU, yet only A-Q with B-P gives two.
    truth = np.array([[1, 1, 1, 1, 1, 1, 2, 2]])
    predicted = np.array([[2, 3, 3, 3, 3, 3, 3, 0]])
    assert match_by_iou(truth, predicted, 0.1).confusion.tolist() == [2, 0, 0]


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_perfect_is_one_and_ids_do_not_matter(seed):
    truth, predicted = label_maps(seed)
    renamed = np.where(truth > 0, 1000 - 7 * truth, 0)
    assert dice_of(match_by_iou(truth, renamed).confusion) == 1.0
    assert panoptic_quality(truth, renamed) == 1.0
    assert aji(truth, renamed) == 1.0
    other = np.where(predicted > 0, 500 - predicted, 0)
    assert match_by_iou(truth, other).confusion.tolist() == match_by_iou(truth, predicted).confusion.tolist()
    assert panoptic_quality(truth, other) == pytest.approx(panoptic_quality(truth, predicted), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_empty_maps(dtype):
    empty, full = np.zeros((3, 3), dtype), np.ones((3, 3), dtype)
    for measure in (lambda a, b: dice_of(match_by_iou(a, b).confusion), panoptic_quality, aji):
        assert measure(empty, empty) == 1.0
        assert measure(full, empty) == 0.0
        assert measure(empty, full) == 0.0


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_panoptic_quality_and_aji_against_their_definitions(seed):
    truth, predicted = label_maps(seed)
    (truths, calls), iou = all_ious(truth, predicted)
    matched = iou[iou > 0.5]
    tp = len(matched)
    expected = matched.sum() / (tp + (len(calls) - tp) / 2 + (len(truths) - tp) / 2)
    assert panoptic_quality(truth, predicted) == pytest.approx(expected, abs=1e-12)

    shared, united, used = 0, 0, set()
    for a, row in zip(truths, iou):
        if row.size and row.max() > 0:
            j = int(row.argmax())
            used.add(j)
            shared, united = shared + (a & calls[j]).sum(), united + (a | calls[j]).sum()
        else:
            united += a.sum()
    united += sum(calls[j].sum() for j in set(range(len(calls))) - used)
    assert aji(truth, predicted) == pytest.approx(shared / united, abs=1e-12)


def test_pooled_f1_is_of_summed_counts():
    per_image = np.array([[1, 0, 0], [1, 3, 5]])
    assert dice_of(per_image).tolist() == [1.0, 2 / 10]
    assert dice_of(per_image.sum(0)) == 4 / 12


def test_components_state_their_neighbours():
    diagonal = np.eye(3, dtype=bool)
    assert components(diagonal).max() == 3
    assert components(diagonal, neighbours=8).max() == 1
    assert components(np.zeros((2, 2), bool)).max() == 0
    with pytest.raises(InputError, match="4 or 8"):
        components(diagonal, neighbours=6)


def test_a_gate_outside_its_range_is_refused():
    with pytest.raises(InputError, match="iou"):
        match_by_iou(np.ones((1, 1), int), np.ones((1, 1), int), 0.0)
