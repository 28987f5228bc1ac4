"""The threshold for positive-unlabelled data: p / c > 1 / 2, that is p > c / 2.

Elkan and Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008. Where the annotated
objects are a share c of all, chosen completely at random, a model trained to tell annotated ground from the
rest learns p(annotated | x) = c p(object | x) (their Lemma 1), so that p > 1 / 2 misses most objects. c is
estimated by their e1: the mean p over positives that training has not seen. Validation needs no negatives.

The lemma is of cross-entropy. With a weight w on unannotated ground the odds of p are divided by w: what
is then estimated is the c of the weighted posterior, c / (c + (1 - c) w), and the correction is an
approximation, as it is wherever a loss masks, focuses or caps. It is applied as it stands, whatever the
loss. And e1 is c where positives are unmistakable; where they look like the rest it is c times their mean
p(object | x), less than c, and the threshold lies as much lower.

A positive is a pixel of an object for segmentation, pixels pooled (`estimate_c_of_pixels`). For detection
it is an object, and its p the score of the detection matched to it (`matched_scores`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from sparseshot_jax.errors import InputError
from sparseshot_jax.metrics.detection import ImageObjects
from sparseshot_jax.metrics.matching import match_points


def estimate_c(p: Float[np.ndarray, " n"]) -> float | None:
    """e1 of section 3: the mean p of validation positives.

    Args:
        p: of each positive, whatever is one.

    Returns:
        (0, 1]; None without positives, and where the mean is 0: nothing can be divided by it.

    >>> estimate_c(np.array([0.25, 0.5, 0.0]))
    0.25

    Raises:
        InputError: p leaves [0, 1] or is not a number.
    """
    if not len(p):
        return None
    if not (p.min() >= 0 and p.max() <= 1):
        raise InputError(
            f"p of positives must lie in [0, 1]; got {p.min()} to {p.max()}. Pass probabilities, not logits."
        )
    return float(np.mean(p, dtype=np.float64)) or None


def estimate_c_of_pixels(counts: Int64[np.ndarray, "*n 2 b"]) -> float | None:
    """The same over the foreground pixels of all images together.

    Args:
        counts: `overlap.histograms`; p counts as the middle of its bin, so c is exact to 0.5 / b.
    """
    bins = counts.shape[-1]
    pixels = counts[..., 0, :].reshape(-1, bins).sum(0)
    if not pixels.sum():
        return None
    return float(pixels @ ((np.arange(bins) + 0.5) / bins) / pixels.sum())


def matched_scores(
    truths: Sequence[ImageObjects], predictions: Sequence[ImageObjects], *, distance_um: float
) -> Float64[np.ndarray, " m"]:
    """p of each true object: the score of the prediction matched to it, 0 where none is.

    Matched one to one as for F1 by distance, among all predictions down to their floor: as many pairs as
    possible, then the smallest sum of distances, scores aside. So c holds what a detector misses, too.

    Args:
        truths: objects of every image.
        predictions: of the same images in the same order, at a low floor of the score.
        distance_um: a pair may match up to this distance of centres.
    """
    found = [np.zeros(0)]
    for truth, predicted in zip(truths, predictions, strict=True):
        pairs = match_points(truth.xy_um, predicted.xy_um, gate=distance_um)
        scores = np.zeros(len(truth))
        scores[pairs.truth] = predicted.score[pairs.predicted]
        found.append(scores)
    return np.concatenate(found)


def threshold_elkan_noto(c: float, steps: int) -> float:
    """c / 2, or rather the threshold k / steps, 0 < k < steps, that is nearest to it.

    Args:
        c: of `estimate_c`.
        steps: of the grid on which thresholds are counted.

    >>> threshold_elkan_noto(0.31, 100), threshold_elkan_noto(1.0, 100), threshold_elkan_noto(0.0001, 100)
    (0.16, 0.5, 0.01)

    Raises:
        InputError: c is outside (0, 1].
    """
    if not 0 < c <= 1:
        raise InputError(
            f"c is the share of objects that are annotated, and must lie in (0, 1]; got {c}. Leave it out "
            "where there are no validation positives."
        )
    return max(1, round(c / 2 * steps)) / steps
