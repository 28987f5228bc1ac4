"""Histograms must answer every threshold as a direct comparison of pixels would."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import overlap

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, images: int = 3, side: int = 24, bins: int = 100):
    """Images whose p often lies exactly on the threshold grid, as float32."""
    generator = np.random.default_rng(seed)
    p = generator.random((images, side, side)).astype(np.float32)
    grid = (generator.integers(0, bins + 1, p.shape) / bins).astype(np.float32)
    p = np.where(generator.random(p.shape) < 0.5, grid, p)
    truth = generator.random(p.shape) < p
    counts = np.stack([overlap.histograms(a, b, bins=bins) for a, b in zip(p, truth)])
    return p, truth, counts


def direct(p: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[int, int, int]:
    called = p > np.float32(threshold)
    return int((called & truth).sum()), int((called & ~truth).sum()), int((~called & truth).sum())


@pytest.mark.parametrize("bins", [10, 100, 1000])
def test_every_threshold_is_exact_for_strictly_greater(bins):
    p, truth, counts = draw(0, bins=bins)
    for k in range(1, bins):
        expected = [direct(a, b, k / bins) for a, b in zip(p, truth)]
        assert overlap.confusion(counts, k / bins).tolist() == [list(row) for row in expected]


def test_p_equal_to_the_threshold_is_background_and_its_neighbours_are_told_apart():
    half = np.float32(0.5)
    p = np.array([half, np.nextafter(half, np.float32(1)), np.nextafter(half, np.float32(0))], np.float32)
    counts = overlap.histograms(p, np.ones(3, bool))
    assert overlap.confusion(counts, 0.5).tolist() == [1, 0, 2]
    for threshold in (0.001, 0.3, 0.7, 0.999):
        edge = np.float32(threshold)
        above = overlap.histograms(np.nextafter(edge, np.float32(1))[None], np.ones(1, bool))
        assert overlap.confusion(above, threshold).tolist() == [1, 0, 0]
        at = overlap.histograms(edge[None], np.ones(1, bool))
        assert overlap.confusion(at, threshold).tolist() == [0, 0, 1]


def test_dice_and_iou_by_hand_per_image_and_pooled():
    p = np.array([[0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]])
    truth = np.array([[1, 0, 1, 0], [1, 1, 1, 0]], bool)
    counts = np.stack([overlap.histograms(a, b) for a, b in zip(p, truth)])
    assert overlap.dice(counts, 0.5).tolist() == [2 / 4, 2 / 4]
    assert overlap.iou(counts, 0.5).tolist() == [1 / 3, 1 / 3]
    assert overlap.dice(counts.sum(0), 0.5) == 4 / 8
    assert overlap.iou(counts.sum(0), 0.5) == 2 / 6


def test_empty_cases():
    low, high, nothing, everything = np.full(4, 0.1), np.full(4, 0.9), np.zeros(4, bool), np.ones(4, bool)
    assert overlap.dice(overlap.histograms(low, nothing), 0.5) == 1.0
    assert overlap.iou(overlap.histograms(low, nothing), 0.5) == 1.0
    assert overlap.dice(overlap.histograms(high, nothing), 0.5) == 0.0
    assert overlap.dice(overlap.histograms(low, everything), 0.5) == 0.0
    assert overlap.dice(overlap.histograms(high, everything), 0.5) == 1.0
    assert overlap.dice(overlap.histograms(high, everything, np.zeros(4, bool)), 0.5) == 1.0


def test_invalid_pixels_are_not_counted():
    p, truth, _ = draw(1, images=1)
    valid = np.random.default_rng(2).random(p.shape) < 0.5
    assert np.array_equal(overlap.histograms(p, truth, valid), overlap.histograms(p[valid], truth[valid]))


def test_blocks_change_nothing(monkeypatch):
    p, truth, _ = draw(3)
    whole = overlap.histograms(p, truth)
    monkeypatch.setattr(overlap, "BLOCK_PX", 7)
    assert np.array_equal(overlap.histograms(p, truth), whole)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, permutation=st.permutations(range(5)))
def test_pooled_measures_do_not_depend_on_the_order_of_images_or_pixels(seed, permutation):
    p, truth, counts = draw(seed, images=5, side=8)
    assert np.array_equal(counts[permutation].sum(0), counts.sum(0))
    assert overlap.best_threshold(counts[permutation]) == overlap.best_threshold(counts)
    mixed = np.random.default_rng(seed).permutation(p.size)
    shuffled = overlap.histograms(p.ravel()[mixed], truth.ravel()[mixed], bins=100)
    assert np.array_equal(shuffled, counts.sum(0))


@settings(max_examples=30, deadline=None)
@given(p=hnp.arrays(np.float32, 40, elements=st.floats(0, 1, width=32)), seed=seeds)
def test_a_higher_threshold_never_calls_more(p, seed):
    truth = np.random.default_rng(seed).random(40) < 0.4
    counts = overlap.histograms(p, truth, bins=50)
    steps = np.array([overlap.confusion(counts, k / 50) for k in range(1, 50)])
    assert (np.diff(steps[:, 0]) <= 0).all()
    assert (np.diff(steps[:, 1]) <= 0).all()
    assert (steps[:, 0] + steps[:, 2] == truth.sum()).all()


@pytest.mark.parametrize("measure", overlap.MEASURES)
def test_best_threshold_is_the_brute_force_maximum(measure):
    p, truth, counts = draw(4)
    thresholds, curve = overlap.threshold_curve(counts, measure)
    rows = np.array([[direct(a, b, t) for a, b in zip(p, truth)] for t in thresholds], float)
    rows = rows.sum(1, keepdims=True) if "pooled" in measure else rows
    tp, fp, fn = np.moveaxis(rows, -1, 0)
    weight = 2 if "Dice" in measure else 1
    expected = (weight * tp / (weight * tp + fp + fn)).mean(1)
    np.testing.assert_allclose(curve, expected, rtol=1e-12)  # the same sums in another order
    best = overlap.best_threshold(counts, measure)
    assert curve[np.flatnonzero(thresholds == best)[0]] == pytest.approx(expected.max(), rel=1e-12)


def test_of_equal_thresholds_the_one_nearest_to_a_half_wins():
    truth = np.array([True, False])
    assert overlap.best_threshold(overlap.histograms(np.array([0.9, 0.1]), truth)[None]) == 0.5
    assert overlap.best_threshold(overlap.histograms(np.array([0.9, 0.7]), truth)[None]) == 0.7
    assert overlap.best_threshold(overlap.histograms(np.array([0.3, 0.1]), truth)[None]) == 0.299


def test_a_calibrated_model_has_no_calibration_error_and_an_overconfident_one_has():
    generator = np.random.default_rng(5)
    p = generator.random(200_000)
    truth = generator.random(p.shape) < p
    honest = overlap.reliability(overlap.histograms(p, truth))
    assert honest["expected_calibration_error"] < 0.01  # sampling: 10 bins of 20,000, sd <= 0.0035
    np.testing.assert_allclose(honest["mean_p"], honest["observed"], atol=0.015)  # 4 sd
    assert sum(honest["pixels"]) == p.size
    always = overlap.reliability(overlap.histograms(np.full(1000, 0.9), np.arange(1000) < 600))
    assert always["expected_calibration_error"] == pytest.approx(0.3, abs=5.1e-4)  # half a bin
    assert always["observed"][8] == 0.6  # p = 0.9 lies in (0.8, 0.9]
    assert always["observed"][9] is None


def test_reliability_of_nothing():
    nothing = overlap.reliability(overlap.histograms(np.zeros(0), np.zeros(0, bool)))
    assert nothing["expected_calibration_error"] is None


@pytest.mark.parametrize("p", [[0.5, np.nan], [1.5, 0.2], [-0.1, 0.2]])
def test_p_that_is_no_probability_is_refused(p):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        overlap.histograms(np.array(p), np.zeros(2, bool))


def test_a_threshold_off_the_grid_is_refused_with_the_nearest_one():
    counts = overlap.histograms(np.array([0.3]), np.ones(1, bool), bins=100)
    with pytest.raises(InputError, match=r"Try 0\.33"):
        overlap.dice(counts, 0.333)
    with pytest.raises(InputError, match="divide"):
        overlap.reliability(counts, bins=7)
