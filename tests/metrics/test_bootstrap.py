"""Intervals against resampling by hand, their coverage, and the pairing."""

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics import dice_of, interval, paired_difference
from sparseshot_jax.metrics.bootstrap import resamples


def counts(images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, (images, 3))


def test_mean_and_pooled_are_those_of_resampled_rows():
    rows = counts(7, 0)
    drawn = resamples(7, seed=3, n=500)
    repeated = [np.repeat(rows, w, axis=0) for w in drawn]
    for pooled, values in (
        (dice_of, [float(dice_of(r.sum(0))) for r in repeated]),
        (None, [float(dice_of(r).mean()) for r in repeated]),
    ):
        found = interval(rows if pooled else dice_of(rows), pooled, seed=3, n=500)
        low, high = np.quantile(values, [0.025, 0.975])
        assert found["low"] == pytest.approx(low, abs=1e-12)
        assert found["high"] == pytest.approx(high, abs=1e-12)
    assert interval(rows, dice_of, seed=3)["mean"] == dice_of(rows.sum(0))


def test_every_resample_draws_as_many_images_as_there_are():
    drawn = resamples(5, seed=0, n=4000)
    assert drawn.shape == (4000, 5)
    assert (drawn.sum(1) == 5).all()
    # each count is binomial(5, 1/5): mean 1, sd 0.9; of 4000 the mean has sd 0.014
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.07)


def test_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    found = interval(values, seed=0, n=4000)
    expected = 2 * 1.96 * values.std() / 20
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.08)  # quantile noise, 4 sd
    assert found["low"] < found["mean"] < found["high"]


def test_a_narrower_level_lies_inside():
    values = np.random.default_rng(2).random(20)
    wide, narrow = (interval(values, seed=0, level=level) for level in (0.95, 0.5))
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).random(10)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_a_constant_gain_on_very_different_images_is_certain_when_paired():
    baseline = np.random.default_rng(4).random(12)
    gain = paired_difference(baseline + 0.05, baseline, seed=0)
    assert gain["low"] == pytest.approx(0.05, abs=1e-9)
    assert gain["high"] == pytest.approx(0.05, abs=1e-9)


def test_difference_has_the_sign_of_first_minus_second_and_is_antisymmetric():
    better, worse = np.array([[9, 1, 1]] * 4), np.array([[5, 5, 5], [4, 3, 2], [1, 1, 1], [2, 2, 8]])
    forward = paired_difference(better, worse, dice_of, seed=0)
    backward = paired_difference(worse, better, dice_of, seed=0)
    assert forward["low"] > 0
    assert forward["mean"] == -backward["mean"]
    assert forward["low"] == pytest.approx(-backward["high"], abs=1e-12)


def test_one_image_has_no_interval():
    assert interval(np.array([0.5]), seed=0) == {"mean": 0.5, "low": None, "high": None}


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(InputError, match="at least one image"):
        interval(np.zeros(0), seed=0)
    with pytest.raises(InputError, match="1 values not finite"):
        interval(np.array([0.1, np.nan]), seed=0)
    with pytest.raises(InputError, match="same images"):
        paired_difference(np.ones(2), np.ones(3), seed=0)
    with pytest.raises(InputError, match="level"):
        interval(np.ones(2), seed=0, level=1.0)
