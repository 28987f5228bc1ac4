"""One patch of a probability map -> outlines of p > threshold, with sums of p.

Samples sit on pixel centres; between four neighbouring samples marching squares draws p = threshold.
"""

import dataclasses

import numpy as np
from contourpy import FillType, contour_generator
from jaxtyping import Float64, Int64

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.types import Window

# Samples are held this far from the threshold: then every vertex lies at least 1e-6 px from the samples at
# the ends of its edge, and no outline touches itself or runs through a sample.
HOLD_OFF = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Regions:
    """Connected areas of p > threshold, or parts of them."""

    outlines: Annotations  # in map pixels: sample (row i, column j) is at (j + 0.5, i + 0.5)
    p_sum: Float64[np.ndarray, "n"]  # of p over the pixel centres inside
    p_count: Int64[np.ndarray, "n"]  # pixel centres inside

    def __len__(self) -> int:
        return len(self.p_sum)

    @classmethod
    def empty(cls) -> "Regions":
        """No area at all."""
        return cls(outlines=Annotations.empty(("",)), p_sum=np.zeros(0), p_count=np.zeros(0, np.int64))


def contour(p: Float64[np.ndarray, "h w"], *, threshold: float, x: int = 0, y: int = 0) -> Regions:
    """Outlines of p > threshold within the rectangle that the outermost samples span.

    A region that reaches the rectangle's border is closed along it. The first row and column count
    towards no sum: they belong to the patches before.

    Args:
        p: samples, in [0, 1].
        threshold: in (0, 1); a p equal to it is outside.
        x: column of the first sample in the map.
        y: its row.

    >>> p = np.zeros((3, 3))
    >>> p[1, 1] = 1.0
    >>> float(contour(p, threshold=0.5).outlines.areas_px[0])
    0.5
    """
    if not (p > threshold).any():
        return Regions.empty()
    return _with_sums(_trace(_held_off(p, threshold), threshold, x, y), p, x, y)


def _held_off(p: Float64[np.ndarray, "h w"], threshold: float) -> Float64[np.ndarray, "h w"]:
    near = np.abs(p - threshold) < HOLD_OFF
    held = p.copy()
    held[near] = threshold + np.where(p[near] > threshold, HOLD_OFF, -HOLD_OFF)
    return held


def _trace(p: Float64[np.ndarray, "h w"], threshold: float, x: int, y: int) -> Annotations:
    """Marching squares; the first sample has column `x` and row `y` of the map.

    contourpy gives the topology. Vertices are computed again, each from its two samples in a fixed order:
    they must not depend on the tile or on the direction in which the outline was walked.
    """
    generator = contour_generator(z=p, name="serial", fill_type=FillType.ChunkCombinedOffsetOffset)
    points, offsets, outers = (chunk[0] for chunk in generator.filled(threshold, np.inf))
    if points is None or offsets is None or outers is None:
        return Annotations.empty(("",))
    rings = offsets.astype(np.int64)
    closing = np.zeros(len(points), bool)
    closing[rings[1:] - 1] = True  # contourpy repeats the first vertex at the end
    column, row = np.asarray(points[~closing]).T
    j, i = np.floor(column + HOLD_OFF / 2).astype(int), np.floor(row + HOLD_OFF / 2).astype(int)
    on_row, on_column = column - j > HOLD_OFF / 2, row - i > HOLD_OFF / 2
    here, there = p[i, j], p[i + on_column, j + on_row]
    share = np.zeros(len(j))
    np.divide(threshold - here, there - here, out=share, where=on_row | on_column)
    xy = np.stack([x + j + 0.5 + share * on_row, y + i + 0.5 + share * on_column], axis=1)
    return Annotations(
        xy_px=xy,
        ring_offsets=rings - np.arange(len(rings)),
        object_offsets=outers.astype(np.int64),
        class_ids=np.zeros(len(outers) - 1, np.int32),
        class_names=("",),
        kind=np.full(len(outers) - 1, Kind.POLYGON, np.uint8),
    )


def _with_sums(outlines: Annotations, p: Float64[np.ndarray, "h w"], x: int, y: int) -> Regions:
    """Adds sum and count of p over the pixel centres inside; the first row and column are others'.

    The last row and column belong to this tile but lie on the pieces' very edge: vertices there are moved
    out by less than any vertex's distance to a sample, so that no other centre changes sides.
    """
    height, width = p.shape
    last = outlines.xy_px == (x + width - 0.5, y + height - 0.5)
    labels = rasterize(
        dataclasses.replace(outlines, xy_px=outlines.xy_px + last * (HOLD_OFF / 8)),
        Window(x_px=x + 1, y_px=y + 1, width=width - 1, height=height - 1),
    ).ravel()
    inside = np.flatnonzero(labels)
    owner = labels[inside] - 1
    n = len(outlines)
    return Regions(
        outlines=outlines,
        p_sum=np.bincount(owner, p[1:, 1:].ravel()[inside], minlength=n).astype(float),
        p_count=np.bincount(owner, minlength=n).astype(np.int64),
    )
