import numpy as np
import pytest

from sparseshot_jax.efficiency import Powers, Steps, fit_curve
from sparseshot_jax.errors import InputError

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
TODAY = 800.0


def truth(n):
    return 0.9 - 0.2 * (n / TODAY) ** -0.5


def trainings(seeds, sd, seed):
    f = np.repeat(FRACTIONS, seeds)
    n = f * TODAY
    return n, truth(n) + np.random.default_rng(seed).normal(size=len(n)) * sd, f


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_at_about_their_level(seeds):
    """80 data sets of known law. The count covered is binomial: at a true cover of 80 % its standard
    deviation is 3.6, at 95 % 1.9; three of them either way, and upwards no bound at 95 %."""
    sets, covered = 80, {0.8: np.zeros(3), 0.95: np.zeros(3)}
    for k in range(sets):
        curve = fit_curve(*trainings(seeds, 0.012, k), seed=k, draws=200)
        asked = (
            (curve.at(TODAY), truth(TODAY)),
            (curve.at(2 * TODAY), truth(2 * TODAY)),
            (curve.gain(TODAY, TODAY), truth(2 * TODAY) - truth(TODAY)),
        )
        for level, count in covered.items():
            for place, (found, true) in enumerate(asked):
                low, high = found.intervals[level]
                count[place] += low <= true <= high
    assert (abs(covered[0.8] - 0.8 * sets) <= 3 * 3.6).all(), covered
    assert (covered[0.95] >= 0.95 * sets - 3 * 1.9).all(), covered


def test_the_interval_widens_beyond_what_was_measured():
    curve = fit_curve(*trainings(3, 0.012, 0))
    widths = []
    for times in (1.0, 1.5, 2.0, 4.0):
        low, high = curve.at(times * TODAY).intervals[0.95]
        assert low <= curve.at(times * TODAY).value <= high
        widths.append(high - low)
        inner = curve.at(times * TODAY).intervals[0.8]
        assert low <= inner[0] <= inner[1] <= high
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]
    assert curve.scatter == pytest.approx(0.012, rel=0.6)  # 9 degrees of freedom: 2.5 standard deviations


def counted(n, rng, images=12):
    """TP, FP, FN of images of unlike difficulty, the same in every training."""
    hard = rng.normal(size=images) * 0.08
    dice = np.clip(truth(n)[:, None] + hard, 0.05, 0.99)
    objects = 400.0
    tp = dice * objects
    return np.rint(np.stack([tp, objects - tp, objects - tp], axis=-1)).astype(np.int64)


def test_images_count_too_and_leave_a_gain_sharper_than_a_score():
    """The images are those of every training: one that is hard lowers all scores, and no gain."""
    f = np.array(FRACTIONS)
    n = f * TODAY
    counts = counted(n, np.random.default_rng(0))
    pooled = counts.sum(1)
    scores = 2 * pooled[:, 0] / (2 * pooled[:, 0] + pooled[:, 1] + pooled[:, 2])
    with_images, without = (fit_curve(n, scores, f, given) for given in (counts, None))
    assert (with_images.images, without.images) == (12, 0)

    def width(found):
        low, high = found.intervals[0.95]
        return high - low

    # of the mean of 12 images that scatter by about 0.08: 2 x 1.96 x 0.08 / sqrt(12) = 0.09
    assert 0.04 < width(with_images.at(TODAY)) < 0.16
    assert width(without.at(TODAY)) < 0.5 * width(with_images.at(TODAY))
    assert width(with_images.gain(TODAY, TODAY)) < 0.5 * width(with_images.at(TODAY))


def test_one_image_is_no_sample():
    n = np.array(FRACTIONS) * TODAY
    counts = counted(n, np.random.default_rng(0), images=1)
    assert fit_curve(n, truth(n), FRACTIONS, counts).images == 0


def test_answers_of_a_law_without_noise():
    n, scores, f = trainings(2, 0.0, 0)
    curve = fit_curve(n, scores, f, draws=50)
    assert isinstance(curve.best, Powers)
    assert curve.plateau().value == pytest.approx(0.9, abs=1e-4)
    assert curve.gain(TODAY, TODAY).value == pytest.approx(truth(2 * TODAY) - truth(TODAY), abs=1e-5)
    assert curve.needed(0.8).value == pytest.approx(4 * TODAY, rel=1e-3)
    assert curve.needed_share(0.95).value == pytest.approx(TODAY * (0.2 / 0.045) ** 2, rel=1e-2)
    assert curve.needed(0.95).value == np.inf
    assert curve.needed(0.95).json()["value"] is None


@pytest.mark.parametrize(
    ("fractions", "scores", "why"),
    [
        ((0.25, 0.5, 1.0), (0.5, 0.6, 0.65), "needs 4 fractions or more, and there are 3"),
        ((1.0,), (0.5,), "there is 1"),
        (FRACTIONS, (0.6, 0.6, 0.6, 0.6), "all scores are equal"),
        (FRACTIONS, (0.8, 0.7, 0.65, 0.6), "do not rise"),
        (FRACTIONS, (0.0, 0.0, 0.0, 0.0), "all scores are equal"),
    ],
)
def test_where_no_law_is_fitted_it_says_why(fractions, scores, why):
    n = np.array(fractions) * TODAY
    curve = fit_curve(n, scores, fractions, draws=20)
    assert isinstance(curve.best, Steps)
    assert why in curve.why
    assert curve.spread is None  # one training a fraction: nothing that scatters
    assert np.isfinite(curve.at(TODAY).value)
    assert np.isnan(curve.at(2 * TODAY).value)
    assert curve.at(2 * TODAY).json() == {"value": None}
    assert np.isnan(curve.needed_share(0.95).value)


def test_steps_have_intervals_where_seeds_repeat():
    n, scores, f = trainings(3, 0.01, 0)
    few = f > 0.2
    curve = fit_curve(n[few], scores[few], f[few])
    low, high = curve.at(TODAY).intervals[0.95]
    assert 0.002 < high - low < 0.06  # 2 x 2.4 x 0.01 / sqrt(3) = 0.028
    assert curve.scatter is not None


@pytest.mark.parametrize("bad", [([], [], []), ([100.0], [np.nan], [1.0]), ([0.0], [0.5], [1.0])])
def test_what_is_no_training(bad):
    with pytest.raises(InputError, match="at least one training"):
        fit_curve(*bad)
