"""Foreground -> separate objects: every pixel climbs to a summit, and low passes join summits.

The relief is the depth that a model predicts for each pixel in its object, or else the distance to the
background. A summit whose pass to a higher one lies less than `drop` below it is no object of its own:
persistence, as in Chazal, Guibas, Oudot and Skraba 2013 (ToMATo), https://doi.org/10.1145/2535927. What
results are the basins of a watershed by topographical distance, with the maxima of dynamics `drop` as
markers, in a few passes of array arithmetic.

Nothing depends on where the array begins: equal heights are told apart by their order in the raster, and
an object by what lies within it and its neighbours. So tiles that overlap enough agree.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64
from scipy import ndimage

from sparseshot_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """When one area of foreground is several objects."""

    drop: float = 0.15  # a pass must lie this far below the lower summit, in units of depth, (0, 1)
    smooth_px: float = 1.0  # standard deviation of the Gaussian over the relief, pixels, [0, 10]

    def __post_init__(self) -> None:
        if not 0.0 < self.drop < 1.0:
            raise InputError(f"drop must lie between 0 and 1, both excluded; got {self.drop}. Try 0.15.")
        if not 0.0 <= self.smooth_px <= 10.0:
            raise InputError(f"smooth_px must be in [0, 10]; got {self.smooth_px}. Try 1.0.")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Objects of an area, in the raster order of their summits."""

    labels: Int32[np.ndarray, "h w"]  # 0 = background, k + 1 = object k; each is connected by pixel edges
    summits_yx: Int64[np.ndarray, "n 2"]  # the highest pixel of each: row and column


def split(
    p: Float[np.ndarray, "h w"],
    depth: Float[np.ndarray, "H W"] | None = None,
    *,
    threshold: float,
    spec: SplitSpec = SplitSpec(),
) -> Split:
    """Separate objects of p > threshold; every such pixel belongs to one.

    Args:
        p: of foreground, in [0, 1].
        depth: distance to the border of the pixel's object over the largest in that object, in [0, 1], as
            predicted; only looked at where p > threshold. None: the distance to the background takes its
            place, and `drop` counts as a share of the lower summit, yet as 3/4 of a pixel at least: less
            is the pixels' own roughness. Then objects part where they have a waist.
        threshold: strict.
        spec: when one area is several objects.

    Raises:
        InputError: p and depth differ in shape.

    >>> p = np.ones((5, 12), np.float32)
    >>> depth = np.float32([0.2, 0.6, 0.9, 0.9, 0.6, 0.2, 0.3, 0.6, 0.9, 0.9, 0.6, 0.2]) * p
    >>> split(p, depth, threshold=0.5).labels[2]
    array([1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2], dtype=int32)
    >>> int(split(p, threshold=0.5).labels.max())
    1
    """
    if depth is not None and depth.shape != p.shape:
        raise InputError(f"p and depth must have one shape; got {p.shape} and {depth.shape}.")
    mask = p > np.float32(threshold)
    if depth is None:
        return basins(_smooth(_to_background(mask), spec), mask, relative=spec.drop, absolute=0.75)
    # What was never trained to mean anything, the depth outside, counts as 0.
    return basins(_smooth(np.where(mask, depth, 0.0), spec), mask, absolute=spec.drop)


def basins(
    relief: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    *,
    absolute: float,
    relative: float = 0.0,
) -> Split:
    """The pixels of `mask`, parted by the summit of `relief` to which each climbs along pixel edges.

    Two areas are one where the pass between them lies less than max(absolute, relative * s) below the lower
    summit s of the two; passes are taken from the highest down.
    """
    height, width = mask.shape
    framed = np.full((height + 2, width + 2), -np.inf, np.float32)
    framed[1:-1, 1:-1][mask] = relief[mask]
    z, stride = framed.reshape(-1), width + 2
    place = np.flatnonzero(z > -np.inf)  # of every pixel of the mask, in raster order
    number = np.zeros(len(z), np.int32)  # of every place, its index in `place`
    number[place] = np.arange(len(place), dtype=np.int32)
    summit = _climb(z, place, number, stride)
    tops = np.flatnonzero(summit == np.arange(len(summit)))
    number_of_top = np.zeros(len(summit), np.int32)
    number_of_top[tops] = np.arange(len(tops))
    basin = number_of_top[summit]
    peaks = z[place[tops]]
    owner = _joined(peaks, *_passes(z, place, number, basin, peaks, stride, absolute, relative))
    highest, label = np.unique(owner, return_inverse=True)
    labels = np.zeros(len(z), np.int32)
    labels[place] = label[basin] + 1
    row, column = np.divmod(place[tops[highest]], stride)
    return Split(
        labels=np.ascontiguousarray(labels.reshape(framed.shape)[1:-1, 1:-1]),
        summits_yx=np.stack([row - 1, column - 1], axis=1),
    )


