"""How deep each pixel lies in its object: a hill for each, so that touching ones can be told apart."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from scipy import ndimage

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cache import Cache
from sparseshot_jax.data.rasterize import covered, fill, grid_place
from sparseshot_jax.types import Window

_MOST_PX = 1 << 22  # of one object's box; a larger one is measured at a coarser scale
_LARGE_PX = 1 << 16  # of one object's box from which on its hill is kept for the next window
_CACHE_BYTES = 1 << 26


class Depths:
    """The hills of a set of objects, drawn for many windows.

    Args:
        shapes: polygons and boxes in level-0 pixels; points draw nothing.
    """

    def __init__(self, shapes: Annotations):
        self._shapes = shapes
        self._large = Cache(_CACHE_BYTES)

    def draw(self, window: Window) -> UInt8[np.ndarray, "h w"]:
        """Distance to the object's border over the largest in that object, as 1..255; 0 outside.

        An object has the same values in every window of one grid, cut by its edge or not, covered by
        another or not; where several overlap, the last one shows. The distance is that to the nearest
        pixel centre outside the object; in an object whose box has more than 4 million pixels it is
        measured at a coarser scale.
        """
        drawn = np.zeros((window.height, window.width), np.uint8)
        touching = self._shapes.touching(window)
        if not len(touching):
            return drawn
        boxes = _boxes(self._shapes.bounds_px[touching], window)
        large = boxes[:, 2] * boxes[:, 3] >= _LARGE_PX
        for first, last in _stretches(large):
            if large[first]:
                self._draw_large(int(touching[first]), boxes[first], window, drawn)
            else:
                part = slice(first, last)
                _draw_small(self._shapes.take(touching[part]), boxes[part], window, drawn)
        return drawn

    def _draw_large(
        self, k: int, box: Int64[np.ndarray, "4"], window: Window, drawn: UInt8[np.ndarray, "h w"]
    ) -> None:
        """One object, from the hill that is kept of it."""
        left, top, width, height = box.tolist()
        coarse = max(1, math.ceil(math.sqrt(width * height / _MOST_PX)))
        own = _window(left, top, -(-width // coarse), -(-height // coarse), window, coarse)
        hill = self._large.get(hash((k, own)), lambda: _hill(self._shapes.take(np.array([k])), own))
        (column, row), _ = grid_place(window)
        rows = np.arange(max(row, top), min(row + window.height, top + height))
        columns = np.arange(max(column, left), min(column + window.width, left + width))
        if len(rows) and len(columns):
            part = hill[np.ix_((rows - top) // coarse, (columns - left) // coarse)]
            place = drawn[rows[0] - row : rows[-1] - row + 1, columns[0] - column : columns[-1] - column + 1]
            np.copyto(place, part, where=part > 0)


def _boxes(bounds_px: Float64[np.ndarray, "n 4"], window: Window) -> Int64[np.ndarray, "n 4"]:
    """Left, top, width, height in the grid of the window, with a pixel of the outside all round."""
    _, rest = grid_place(window)
    corner = np.floor(bounds_px[:, :2] / window.scale - rest).astype(np.int64) - 1
    end = np.ceil(bounds_px[:, 2:] / window.scale - rest).astype(np.int64) + 1
    return np.concatenate([corner, end - corner], axis=1)


def _window(left: int, top: int, width: int, height: int, like: Window, coarse: int = 1) -> Window:
    """The window at a place in another one's grid; `coarse` pixels of that in each of its own."""
    _, (right, down) = grid_place(like)
    x_px, y_px = (left + right) * like.scale, (top + down) * like.scale
    return Window(x_px=x_px, y_px=y_px, width=width, height=height, scale=like.scale * coarse)


def _stretches(large: np.ndarray) -> Iterator[tuple[int, int]]:
    """Large objects one by one, and what lies between them in one piece, in order."""
    cut = np.flatnonzero(large[1:] | large[:-1]) + 1
    yield from zip([0, *cut.tolist()], [*cut.tolist(), len(large)])


def _hill(shape: Annotations, box: Window) -> UInt8[np.ndarray, "h w"]:
    mask = np.zeros((box.height, box.width), np.uint8)
    fill(covered(shape, box), (mask, 1))
    if not mask.any():
        return mask
    # Where the box was coarsened, its last row or column may lie in the object: the outside is next.
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    return np.where(mask, _coded(depth, depth.max()), 0).astype(np.uint8)


def _coded(depth: np.ndarray, largest: np.ndarray | np.floating) -> UInt8[np.ndarray, "..."]:
    return np.maximum(1, np.rint(255 * depth / largest)).astype(np.uint8)


def _draw_small(
    shapes: Annotations, boxes: Int64[np.ndarray, "n 4"], window: Window, drawn: UInt8[np.ndarray, "h w"]
) -> None:
    """Many objects at once: each in a place of its own on one sheet, which is measured in one go."""
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    runs = covered(shapes, _window(left, top, right - left, bottom - top, window))
    if not len(runs.objects):
        return
    lengths = runs.ends - runs.starts
    row, column = np.divmod(runs.starts, right - left)
    row, column = row + top, column + left
    corners, height, width = _sheet(boxes[:, 2:])
    moved = corners[runs.objects] - boxes[runs.objects, :2]
    at = rings.ranges((row + moved[:, 1]) * width + column + moved[:, 0], lengths)
    mask = np.zeros(height * width, np.uint8)
    mask[at] = 1
    depth = np.asarray(ndimage.distance_transform_edt(mask.reshape(height, width))).ravel()[at]
    owner = np.repeat(runs.objects, lengths)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    largest = np.repeat(np.maximum.reduceat(depth, starts), np.diff(starts, append=len(owner)))
    (first_column, first_row), _ = grid_place(window)
    y = np.repeat(row - first_row, lengths)
    x = rings.ranges(column - first_column, lengths)
    inside = (y >= 0) & (y < window.height) & (x >= 0) & (x < window.width)
    drawn[y[inside], x[inside]] = _coded(depth, largest)[inside]  # of several the last one stays


def _sheet(sizes: Int64[np.ndarray, "n 2"]) -> tuple[Int64[np.ndarray, "n 2"], int, int]:
    """Places for boxes of these widths and heights on a sheet, in shelves, the highest first.

    A box has the outside all round, so that nothing on the sheet is nearer to an object than its own.

    Returns:
        Column and row of each corner; height and width of the sheet.
    """
    across = max(int(sizes[:, 0].max()), math.isqrt(int(sizes.prod(axis=1).sum())))
    corners = np.zeros_like(sizes)
    x, y, shelf = 0, 0, 0
    for k in np.argsort(-sizes[:, 1], kind="stable").tolist():
        width, height = sizes[k].tolist()
        if x + width > across:
            x, y, shelf = 0, y + shelf, 0
        corners[k] = x, y
        x, shelf = x + width, max(shelf, height)
    return corners, y + shelf, across
