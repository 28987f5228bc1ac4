"""Tiles in raster order -> each tile with a margin of its neighbours, as soon as they have come."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.stream import Grid

_Tile = Float32[np.ndarray, "h w C"]


class Mosaic:
    """Holds two rows of tiles, of those that were computed."""

    def __init__(self, grid: Grid, *, margin_px: int, channels: int) -> None:
        """`margin_px`: of neighbours round a core, map pixels.

        Raises:
            InputError: the margin reaches past the next tile.
        """
        last_column, last_row = (-(-n // grid.core_px) - 1 for n in (grid.width, grid.height))
        if (last_column or last_row) and margin_px > grid.core_px:
            raise InputError(
                f"core_px must be at least as large as the margin that objects need, {margin_px} px; got "
                f"{grid.core_px}. Try a larger core_px, or a smaller largest_um."
            )
        self._grid, self._margin, self._channels = grid, margin_px, channels
        self._last = last_row, last_column
        self._tiles: dict[tuple[int, int], _Tile] = {}  # row and column of tiles -> map

    def add(self, x: int, y: int, tile: _Tile | None) -> Iterator[tuple[int, int, _Tile]]:
        """Cores that the tile with first pixel (x, y) completes: their first pixel, and their window.

        The window begins `margin_px` + 1 before the core and ends as far behind it. Beyond the map, and in
        tiles that are None, it is 0; so is its outermost pixel. A core that is None itself is passed over.
        """
        row, column = y // self._grid.core_px, x // self._grid.core_px
        if tile is not None:
            self._tiles[row, column] = tile
        done = [[n - 1] * (n > 0) + [n] * (n == last) for n, last in zip((row, column), self._last)]
        for i, j in itertools.product(*done):
            if (i, j) in self._tiles:
                yield j * self._grid.core_px, i * self._grid.core_px, self._window(i, j)
            self._tiles.pop((i - 1, j - 1), None)
            if j == self._last[1]:
                self._tiles.pop((i - 1, j), None)

    @property
    def held(self) -> int:
        """Tiles in memory."""
        return len(self._tiles)

    def _window(self, row: int, column: int) -> _Tile:
        core, margin = self._grid.core_px, self._margin
        side = core + 2 * margin + 2
        window = np.zeros((side, side, self._channels), np.float32)
        for i, j in itertools.product((-1, 0, 1), (-1, 0, 1)):
            tile = self._tiles.get((row + i, column + j))
            if tile is not None:
                rows, source_rows = _overlap(i, core, margin, tile.shape[0])
                columns, source_columns = _overlap(j, core, margin, tile.shape[1])
                window[rows, columns] = tile[source_rows, source_columns]
        return window


def _overlap(step: int, core: int, margin: int, size: int) -> tuple[slice, slice]:
    """Where a tile `step` tiles on lies in the window, and the part of the tile that does."""
    first = step * core  # of the tile, counted from the core
    start, stop = max(first, -margin), max(min(first + size, core + margin), -margin)
    stop = max(start, stop)
    return slice(start + margin + 1, stop + margin + 1), slice(start - first, stop - first)
