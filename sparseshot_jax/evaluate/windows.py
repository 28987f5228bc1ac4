"""Where a measure on sparse marks looks: tissue spread over a slide, and the surroundings of objects."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from sparseshot_jax.data.cases import Case
from sparseshot_jax.data.tiles import TileSpec, tile_index
from sparseshot_jax.types import Window

TILES = 64  # windows of tissue, a slide
OBJECTS = 4 * TILES  # held-out objects looked at, a slide


def by_truth(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Cases with dense truth, and those of which only some objects are known."""
    return (
        [case for case in cases if case.held_out is None],
        [case for case in cases if case.held_out is not None],
    )


def evenly(count: int, most: int) -> Int64[np.ndarray, "k"]:
    """Indices below `count`: all, or `most` of them evenly spread.

    >>> evenly(3, 5).tolist(), evenly(9, 3).tolist()
    ([0, 1, 2], [0, 4, 8])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def tissue_windows(cases: Sequence[Case], tiles: TileSpec) -> list[list[Window]]:
    """Up to `TILES` windows of tissue a case, evenly spread over its grid."""
    index = tile_index(cases, tiles)
    chosen = []
    for k, grid in enumerate(index.grids):
        cells = index.cells[index.cells[:, 0] == k]
        cells = cells[evenly(len(cells), TILES)]
        chosen.append([grid.central_window(int(row), int(column)) for _, row, column in cells])
    return chosen


def with_halo(window: Window, *, multiple: int, halo_px: int) -> tuple[Window, int]:
    """The window that a model has to be shown so that it sees the surroundings of all of one.

    Args:
        window: in which the answer is wanted.
        multiple: the model's; sides and halo are rounded up to it.
        halo_px: how far the model sees beyond a pixel, output pixels.

    Returns:
        The wider window, and how many output pixels it begins before the one given, in x and in y.

    >>> window = Window(x_px=0.0, y_px=80.0, width=30, height=20, scale=2.0)
    >>> wide, halo = with_halo(window, multiple=16, halo_px=9)
    >>> halo, wide.x_px, wide.y_px, wide.width, wide.height
    (16, -32.0, 48.0, 64, 64)
    """
    halo, width, height = (-(-side // multiple) * multiple for side in (halo_px, window.width, window.height))
    wide = dataclasses.replace(
        window,
        x_px=window.x_px - halo * window.scale,
        y_px=window.y_px - halo * window.scale,
        width=width + 2 * halo,
        height=height + 2 * halo,
    )
    return wide, halo


def window_round(centre_px: Float[np.ndarray, "2"], *, side: int, scale: float) -> Window:
    """A square of `side` output pixels with the level-0 point x, y in its middle.

    It begins at a whole output pixel, so that a stored level is read without resampling.
    """
    x, y = np.round(centre_px / scale) - side // 2
    return Window(x_px=x * scale, y_px=y * scale, width=side, height=side, scale=scale)
