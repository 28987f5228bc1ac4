"""Percentile bootstrap intervals over images, of means and of pooled ratios, also paired.

An image is the unit: pixels of one image are not independent. A pooled measure is a function of
sums over images, so a resample needs no pixel: it re-weights the rows of per-image counts.
"""

import functools
from collections.abc import Callable
from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int64, Num

from sparseshot_jax.errors import InputError

Pooled = Callable[[np.ndarray], np.ndarray]  # sums over images [..., k] -> measure [...]


class Interval(TypedDict):
    """A measure and where it lies over resamples of the images."""

    mean: float  # the measure on all images, whether a mean over images or pooled
    low: float | None  # None with a single image, which has no spread
    high: float | None


def resamples(images: int, *, seed: int, n: int = 2000) -> Int64[np.ndarray, "{n} {images}"]:
    """How often each image is drawn in each of n resamples with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=n)


def interval(
    rows: Num[np.ndarray, "images *k"],
    pooled: Pooled | None = None,
    *,
    seed: int,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A measure over images and its bootstrap interval.

    Args:
        rows: a value an image, whose mean is the measure; or, with `pooled`, the counts of an
            image.
        pooled: the measure as a function of the counts summed over images, e.g. `dice_of`.
        seed: of the resamples; the same seed and number of images give the same resamples.
        n: number of resamples.
        level: share of the resamples inside the interval, (0, 1).

    Returns:
        The measure on all images, and percentiles over the resamples, which are too narrow by about
        sqrt((images - 1) / images).

    >>> interval(np.array([0.75, 0.75, 0.75, 0.75]), seed=0)
    {'mean': 0.75, 'low': 0.75, 'high': 0.75}

    Raises:
        InputError: no image, or a value that is not finite.
    """
    weights = _weights(rows, seed, n)
    return _summary(_measure(rows, pooled, weights), len(rows), level)


def paired_difference(
    rows: Num[np.ndarray, "images *k"],
    baseline: Num[np.ndarray, "others *k"],
    pooled: Pooled | None = None,
    *,
    seed: int,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Measure of one method minus that of another on the same images, in the same resamples.

    Arguments, result and errors as for `interval`.

    >>> paired_difference(np.array([0.5, 0.75]), np.array([0.25, 0.5]), seed=0)
    {'mean': 0.25, 'low': 0.25, 'high': 0.25}
    """
    if len(rows) != len(baseline):
        raise InputError(f"A paired difference needs the same images; got {len(rows)} and {len(baseline)}.")
    _weights(baseline, seed, 1)  # refuses what is not finite
    weights = _weights(rows, seed, n)
    difference = _measure(rows, pooled, weights) - _measure(baseline, pooled, weights)
    return _summary(difference, len(rows), level)


def _weights(rows: np.ndarray, seed: int, n: int) -> Float64[np.ndarray, "n1 images"]:
    """Resamples of the images below a first row of ones: the sample itself."""
    if not len(rows) or not np.isfinite(rows).all():
        raise InputError(
            f"A bootstrap over images needs at least one image and finite values; got {len(rows)} "
            f"images, {int((~np.isfinite(rows)).sum())} values not finite."
        )
    return _drawn(len(rows), seed, n)


@functools.lru_cache(maxsize=2)
def _drawn(images: int, seed: int, n: int) -> Float64[np.ndarray, "n1 images"]:
    """The same for every measure of an evaluation, and most of its time."""
    weights = np.concatenate([np.ones((1, images)), resamples(images, seed=seed, n=n).astype(np.float64)])
    weights.flags.writeable = False
    return weights


def _measure(rows: np.ndarray, pooled: Pooled | None, weights: np.ndarray) -> Float64[np.ndarray, " n1"]:
    return weights @ rows / len(rows) if pooled is None else pooled(weights @ rows)


def _summary(values: Float64[np.ndarray, " n1"], images: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise InputError(f"level must lie in (0, 1); got {level}. Try 0.95.")
    mean = float(values[0])
    if images < 2:
        return {"mean": mean, "low": None, "high": None}
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
