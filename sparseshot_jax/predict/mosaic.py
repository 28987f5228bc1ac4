"""Tiles in raster order -> each tile with a margin of its neighbours, as soon as they have come."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float32

from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.stream import Grid

_Tile = Float32[np.ndarray, "h w C"]
_Place = tuple[int, int]  # row and column of tiles
Edge = dict[int, np.ndarray]  # column of tiles -> the rows of one at a band's border that its neighbours see


class Mosaic:
    """Holds two rows of tiles, of those that were computed; of a band also its first row and a margin."""

    def __init__(self, grid: Grid, *, margin_px: int, channels: int, rows: range | None = None) -> None:
        """`margin_px`: of neighbours round a core, map pixels. `rows`: of tiles that come; None: all.

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
        self._rows = range(last_row + 1) if rows is None else rows
        self._tiles: dict[_Place, _Tile] = {}
        self._begin: dict[_Place, _Tile] = {}  # the band's first row, and the margin below it

    def add(self, x: int, y: int, tile: _Tile | None) -> Iterator[tuple[int, int, _Tile]]:
        """Cores that the tile with first pixel (x, y) completes: their first pixel, and their window.

        The window begins `margin_px` + 1 before the core and ends as far behind it. Beyond the map, and in
        tiles that are None, it is 0; so is its outermost pixel. A core that is None itself is passed over.
        """
        row, column = y // self._grid.core_px, x // self._grid.core_px
        begun = self._rows.start
        if tile is not None:
            self._tiles[row, column] = tile
            if begun and row <= begun + 1:
                whole = row == begun
                self._begin[row, column] = tile if whole else tile[: self._margin].copy()
        done = [[n - 1] * (n > 0) + [n] * (n == last) for n, last in zip((row, column), self._last)]
        for i, j in itertools.product(*done):
            if (i, j) in self._tiles and (i > begun or not begun):
                yield *self._first_pixel(i, j), self._window(self._tiles, i, j)
            self._tiles.pop((i - 1, j - 1), None)
            if j == self._last[1]:
                self._tiles.pop((i - 1, j), None)

    def edges(self) -> tuple[Edge, Edge]:
        """After the band's last tile: what the bands above and below see of it."""
        first, last = self._rows.start, self._rows.stop - 1
        upper = {j: tile[: self._margin] for (i, j), tile in self._begin.items() if i == first}
        # A tile that has a band below it is as high as a core.
        hidden = self._grid.core_px - self._margin
        return upper, {j: tile[hidden:] for (i, j), tile in self._tiles.items() if i == last}

    def border(self, above: Edge, below: Edge) -> Iterator[tuple[int, int, _Tile]]:
        """The cores that waited for the band above, by its lower edge, and below; as of `add`."""
        first, last = self._rows.start, self._rows.stop - 1
        tiles = self._begin | self._tiles
        tiles |= {(first - 1, j): tile for j, tile in above.items()}
        tiles |= {(last + 1, j): tile for j, tile in below.items()}
        waiting = {first} if first else set()
        waiting |= {last} if 0 <= last < self._last[0] else set()
        for i, j in itertools.product(sorted(waiting), range(self._last[1] + 1)):
            if (i, j) in tiles:
                yield *self._first_pixel(i, j), self._window(tiles, i, j)

    @property
    def held(self) -> int:
        """Tiles in memory."""
        return len(self._tiles.keys() | self._begin.keys())

    def _first_pixel(self, row: int, column: int) -> tuple[int, int]:
        return column * self._grid.core_px, row * self._grid.core_px

    def _window(self, tiles: Mapping[_Place, np.ndarray], row: int, column: int) -> _Tile:
        core, margin = self._grid.core_px, self._margin
        side = core + 2 * margin + 2
        window = np.zeros((side, side, self._channels), np.float32)
        for i, j in itertools.product((-1, 0, 1), (-1, 0, 1)):
            tile = tiles.get((row + i, column + j))
            if tile is not None:
                # Of a tile of the band above only its last rows are there.
                cut = core - tile.shape[0] if i == -1 else 0
                rows, source_rows = _overlap(i * core + cut, core, margin, tile.shape[0])
                columns, source_columns = _overlap(j * core, core, margin, tile.shape[1])
                window[rows, columns] = tile[source_rows, source_columns]
        return window


def _overlap(first: int, core: int, margin: int, size: int) -> tuple[slice, slice]:
    """Where a tile that begins `first` pixels after the core lies in the window, and the part that does."""
    start, stop = max(first, -margin), max(min(first + size, core + margin), -margin)
    stop = max(start, stop)
    return slice(start + margin + 1, stop + margin + 1), slice(start - first, stop - first)
