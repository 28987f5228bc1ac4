"""A slide through a detector, tile by tile: its cells' candidates, equal to those of one pass.

A candidate is a cell's box whose score is above a threshold; `merge` decides which of them are objects.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from scipy import ndimage, special

from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.stream import Grid, computed
from sparseshot_jax.types import CellOutput

# RGB [b, h, w, 3] -> output of [b, h // stride, w // stride] cells, NumPy or JAX. A jitted function works
# while the host merges the tiles before.
Cells = Callable[[UInt8[np.ndarray, "b h w 3"]], CellOutput]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Boxes that may become objects."""

    boxes_xyxy_px: Float64[np.ndarray, "n 4"]  # left, top, right, bottom; map pixels of the whole slide
    score: Float32[np.ndarray, "n"]  # p of an object, [0, 1]
    class_p: Float32[np.ndarray, "n c"]  # p of each class given an object
    # Number of cell and anchor in raster order over the whole slide: of equal scores the lower goes first.
    place: Int64[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def empty(cls, classes: int) -> "Candidates":
        """None at all, of C classes."""
        return cls(
            boxes_xyxy_px=np.zeros((0, 4)),
            score=np.zeros(0, np.float32),
            class_p=np.zeros((0, classes), np.float32),
            place=np.zeros(0, np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """All of all parts, of which there is one at least, in order."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def take(self, which: Bool[np.ndarray, "n"] | Int64[np.ndarray, "m"]) -> "Candidates":
        """Those of a mask or of indices."""
        names = [field.name for field in dataclasses.fields(self)]
        return Candidates(**{name: getattr(self, name)[which] for name in names})

    @property
    def centres_xy_px(self) -> Float64[np.ndarray, "n 2"]:
        """Middles of the boxes, map pixels."""
        return 0.5 * (self.boxes_xyxy_px[:, :2] + self.boxes_xyxy_px[:, 2:])

    @property
    def sizes_xy_px(self) -> Float64[np.ndarray, "n 2"]:
        """Widths and heights, map pixels."""
        return self.boxes_xyxy_px[:, 2:] - self.boxes_xyxy_px[:, :2]


def candidate_tiles(
    cells: Cells,
    slide: Slide,
    grid: Grid,
    origins: Sequence[tuple[int, int]],
    *,
    stride: int,
    threshold: float,
    peaks: bool = False,
    batch_size: int,
    threads: int,
) -> Iterator[Candidates]:
    """The candidates of the cores at `origins`, in their order.

    A core has the candidates of its own cells, as far as these begin on the map; those whose centre lies
    beyond the map are left out. Memory and batches as in `probability_tiles`.

    Args:
        cells: the detector.
        slide: the image.
        grid: core and halo divisible by `stride`; with `peaks` the halo is one cell wider than the model
            looks.
        origins: first pixel x, y of each core.
        stride: pixels a side of a cell.
        threshold: a candidate's score is above it.
        peaks: no cell of the 3 x 3 round a candidate has a higher score: for a heat map of centres.
        batch_size: tiles a call.
        threads: that read tiles ahead.

    Raises:
        InputError: the slide is damaged; the output does not fit or is not finite.
    """
    if min(stride, grid.core_px) < 1 or grid.core_px % stride or grid.halo_px % stride:
        raise InputError(
            f"core and halo must be divisible by the stride {stride}; got {grid.core_px} and "
            f"{grid.halo_px} px. Make the grid with multiple={stride}."
        )
    side = (grid.core_px + 2 * grid.halo_px) // stride
    for output, places in computed(cells, slide, grid, origins, batch_size=batch_size, threads=threads):
        logits = np.asarray(output.objectness, np.float32)
        if logits.shape[1:3] != (side, side):
            raise InputError(
                f"the detector must give {side} x {side} cells for {side * stride} pixels a side (stride "
                f"{stride}); it gave {logits.shape[1]} x {logits.shape[2]}. Give its own stride."
            )
        boxes, classes = np.asarray(output.boxes_yxyx_px), np.asarray(output.classes)
        for k, (x, y) in enumerate(places):
            tile = _Tile(x=x, y=y, grid=grid, stride=stride)
            yield tile.candidates(logits[k], boxes[k], classes[k], threshold=threshold, peaks=peaks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tile:
    """The core whose first pixel is (x, y), and its halo."""

    x: int
    y: int
    grid: Grid
    stride: int

    def candidates(
        self, logits: Any, boxes: Any, classes: Any, *, threshold: float, peaks: bool
    ) -> Candidates:
        """From the output [h, w, a, ...] for the tile with its halo."""
        margin, stride = self.grid.halo_px // self.stride, self.stride
        rows, columns = (
            min(self.grid.core_px // stride, -(-left // stride))
            for left in (self.grid.height - self.y, self.grid.width - self.x)
        )
        core = slice(margin, margin + rows), slice(margin, margin + columns)
        if np.isnan(logits[core]).any():
            raise self._damaged("a score that is no number")
        score = special.expit(logits)
        chosen = score[core] > threshold
        if peaks:
            chosen &= logits[core] >= self._best_round(logits)[core]
        row, column, anchor = np.nonzero(chosen)
        where = row + margin, column + margin, anchor
        local = boxes[where].astype(np.float64)[:, [1, 0, 3, 2]]
        self._check_boxes(local, row, column)
        anchors, across = logits.shape[2], -(-self.grid.width // stride)
        cell = (self.y // stride + row) * across + self.x // stride + column
        shift = np.array([self.x, self.y] * 2) - self.grid.halo_px
        found = Candidates(
            boxes_xyxy_px=local + shift,
            score=score[where],
            class_p=special.softmax(classes[where].astype(np.float32), axis=-1),
            place=(cell * anchors + anchor).astype(np.int64),
        )
        centre, size = found.centres_xy_px, np.array([self.grid.width, self.grid.height])
        return found.take(np.all((centre >= 0) & (centre <= size), axis=1))

    def _best_round(self, logits: Float32[np.ndarray, "h w a"]) -> Float32[np.ndarray, "h w 1"]:
        """The best of all anchors of the 3 x 3 cells on the map round each."""
        rows, columns = (
            (first + np.arange(n) * self.stride >= 0) & (first + np.arange(n) * self.stride < end)
            for first, n, end in (
                (self.y - self.grid.halo_px, logits.shape[0], self.grid.height),
                (self.x - self.grid.halo_px, logits.shape[1], self.grid.width),
            )
        )
        known = np.where(rows[:, None] & columns, logits.max(axis=2), np.float32(-np.inf))
        return ndimage.maximum_filter(known, size=3, mode="constant", cval=-np.inf)[..., None]

    def _check_boxes(self, boxes: np.ndarray, row: np.ndarray, column: np.ndarray) -> None:
        """`merge` finishes tiles one by one: it must know where a cell's box may be centred."""
        if not np.isfinite(boxes).all():
            raise self._damaged("a box that is not finite")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise self._damaged("a box that ends before it begins")
        cell = np.stack([column, row], axis=1) * self.stride + self.grid.halo_px
        centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
        # A pixel is allowed for rounding beyond the two cells.
        far = (centre < cell - self.stride - 1) | (centre > cell + 2 * self.stride + 1)
        if far.any():
            raise InputError(
                "a detector's boxes must be centred in their own cell or one beside it; one of the tile "
                f"at map pixel ({self.x}, {self.y}) lies farther off. Bound the offset, by a sigmoid for "
                "example."
            )

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"the detector gave {what} in the tile at map pixel ({self.x}, {self.y}). The parameters are "
            "damaged or training diverged: use another checkpoint."
        )


def reach_out_px(stride: int) -> float:
    """How far a candidate's centre may lie outside its own cell, map pixels."""
    return stride + 1.0
