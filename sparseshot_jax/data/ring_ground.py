"""The ring round annotated centres outside of which unannotated ground is ignored (METHOD: ignore_ring)."""

import numpy as np
from jaxtyping import Bool, Float64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.box_index import BoxIndex
from sparseshot_jax.data.rasterize import grid_place
from sparseshot_jax.types import Window

_ROUNDING_PX = 0.01  # a box's centre, float32, may lie on the other side of a pixel's border


class RingGround:
    """Ground with r1 < d < r2, d the distance of a pixel's centre from the nearest annotated centre.

    Qu et al. 2020, "Weakly supervised deep nuclei segmentation using partial points annotation in
    histopathology images", https://arxiv.org/abs/2007.05448: what lies so near to an annotated nucleus is
    background, and of all else that nobody marked nothing is known.

    Args:
        objects: the annotated objects, level-0 pixels.
        radii_px: r1 and r2, level-0 pixels.
    """

    def __init__(self, objects: Annotations, radii_px: tuple[float, float]):
        self._inner, self._outer = radii_px
        self._centroids = objects.centroids_px
        self._middles = (objects.bounds_px[:, :2] + objects.bounds_px[:, 2:]) / 2
        reach = self._outer * np.array([-1.0, -1.0, 1.0, 1.0])
        self._reached = BoxIndex(np.tile(self._centroids, 2) + reach)
        self._middle_boxes = BoxIndex(np.tile(self._middles, 2))

    @property
    def nbytes(self) -> int:
        """Bytes held, about: the centres, and two indices of them."""
        return 5 * (self._centroids.nbytes + self._middles.nbytes)

    def outside(self, window: Window, *, middles: bool) -> Bool[np.ndarray, "h w"]:
        """True where unannotated ground is ignored: nearer than r1 to a centre, or further than r2 from all.

        Args:
            window: the pixels.
            middles: False at the pixel that holds the middle of an object's box: there a detector looks
                for ignored ground before it matches an object. One pixel leaves its cell ignored.
        """
        xy_px = self._centroids[self._reached.touching(window)]
        outside = _discs(window, xy_px, self._inner, closed=True)
        outside |= ~_discs(window, xy_px, self._outer, closed=False)
        if middles:
            xy = self._middles[self._middle_boxes.touching(window)] - (window.x_px, window.y_px)
            for shift in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                x, y = np.floor(xy / window.scale + np.multiply(shift, _ROUNDING_PX)).astype(int).T
                there = (x >= 0) & (x < window.width) & (y >= 0) & (y < window.height)
                outside[y[there], x[there]] = False
        return outside


def _discs(
    window: Window, xy_px: Float64[np.ndarray, "n 2"], radius_px: float, *, closed: bool
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centres are nearer than the radius to a point, or where `closed` as near.

    Row by row in runs, whose beginnings and ends are added up: the cost is that of the discs' rows and of
    the window's pixels, however much discs overlap.
    """
    # As in `rasterize.covered`: the pixels of a disc are the same in all windows of one grid.
    (column, top), (right, down) = grid_place(window)
    x = xy_px[:, 0] / window.scale - (0.5 + right)
    y = xy_px[:, 1] / window.scale - (0.5 + down)
    radius = radius_px / window.scale
    first, last = (v.clip(top, top + window.height) for v in (np.ceil(y - radius), np.floor(y + radius) + 1))
    counts = np.maximum(last - first, 0).astype(np.int64)
    disc = np.repeat(np.arange(len(x)), counts)
    row = rings.ranges(first.astype(np.int64), counts)
    half = np.sqrt(np.maximum(radius**2 - (row - y[disc]) ** 2, 0.0))
    left, right_end = x[disc] - half, x[disc] + half
    if closed:
        begin, end = np.ceil(left), np.floor(right_end) + 1
    else:
        begin, end = np.floor(left) + 1, np.ceil(right_end)
    begin, end = ((v - column).clip(0, window.width).astype(np.int64) for v in (begin, end))
    at = (row - top) * window.width
    size = window.width * window.height
    change = np.zeros(size + 1, np.int32)
    np.add.at(change, at + begin, 1)
    np.add.at(change, at + np.maximum(begin, end), -1)
    return (np.cumsum(change[:-1], out=change[:-1]) > 0).reshape(window.height, window.width)
