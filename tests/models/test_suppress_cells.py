"""The layout of candidates. What suppression on a grid gives is held to the loop in `test_suppress`."""

import jax.numpy as jnp
import numpy as np

from sparseshot_jax.models.suppress_cells import CellGrid

GRID = CellGrid(height=3, width=4, anchors=2, stride_px=8)


def test_candidates_run_over_rows_columns_and_anchors():
    flat = jnp.arange(GRID.places)[None]
    planes = GRID.planes(flat)
    assert planes.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(planes[0, 1, 2], [17, 19, 21, 23])
    np.testing.assert_array_equal(GRID.flat(planes), flat)


def test_further_axes_come_first():
    fields = jnp.arange(2 * 5 * GRID.places).reshape(5, 2, GRID.places)
    assert GRID.planes(fields).shape == (5, 2, 2, 3, 4)
    np.testing.assert_array_equal(GRID.flat(GRID.planes(fields)), fields)
