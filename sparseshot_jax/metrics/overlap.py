"""Dice and IoU at any threshold, from histograms of p inside and outside the truth.

One pass over the pixels of an image leaves two rows of counts; every threshold of the grid, the
best one and the calibration curve are read from them afterwards, exactly. Memory does not grow with
the image or with the number of thresholds, and sums of counts do not depend on the order of images.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Num, Shaped
from numpy.typing import ArrayLike

from sparseshot_jax.errors import InputError

BINS = 1000  # thresholds in steps of 0.001
BLOCK_PX = 1 << 20  # pixels binned at once: bounds the memory


def histograms(
    p: Float[np.ndarray, "*s"],
    truth: Shaped[np.ndarray, "*s"],
    valid: Bool[np.ndarray, "*s"] | None = None,
    bins: int = BINS,
) -> Int64[np.ndarray, "2 {bins}"]:
    """Count the pixels of one image by p: row 0 on the foreground of `truth`, row 1 off it.

    Bin k holds k / bins < p <= (k + 1) / bins, and bin 0 also p = 0, both edges rounded to float32
    as p is. So the pixels with p > k / bins are exactly those of the bins from k on, and a p equal
    to the threshold is not foreground.

    Args:
        p: probability of the foreground, in [0, 1].
        truth: boolean, or a label map with 0 for the background.
        valid: False where a pixel shall not be counted.
        bins: steps of the threshold grid; even, so that 0.5 is on it.

    Raises:
        InputError: p is not finite or leaves [0, 1].
    """
    edges = (np.arange(bins) / bins).astype(np.float32)[1:]
    flat = [np.ravel(a) for a in (p, truth, np.ones_like(p, bool) if valid is None else valid)]
    counts = np.zeros(2 * bins, np.int64)
    for start in range(0, flat[0].size, BLOCK_PX):
        part, inside, used = (a[start : start + BLOCK_PX] for a in flat)
        part, background = part[used].astype(np.float32), inside[used] == 0
        if part.size and not (part.min() >= 0 and part.max() <= 1):
            raise InputError(
                f"p must lie in [0, 1]; got {part.min()} to {part.max()}. "
                "Pass probabilities, not logits; not a number here means that training diverged."
            )
        index = np.searchsorted(edges, part, side="left") + bins * background
        counts += np.bincount(index, minlength=2 * bins)
    return counts.reshape(2, bins)


def confusion(counts: Int64[np.ndarray, "*n 2 b"], threshold: float) -> Int64[np.ndarray, "*n 3"]:
    """True positive, false positive and false negative pixels at p > threshold.

    Raises:
        InputError: the threshold is not on the grid of the counts.
    """
    k = _grid_index(threshold, counts.shape[-1])
    above = counts[..., k:].sum(-1)
    missed = counts[..., 0, :k].sum(-1)
    return np.stack([above[..., 0], above[..., 1], missed], axis=-1)


def dice_of(confusion: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n"]:
    """2 TP / (2 TP + FP + FN), of pixels (Dice) or objects (F1); 1 where both sides are empty.

    >>> dice_of(np.array([[3, 1, 1], [0, 0, 5], [0, 0, 0]])).tolist()
    [0.75, 0.0, 1.0]
    """
    tp, fp, fn = np.moveaxis(confusion, -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou_of(confusion: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n"]:
    """TP / (TP + FP + FN); 1 where both sides are empty."""
    tp, fp, fn = np.moveaxis(confusion, -1, 0)
    return _ratio(tp, tp + fp + fn)


def dice(counts: Int64[np.ndarray, "*n 2 b"], threshold: float) -> Float64[np.ndarray, "*n"]:
    """Dice at p > threshold: of each image, or pooled where `counts` is summed over images first.

    >>> p, truth = np.array([0.9, 0.5, 0.2]), np.array([True, True, False])
    >>> float(dice(histograms(p, truth), 0.5))  # p = 0.5 is not above 0.5: one of two found
    0.6666666666666666
    """
    return dice_of(confusion(counts, threshold))


def iou(counts: Int64[np.ndarray, "*n 2 b"], threshold: float) -> Float64[np.ndarray, "*n"]:
    """IoU at p > threshold: of each image, or pooled where `counts` is summed over images first."""
    return iou_of(confusion(counts, threshold))


MEASURES: dict[str, tuple[Callable[..., np.ndarray], bool]] = {  # function, pooled over images
    "pooled Dice": (dice_of, True),
    "mean Dice": (dice_of, False),
    "pooled IoU": (iou_of, True),
    "mean IoU": (iou_of, False),
}


def threshold_curve(
    counts: Int64[np.ndarray, "n 2 b"], measure: str = "pooled Dice"
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """Every threshold k / b, 0 < k < b, and the measure at each."""
    function, pooled = MEASURES[measure]
    counts = counts.sum(0, keepdims=True) if pooled else counts
    above = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]  # [n, 2, b]: pixels with p > k / b
    found, false = above[:, 0, 1:], above[:, 1, 1:]
    missed = above[:, 0, :1] - found
    bins = counts.shape[-1]
    values = function(np.stack([found, false, missed], axis=-1)).mean(0)
    return np.arange(1, bins) / bins, values


def best_threshold(counts: Int64[np.ndarray, "n 2 b"], measure: str = "pooled Dice") -> float:
    """The threshold with the highest measure; of several, the one nearest to 0.5, then the lower.

    Found on validation images it may be carried over to others; found on the images that are scored
    it is an oracle and has to be named so.
    """
    return nearest_to_half(*threshold_curve(counts, measure))


def nearest_to_half(thresholds: Float64[np.ndarray, " t"], values: Float64[np.ndarray, " t"]) -> float:
    """The threshold with the highest value; of several, the one nearest to 0.5, then the lower."""
    best = thresholds[values >= values.max() - 1e-12]  # 1e-12: the order in which a mean is summed
    return float(best[np.argmin(np.round(np.abs(best - 0.5), 9))])


def reliability(counts: Int64[np.ndarray, "*n 2 b"], bins: int = 10) -> dict:
    """How often the truth is foreground where the model says p, pooled over images.

    p counts as the middle of its histogram bin, so means are exact to 0.5 / b.

    Returns:
        "mean_p" and "observed" (fractions; None in an empty bin), "pixels", and
        "expected_calibration_error" = sum over bins of share of pixels * |mean_p - observed|
        (Naeini et al., 2015); None where there is no pixel.

    Raises:
        InputError: `bins` does not divide the grid of the counts.
    """
    grid = counts.shape[-1]
    if bins < 1 or grid % bins:
        raise InputError(f"bins must divide the {grid} steps of the histogram; got {bins}. Try 10.")
    pooled = counts.reshape(-1, 2, grid).sum(0)
    middle = (np.arange(grid) + 0.5) / grid
    pixels = pooled.sum(0).reshape(bins, -1).sum(-1)
    foreground = pooled[0].reshape(bins, -1).sum(-1)
    sum_p = (pooled.sum(0) * middle).reshape(bins, -1).sum(-1)
    total = int(pixels.sum())
    error = float(np.abs(sum_p - foreground).sum() / total) if total else None
    return {
        "mean_p": [float(s / n) if n else None for s, n in zip(sum_p, pixels)],
        "observed": [float(f / n) if n else None for f, n in zip(foreground, pixels)],
        "pixels": [int(n) for n in pixels],
        "expected_calibration_error": error,
    }


def _ratio(part: ArrayLike, whole: ArrayLike) -> Float64[np.ndarray, "*n"]:
    return np.asarray(np.where(np.asarray(whole) > 0, np.divide(part, np.maximum(whole, 1)), 1.0))


def _grid_index(threshold: float, bins: int) -> int:
    k = round(threshold * bins)
    if not (0 < k < bins and abs(k / bins - threshold) < 1e-9):  # 1e-9: written and read as decimal
        raise InputError(
            f"A threshold must be a multiple of 1/{bins} inside (0, 1); got {threshold}. "
            f"Try {min(max(k, 1), bins - 1) / bins}."
        )
    return k
