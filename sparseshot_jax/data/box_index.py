"""Which of a million boxes meet a window, in microseconds."""

import numpy as np
from jaxtyping import Float64, Int64

from sparseshot_jax.types import Window

_LEAST = 512  # boxes; of fewer all are compared


class BoxIndex:
    """Boxes in the squares of a grid by their upper left corner; those larger than a square apart.

    Args:
        bounds: x0, y0, x1, y1 of each box, finite.
    """

    def __init__(self, bounds: Float64[np.ndarray, "n 4"]):
        self._bounds = bounds
        count = len(bounds)
        self._order: np.ndarray | None = None  # boxes by square, row after row, ascending in each
        if count < _LEAST:
            return
        x0, y0, x1, y1 = bounds.T
        extent = np.maximum(x1 - x0, y1 - y0)
        self._left, self._top = float(x0.min()), float(y0.min())
        width, height = float(x0.max()) - self._left, float(y0.max()) - self._top
        # Most boxes fit into a square, and there are no more squares than boxes, a line of boxes included.
        side = max(4.0 * float(np.median(extent)), np.sqrt(width * height / count), (width + height) / count)
        self._side = max(side, 1e-9)
        self._columns = int(width // self._side) + 1
        self._rows = int(height // self._side) + 1
        self._large = np.flatnonzero(extent > self._side)
        small = np.flatnonzero(extent <= self._side)
        row = ((y0[small] - self._top) // self._side).astype(np.int64)
        column = ((x0[small] - self._left) // self._side).astype(np.int64)
        square = row * self._columns + column
        self._order = small[np.argsort(square, kind="stable")]
        self._starts = np.zeros(self._rows * self._columns + 1, np.int64)
        np.cumsum(np.bincount(square, minlength=self._rows * self._columns), out=self._starts[1:])

    def touching(self, window: Window) -> Int64[np.ndarray, "m"]:
        """Indices, ascending, of the boxes that meet a window, edges included."""
        left, right = window.x_px, window.x_px + window.width * window.scale
        top, bottom = window.y_px, window.y_px + window.height * window.scale
        if self._order is None:
            return self._meeting(None, left, top, right, bottom)
        # A corner may lie one square before the rectangle, and a rounding further.
        first, last = self._span(left, right, self._left, self._columns)
        upper, lower = self._span(top, bottom, self._top, self._rows)
        squares = max(0, last - first) * max(0, lower - upper)
        if 2 * squares > self._rows * self._columns:
            return self._meeting(None, left, top, right, bottom)
        begin = self._starts[np.arange(upper, lower) * self._columns + first] if squares else ()
        end = self._starts[np.arange(upper, lower) * self._columns + last] if squares else ()
        parts = [self._order[i:j] for i, j in zip(begin, end) if i < j]
        found = self._meeting(np.concatenate([*parts, self._large]), left, top, right, bottom)
        found.sort()
        return found

    def _span(self, low, high, origin: float, count: int) -> tuple[int, int]:
        """Squares [first, last) of one axis whose boxes may reach into low..high."""
        first = min(max((low - origin) / self._side - 1.001, 0.0), float(count))
        last = min(max((high - origin) / self._side + 1.001, 0.0), float(count))
        return int(first), int(np.ceil(last))

    def _meeting(self, which: Int64[np.ndarray, "k"] | None, left, top, right, bottom) -> np.ndarray:
        x0, y0, x1, y1 = self._bounds.T if which is None else self._bounds[which].T
        meets = np.flatnonzero((x0 <= right) & (x1 >= left) & (y0 <= bottom) & (y1 >= top))
        return meets if which is None else which[meets]
