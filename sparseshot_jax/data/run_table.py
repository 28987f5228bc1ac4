"""Which pixels each object covers, worked out once for all windows of one grid."""

import dataclasses
import math

import numpy as np
from jaxtyping import Int32, Int64

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.rasterize import Runs, covered, grid_place
from sparseshot_jax.types import Window

_MOST_RUNS = 1 << 21  # 24 MB; a slide with more objects is drawn window by window
_USES = 8  # windows drawn without a table before one is made: a slide may be looked at once only


class RunCache:
    """`covered` for one set of objects: drawn anew at first, then looked up. The results are equal."""

    def __init__(self, annotations: Annotations):
        self._annotations = annotations
        self._uses = 0
        self._table: _Table | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held, the table included that may be made."""
        heights = self._annotations.bounds_px[:, 3] - self._annotations.bounds_px[:, 1]
        runs = int(heights.sum()) + 2 * len(heights)
        return self._annotations.nbytes + (12 * runs if runs <= _MOST_RUNS else 0)

    def covered(self, window: Window) -> Runs:
        """See `rasterize.covered`."""
        place, left_over = grid_place(window)
        if left_over != (0.0, 0.0):
            return covered(self._annotations, window)
        if self._table is None or self._table.scale != window.scale:
            self._uses += 1
            if self._uses <= _USES or not _fits(self._annotations, window.scale):
                return covered(self._annotations, window)
            self._uses, self._table = 0, _table(self._annotations, window.scale)
        return self._table.covered(self._annotations.touching(window), place, window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """The runs of all objects, counted from the image's corner."""

    scale: float
    offsets: Int64[np.ndarray, "n_plus_1"]  # object k has the runs offsets[k]..offsets[k + 1]
    rows: Int32[np.ndarray, "r"]
    begins: Int32[np.ndarray, "r"]  # first column
    ends: Int32[np.ndarray, "r"]  # one past the last

    def covered(self, touching: Int64[np.ndarray, "m"], place: tuple[int, int], window: Window) -> Runs:
        first = self.offsets[touching]
        counts = self.offsets[touching + 1] - first
        runs = rings.ranges(first, counts)
        row = self.rows[runs] - place[1]
        begin = (self.begins[runs] - place[0]).clip(0, window.width)
        end = (self.ends[runs] - place[0]).clip(0, window.width)
        inside = np.flatnonzero((row >= 0) & (row < window.height) & (begin < end))
        at = row[inside].astype(np.int64) * window.width
        objects = np.repeat(touching, counts)[inside]
        return Runs(starts=at + begin[inside], ends=at + end[inside], objects=objects)


def _fits(annotations: Annotations, scale: float) -> bool:
    _, y0, _, y1 = annotations.bounds_px.T
    return bool(((y1 - y0) / scale + 2.0).sum() <= _MOST_RUNS)


def _table(annotations: Annotations, scale: float) -> _Table:
    x0, y0 = (math.floor(v / scale) - 1 for v in annotations.bounds_px[:, :2].min(axis=0))
    x1, y1 = (math.ceil(v / scale) + 1 for v in annotations.bounds_px[:, 2:].max(axis=0))
    window = Window(x_px=x0 * scale, y_px=y0 * scale, width=x1 - x0, height=y1 - y0, scale=scale)
    runs = covered(annotations, window)
    rows = runs.starts // window.width
    return _Table(
        scale=scale,
        offsets=np.searchsorted(runs.objects, np.arange(len(annotations) + 1)).astype(np.int64),
        rows=(rows + y0).astype(np.int32),
        begins=(runs.starts - rows * window.width + x0).astype(np.int32),
        ends=(runs.ends - rows * window.width + x0).astype(np.int32),
    )
