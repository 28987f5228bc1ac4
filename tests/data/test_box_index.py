import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data import box_index
from sparseshot_jax.data.box_index import BoxIndex
from sparseshot_jax.types import Window


def linear(bounds, window):
    x0, y0, x1, y1 = bounds.T
    right, bottom = window.x_px + window.width * window.scale, window.y_px + window.height * window.scale
    return np.flatnonzero((x0 <= right) & (x1 >= window.x_px) & (y0 <= bottom) & (y1 >= window.y_px))


def boxes(rng, count, spread, size):
    corner = rng.uniform(-spread / 2, spread, (count, 2))
    return np.hstack([corner, corner + rng.exponential(size, (count, 2))])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    count=st.sampled_from([0, 1, 2, 30, 300]),
    size=st.sampled_from([0.0, 1.0, 20.0, 400.0]),
    whole=st.booleans(),
    scale=st.sampled_from([0.25, 1.0, 16.0]),
)
def test_finds_what_comparing_all_finds(seed, count, size, whole, scale):
    rng = np.random.default_rng(seed)
    bounds = boxes(rng, count, 1000.0, size)
    if whole:  # whole pixels: edges meet exactly
        bounds = np.floor(bounds)
    least, box_index._LEAST = box_index._LEAST, 1
    try:
        index = BoxIndex(bounds)
    finally:
        box_index._LEAST = least
    for _ in range(20):
        x, y = np.floor(rng.uniform(-700, 1300, 2)) if whole else rng.uniform(-700, 1300, 2)
        window = Window(x_px=float(x), y_px=float(y), width=40, height=int(rng.integers(1, 90)), scale=scale)
        np.testing.assert_array_equal(index.touching(window), linear(bounds, window))


def test_regions_among_cells():
    rng = np.random.default_rng(0)
    bounds = np.concatenate(
        [boxes(rng, 3000, 5e4, 12.0), boxes(rng, 5, 1e4, 2e4), boxes(rng, 3000, 5e4, 12.0)]
    )
    index = BoxIndex(bounds)
    assert len(index._large) < 700
    found = 0
    for x, y in rng.uniform(-2e4, 5e4, (200, 2)):
        window = Window(x_px=x, y_px=y, width=1500, height=700)
        np.testing.assert_array_equal(index.touching(window), linear(bounds, window))
        found += len(index.touching(window))
    assert found > 200


@pytest.mark.parametrize("axis", [0, 1])
def test_boxes_in_a_line_and_in_one_place(axis):
    bounds = np.zeros((2000, 4))
    bounds[:, axis] = bounds[:, axis + 2] = np.arange(2000)
    one = np.tile([5.0, 6.0, 5.0, 6.0], (2000, 1))
    for these in (bounds, one):
        index = BoxIndex(these)
        assert index._rows * index._columns <= 4100
        for x, y in ((0, 0), (5, 6), (700, 0), (0, 700), (1999, 0), (-50, -50), (1e9, 0)):
            window = Window(x_px=x, y_px=y, width=3, height=3)
            np.testing.assert_array_equal(index.touching(window), linear(these, window))


def test_a_million_boxes_are_not_all_looked_at(monkeypatch):
    bounds = boxes(np.random.default_rng(1), 200_000, 1e5, 10.0)
    index = BoxIndex(bounds)
    seen = []
    meeting = BoxIndex._meeting

    def counted(self, which, *edges):
        seen.append(len(bounds) if which is None else len(which))
        return meeting(self, which, *edges)

    monkeypatch.setattr(BoxIndex, "_meeting", counted)
    window = Window(x_px=3e4, y_px=2e4, width=512, height=512)
    np.testing.assert_array_equal(index.touching(window), linear(bounds, window))
    assert seen[0] < 2500  # the large ones, one box in twenty, are mostly within