def _to_background(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Distance of each pixel's centre to that of the nearest background pixel; far where there is none."""
    if mask.all():
        return np.full(mask.shape, math.hypot(*mask.shape), np.float32)
    return np.asarray(ndimage.distance_transform_edt(mask), np.float32)


def _smooth(relief: Float[np.ndarray, "h w"], spec: SplitSpec) -> Float32[np.ndarray, "h w"]:
    relief = relief.astype(np.float32)
    return ndimage.gaussian_filter(relief, spec.smooth_px, truncate=3.0) if spec.smooth_px else relief


def _climb(
    z: Float32[np.ndarray, "z"], place: Int64[np.ndarray, "n"], number: Int32[np.ndarray, "z"], stride: int
) -> Int32[np.ndarray, "n"]:
    """Of every pixel the one without a higher neighbour that it comes to by the steepest way."""
    target, best = place - stride, z[place - stride]
    for step in (-1, 0, 1, stride):  # in the order of the raster: of equals the first is the higher
        other = place + step
        height = z[other]
        higher = height > best
        target, best = np.where(higher, other, target), np.where(higher, height, best)
    at = number[target]
    while True:  # twice as far each time
        further = at[at]
        if np.array_equal(further, at):
            return at
        at = further


def _passes(
    z: Float32[np.ndarray, "z"],
    place: Int64[np.ndarray, "n"],
    number: Int32[np.ndarray, "z"],
    basin: Int32[np.ndarray, "n"],
    peaks: Float32[np.ndarray, "b"],
    stride: int,
    absolute: float,
    relative: float,
) -> tuple[
    Int32[np.ndarray, "e"], Int32[np.ndarray, "e"], Float32[np.ndarray, "e"], Float32[np.ndarray, "b"]
]:
    """Pairs of basins that may become one, by their highest pass, from the highest down.

    The last result is how high a pass must be for each basin as the lower of a pair. It rises with the
    peak: what is too low for two basins is so for all that they may have become part of.
    """
    needed = peaks - np.maximum(np.float32(absolute), np.float32(relative) * peaks)
    found = []
    for step in (1, stride):
        with_other = np.flatnonzero(z[place + step] > -np.inf)
        a, b = basin[with_other], basin[number[place[with_other] + step]]
        differ = a != b
        with_other, a, b = with_other[differ], a[differ], b[differ]
        height = np.minimum(z[place[with_other]], z[place[with_other] + step])
        low = height > np.minimum(needed[a], needed[b])
        found.append((np.minimum(a, b)[low], np.maximum(a, b)[low], height[low]))
    a, b, height = (np.concatenate(parts) for parts in zip(*found))
    order = np.lexsort((b, a, -height))
    _, first = np.unique(a[order].astype(np.int64) * len(peaks) + b[order], return_index=True)
    order = order[np.sort(first)]
    return a[order], b[order], height[order], needed


def _joined(
    peaks: Float32[np.ndarray, "b"],
    a: Int32[np.ndarray, "e"],
    b: Int32[np.ndarray, "e"],
    height: Float32[np.ndarray, "e"],
    needed: Float32[np.ndarray, "b"],
) -> Int64[np.ndarray, "b"]:
    """Of every basin the one with the highest peak of those that it is joined to."""
    parent = list(range(len(peaks)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    peak, least = peaks.tolist(), needed.tolist()
    for i, j, pass_height in zip(a.tolist(), b.tolist(), height.tolist()):
        i, j = root(i), root(j)
        if (peak[i], -i) < (peak[j], -j):
            i, j = j, i
        if i != j and pass_height > least[j]:
            parent[j] = i
    return np.array([root(k) for k in range(len(parent))], np.int64)
