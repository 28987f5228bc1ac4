"""Windows of a map put together from its tiles."""

import itertools

import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.mosaic import Mosaic
from sparseshot_jax.predict.stream import Grid


def grid(width, height, core):
    return Grid(width=width, height=height, scale=1.0, core_px=core, halo_px=0)


@pytest.mark.parametrize("shape", [(50, 70), (16, 90), (90, 16), (10, 12), (64, 64)])
@pytest.mark.parametrize("margin", [0, 5, 16])
def test_windows_are_cut_from_the_whole(shape, margin):
    core = 16
    whole = np.random.default_rng(0).random((*shape, 2)).astype(np.float32)
    wide = np.pad(whole, ((margin, margin + core), (margin, margin + core), (0, 0)))
    places = grid(shape[1], shape[0], core)
    mosaic = Mosaic(places, margin_px=margin, channels=2)
    found = []
    for x, y in places.origins():
        for left, top, window in mosaic.add(x, y, whole[y : y + core, x : x + core]):
            found.append((left, top))
            side = core + 2 * margin
            np.testing.assert_array_equal(
                window, np.pad(wide[top : top + side, left : left + side], ((1, 1), (1, 1), (0, 0)))
            )
    assert sorted(found) == sorted(places.origins())


def test_memory_is_two_rows_of_tiles():
    places = grid(160, 320, 16)
    mosaic = Mosaic(places, margin_px=8, channels=1)
    most = 0
    for x, y in places.origins():
        for _ in mosaic.add(x, y, np.ones((16, 16, 1), np.float32)):
            most = max(most, mosaic.held)
    assert most <= 2 * 10 + 3  # the window's own corners


def test_tiles_that_were_not_computed_are_zero_and_have_no_window():
    places = grid(48, 48, 16)
    mosaic = Mosaic(places, margin_px=4, channels=1)
    ones = np.ones((16, 16, 1), np.float32)
    given = {(0, 0), (16, 16)}
    windows = {
        (left, top): window
        for x, y in places.origins()
        for left, top, window in mosaic.add(x, y, ones if (x, y) in given else None)
    }
    assert set(windows) == given
    for (left, top), window in windows.items():
        rows, columns = np.nonzero(window[..., 0])
        for i, j in itertools.product(np.unique(rows), np.unique(columns)):
            inside = ((left + j - 5) // 16 * 16, (top + i - 5) // 16 * 16) in given
            assert window[i, j, 0] == inside


def test_a_margin_past_the_next_tile_is_refused():
    with pytest.raises(InputError, match="at least as large as the margin"):
        Mosaic(grid(40, 40, 16), margin_px=17, channels=1)
    Mosaic(grid(16, 10, 16), margin_px=17, channels=1)  # there is no next tile
