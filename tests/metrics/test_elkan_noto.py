"""The correction p / c: the truth where it is known, plain loops, and the package pulearn."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import (
    ImageObjects,
    estimate_c,
    estimate_c_of_pixels,
    histograms,
    matched_scores,
    threshold_elkan_noto,
)

PRIOR = 0.3  # share of positives


def drawn(seed: int, n: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of n samples are positive, and their true p(positive | x): normal densities `apart` apart."""
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < PRIOR
    x = generator.normal(size=n) + apart * (positive - 0.5)
    return positive, 1 / (1 + (1 - PRIOR) / PRIOR * np.exp(-apart * x))


@pytest.mark.parametrize("c", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("w", [1.0, 0.2])
def test_where_the_posterior_is_known_c_is_found_and_decisions_are_those_of_bayes(c, w):
    """p of a perfect model of annotated against the rest, the rest weighted by w: Lemma 1."""
    _, q = drawn(0, 20_000, apart=7.0)
    annotated = c * q
    p = annotated / (annotated + w * (1 - annotated))
    held_out, q_held_out = drawn(1, 20_000, apart=7.0)
    seen = c * q_held_out[held_out]
    estimate = estimate_c(seen / (seen + w * (1 - seen)))
    assert estimate is not None
    # 7 apart a positive has q = 0.998 in the mean: that is how far e1 falls short
    assert estimate == pytest.approx(c / (c + (1 - c) * w), rel=5e-3)
    decided = p > threshold_elkan_noto(estimate, 1000)
    assert 0.25 < decided.mean() < 0.35
    # Of cross-entropy Bayes' q > 1 / 2, but for the step of the grid and what e1 falls short of c.
    off = 0.5 / 1000 / c + 0.5 * 5e-3
    clear = np.abs(q - 0.5) > (off if w == 1 else 0.25)
    np.testing.assert_array_equal(decided[clear], q[clear] > 0.5)
    assert clear.mean() > 0.995
    if c < 0.5 and w == 1:
        assert not (p > 0.5).any()  # without the correction nothing is found


def test_of_positives_that_look_like_the_rest_e1_is_less_than_c():
    held_out, q = drawn(1, 50_000, apart=1.5)
    estimate = estimate_c(0.4 * q[held_out])
    assert estimate is not None
    assert estimate == pytest.approx(0.4 * q[held_out].mean(), rel=1e-12)
    assert estimate < 0.3


def test_pixels_of_all_images_are_pooled():
    generator = np.random.default_rng(0)
    total, number, counts = 0.0, 0, []
    for side in (5, 40):  # images of very different size
        p, truth = generator.random((side, side)) ** 3, generator.integers(0, 3, (side, side))
        valid = generator.random((side, side)) < 0.8
        counts.append(histograms(p, truth, valid))
        for y, x in np.ndindex(side, side):
            if truth[y, x] and valid[y, x]:
                total, number = total + p[y, x], number + 1
    assert estimate_c_of_pixels(np.stack(counts)) == pytest.approx(total / number, abs=0.5 / 1000)
    assert estimate_c_of_pixels(counts[0]) == estimate_c_of_pixels(counts[0][None])


def objects(xy: np.ndarray, score: np.ndarray) -> ImageObjects:
    boxes = np.concatenate([xy - 2, xy + 2], axis=1)
    return ImageObjects(xy_um=xy, boxes_um=boxes, label=np.ones(len(xy), int), score=score)


def test_objects_have_the_score_matched_to_them_or_none():
    """Against one Hungarian table an image."""
    generator = np.random.default_rng(0)
    truths, predictions, expected = [], [], []
    for true, said in ((12, 30), (0, 4), (5, 0), (30, 12)):
        truths.append(objects(generator.uniform(0, 30, (true, 2)), np.ones(true)))
        predictions.append(objects(generator.uniform(0, 30, (said, 2)), generator.random(said)))
        distance = np.hypot(*(truths[-1].xy_um[:, None] - predictions[-1].xy_um[None]).T).T
        gain = np.where(distance <= 3.0, 100.0 - distance, 0.0)
        scores = np.zeros(true)
        for i, j in zip(*linear_sum_assignment(gain, maximize=True)):
            if gain[i, j]:
                scores[i] = predictions[-1].score[j]
        expected.append(scores)
    found = matched_scores(truths, predictions, distance_um=3.0)
    np.testing.assert_array_equal(found, np.concatenate(expected))
    assert 0 < np.count_nonzero(found) < len(found) == 47


def test_a_missed_object_counts_nought_and_a_false_alarm_nothing():
    truth = objects(np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]]), np.ones(3))
    found = objects(np.array([[0.5, 0.0], [10.0, 1.0], [50.0, 50.0]]), np.array([0.6, 0.3, 0.9]))
    assert estimate_c(matched_scores([truth], [found], distance_um=3.0)) == pytest.approx(0.3)


def test_without_positives_or_with_none_found_there_is_no_c():
    assert estimate_c(np.zeros(0)) is None
    assert estimate_c(np.zeros(4)) is None
    assert estimate_c_of_pixels(histograms(np.full((3, 3), 0.4), np.zeros((3, 3)))[None]) is None
    none = objects(np.zeros((0, 2)), np.zeros(0))
    assert estimate_c(matched_scores([none], [none], distance_um=3.0)) is None


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_threshold_lies_on_the_grid(steps):
    for c in np.linspace(0.001, 1, 57):
        threshold = threshold_elkan_noto(float(c), steps)
        assert threshold * steps == pytest.approx(round(threshold * steps), abs=1e-9)
        assert 1 / steps <= threshold <= 0.5
        assert abs(threshold - max(c / 2, 1 / steps)) <= 0.5 / steps + 1e-12


def test_what_is_no_probability_is_refused():
    for c in (0.0, 1.1, -0.2, float("nan")):
        with pytest.raises(InputError, match=r"c is the share .* must lie in \(0, 1\]"):
            threshold_elkan_noto(c, 100)
    for p in ([0.2, 1.5], [-0.1], [0.5, float("nan")]):
        with pytest.raises(InputError, match="not logits"):
            estimate_c(np.array(p))


def test_c_and_decisions_are_those_of_pulearn():
    pulearn = pytest.importorskip("pulearn", reason="the package is in the extra 'reference'")

    class Known:
        """p is the feature itself."""

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return np.concatenate([1 - x, x], axis=1)

    generator = np.random.default_rng(0)
    positive, q = drawn(0, 4000, apart=3.0)
    p = 0.35 * q
    annotated = positive & (generator.random(len(p)) < 0.35)
    theirs = pulearn.ElkanotoPuClassifier(Known(), hold_out_ratio=0.25, random_state=7)
    theirs.fit(p[:, None], annotated.astype(int))
    order = np.arange(len(p))
    np.random.RandomState(7).shuffle(order)  # as the package does
    held_out = order[: len(p) // 4]
    c = estimate_c(p[held_out][annotated[held_out]])
    assert c is not None
    assert c == pytest.approx(theirs.c, rel=1e-12)
    threshold = threshold_elkan_noto(c, 10**9)
    np.testing.assert_array_equal(p > threshold, theirs.predict(p[:, None]) == 1)
