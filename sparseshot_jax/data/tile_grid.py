"""Where tiles of one case may lie: cells that share out every origin, and which hold tissue.

All positions are whole output pixels at the tiles' resolution, so that a tile of a stored level is a
plain crop of it. `CaseGrid.window` turns them into level-0 windows.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from sparseshot_jax.types import Window


@dataclasses.dataclass(frozen=True)
class FileBytes:
    """Bytes of a file, read as they are asked for.

    A mapped file would count every page near a place ever looked at as memory of the process: for the
    masks of many slides the half of all of it.
    """

    path: str
    start: int  # of the bytes in the file
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> UInt8[np.ndarray, "n"]:
        first, last, _ = part.indices(self.length)
        return np.fromfile(self.path, np.uint8, last - first, offset=self.start + first)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TissueBits:
    """A tissue mask at one bit a pixel, in rows of whole bytes."""

    source: UInt8[np.ndarray, "b"] | FileBytes  # of this mask or of many
    start: int  # of this mask in the source
    height: int  # mask pixels
    width: int  # mask pixels
    scale: float  # output pixels per mask pixel

    @classmethod
    def pack(cls, mask: Bool[np.ndarray, "h w"], scale: float) -> "TissueBits":
        """The same mask, eight pixels a byte."""
        source = np.packbits(mask, axis=1).ravel()
        return cls(source=source, start=0, height=mask.shape[0], width=mask.shape[1], scale=scale)

    @property
    def stride(self) -> int:
        """Bytes a row."""
        return -(-self.width // 8)

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "r stride"]:
        """The bytes of the rows [first, last)."""
        begin, end = (self.start + row * self.stride for row in (first, last))
        return self.source[begin:end].reshape(last - first, self.stride)

    def fractions(
        self, y: Int64[np.ndarray, "n"], x: Int64[np.ndarray, "n"], tile_px: int
    ) -> Float64[np.ndarray, "n"]:
        """Share of tissue in the tiles with these origins, counted over whole mask pixels."""
        top = np.clip((y / self.scale).astype(int), 0, self.height - 1)
        left = np.clip((x / self.scale).astype(int), 0, self.width - 1)
        bottom = np.clip(np.ceil((y + tile_px) / self.scale).astype(int), top + 1, self.height)
        right = np.clip(np.ceil((x + tile_px) / self.scale).astype(int), left + 1, self.width)
        boxes = np.stack([top, left, bottom, right])
        count = self._count(*boxes[:, 0].tolist()) if len(y) == 1 else self._counts(*boxes)
        return count / ((bottom - top) * (right - left))

    def _count(self, top: int, left: int, bottom: int, right: int) -> int:
        """Tissue in one rectangle: only its own bytes are read."""
        first = left // 8
        block = np.unpackbits(self.rows(top, bottom)[:, first : (right + 7) // 8], axis=1)
        return int(block[:, left - 8 * first : right - 8 * first].sum())

    def _counts(self, top: Any, left: Any, bottom: Any, right: Any) -> Int64[np.ndarray, "n"]:
        """Tissue in many rectangles, from one table of sums."""
        mask = np.unpackbits(self.rows(0, self.height), axis=1, count=self.width).astype(np.int64)
        sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CaseGrid:
    """Where tiles of one case may lie."""

    height: int  # of the case, output pixels
    width: int
    tile_px: int
    scale: float  # level-0 pixels per output pixel
    tissue: TissueBits | None  # None = all tissue
    min_tissue: float = 0.0  # least share of it in a tile that is not drawn round an object

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; each holds the origins of about one tile's worth of ground."""
        return -(-self.height // self.tile_px), -(-self.width // self.tile_px)

    def fractions(self, y: Int64[np.ndarray, "n"], x: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
        """Share of tissue in the tiles with these origins."""
        return np.ones(len(y)) if self.tissue is None else self.tissue.fractions(y, x, self.tile_px)

    def cells(self) -> Int64[np.ndarray, "n 2"]:
        """Row and column of the cells whose central tile holds enough tissue."""
        rows, columns = np.divmod(np.arange(self.shape[0] * self.shape[1]), self.shape[1])
        enough = self.fractions(self.central(rows, 0), self.central(columns, 1)) >= self.min_tissue
        return np.stack([rows, columns], axis=1)[enough].astype(np.int64)

    def origins(self, cell: Any, axis: int) -> tuple[Any, Any]:
        """Origins [low, high) of a cell or of an array of them: all cells share out every origin."""
        count = (self.height, self.width)[axis] - self.tile_px + 1
        cells = self.shape[axis]
        return cell * count // cells, (cell + 1) * count // cells

    def central(self, cell: Any, axis: int) -> Any:
        """The middle one of a cell's origins."""
        low, high = self.origins(cell, axis)
        return (low + high - 1) // 2

    def central_window(self, row: int, column: int) -> Window:
        """The tile in the middle of a cell."""
        return self.window(self.central(row, 0), self.central(column, 1))

    def window(self, y: int, x: int) -> Window:
        """The tile with this origin."""
        return Window(
            x_px=x * self.scale,
            y_px=y * self.scale,
            width=self.tile_px,
            height=self.tile_px,
            scale=self.scale,
        )
