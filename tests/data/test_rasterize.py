import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.types import Window

UNIT = Window(x_px=0, y_px=0, width=12, height=10)


def star(rng, centre, radius, corners=11):
    """A ring that is simple by construction: one radius an angle."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    length = radius * rng.uniform(0.5, 1.0, corners)
    return centre + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ring_with_hole(rng, centre, radius):
    """The hole keeps within 0.3 radii: regular corners keep the outer ring beyond 0.5 cos(pi / 16)."""
    angle = np.arange(16) * np.pi / 8 + rng.uniform(0, 1)
    outer = radius * rng.uniform(0.6, 1.0, 16)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return [centre + outer, star(rng, centre, 0.3 * radius)[:: rng.choice([-1, 1])]]


def centres(window):
    x = window.x_px + (np.arange(window.width) + 0.5) * window.scale
    y = window.y_px + (np.arange(window.height) + 0.5) * window.scale
    return np.meshgrid(x, y)


def by_shapely(objects, window):
    """The independent answer: shapely's own point in polygon, object after object."""
    drawn = np.zeros((window.height, window.width), np.int32)
    x, y = centres(window)
    for k, (shell, *holes) in enumerate(objects):
        drawn[shapely.contains_xy(shapely.Polygon(shell, holes), x, y)] = k + 1
    return drawn


@pytest.mark.parametrize("scale", [0.37, 1.0, 2.9, 16.0])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_shapely_on_random_polygons_with_holes(seed, scale):
    rng = np.random.default_rng([seed, int(scale * 100)])
    window = Window(x_px=rng.uniform(-50, 50), y_px=rng.uniform(-50, 50), width=97, height=61, scale=scale)
    middle = np.array([window.x_px + 48 * scale, window.y_px + 30 * scale])
    objects = []
    for _ in range(25):  # some lie partly or wholly outside the window
        centre = middle + rng.uniform(-65, 65, 2) * scale
        radius = rng.uniform(0.5, 30) * scale
        draw = ring_with_hole(rng, centre, radius)
        objects.append(draw if rng.random() < 0.5 else draw[:1])
    drawn = rasterize(Annotations.from_polygons(objects), window)
    np.testing.assert_array_equal(drawn, by_shapely(objects, window))
    assert len(np.unique(drawn)) > 5


def test_agrees_with_an_object_drawn_alone():
    rng = np.random.default_rng(3)
    objects = [[star(rng, rng.uniform(0, 60, 2), 12)] for _ in range(30)]
    window = Window(x_px=0.25, y_px=-3, width=64, height=64)
    expected = np.zeros((64, 64), np.int32)
    for k, one in enumerate(objects):
        expected[rasterize(Annotations.from_polygons([one]), window) > 0] = k + 1
    np.testing.assert_array_equal(rasterize(Annotations.from_polygons(objects), window), expected)


def test_x_runs_right_and_y_runs_down():
    box = [[7, 1], [10, 1], [10, 3], [7, 3]]
    expected = np.zeros((10, 12), np.int32)
    expected[1:3, 7:10] = 1
    np.testing.assert_array_equal(rasterize(Annotations.from_polygons([[box]]), UNIT), expected)


def test_window_origin_and_scale_are_level_0_pixels():
    box = [[100, 200], [108, 200], [108, 204], [100, 204]]
    window = Window(x_px=96, y_px=196, width=4, height=4, scale=4.0)
    expected = np.zeros((4, 4), np.int32)
    expected[1, 1:3] = 1
    np.testing.assert_array_equal(rasterize(Annotations.from_polygons([[box]]), window), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 48), min_size=4, max_size=4, unique=True),
    st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True),
    st.integers(0, 48),
)
def test_shared_edges_leave_no_gap_and_no_overlap(xs, ys, lean):
    """Quarter pixels put corners and edges exactly on pixel centres."""
    xs, (top, bottom) = np.sort(xs) / 4, np.sort(ys) / 4
    low = np.clip(xs + (lean - 24) / 4, 0, None)
    parts = [
        [[[xs[i], top], [xs[i + 1], top], [low[i + 1], bottom], [low[i], bottom]][:: (-1) ** i]]
        for i in range(3)
    ]
    whole = [[[xs[0], top], [xs[3], top], [low[3], bottom], [low[0], bottom]]]
    alone = [rasterize(Annotations.from_polygons([part]), UNIT) > 0 for part in parts]
    together = rasterize(Annotations.from_polygons([whole]), UNIT) > 0
    np.testing.assert_array_equal(np.sum(alone, axis=0), together)


def test_fan_of_triangles_covers_every_centre_once():
    rng = np.random.default_rng(5)
    rim = star(rng, np.array([15.0, 15.0]), 14.0, 24)
    apex = np.array([15.5, 15.5])  # on a pixel centre
    fan = [[[apex, rim[i], rim[(i + 1) % 24]]] for i in range(24)]
    window = Window(x_px=0, y_px=0, width=31, height=31)
    count = sum((rasterize(Annotations.from_polygons([t]), window) > 0).astype(int) for t in fan)
    disc = rasterize(Annotations.from_polygons([[rim]]), window) > 0
    np.testing.assert_array_equal(count, disc)


def test_parts_of_one_object_share_its_number_and_later_objects_win():
    left = [[0, 0], [4, 0], [4, 4], [0, 4]]
    right = [[6, 0], [8, 0], [8, 4], [6, 4]]
    over = [[3, 0], [7, 0], [7, 2], [3, 2]]
    drawn = rasterize(Annotations.from_polygons([[left, right], [over]]), UNIT)
    np.testing.assert_array_equal(drawn[3], [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(drawn[0], [1, 1, 1, 2, 2, 2, 2, 1, 0, 0, 0, 0])


def test_points_and_far_objects_draw_nothing():
    far = [[1e7, 1e7], [1e7 + 9, 1e7], [1e7, 1e7 + 9]]
    both = Annotations.concatenate(
        [Annotations.from_points([[5, 5]], "a"), Annotations.from_polygons([[far]], "a")]
    )
    assert not rasterize(both, UNIT).any()
    assert not rasterize(Annotations.empty(), UNIT).any()


def test_an_object_larger_than_the_window_fills_it():
    huge = [[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]]
    assert (rasterize(Annotations.from_polygons([[huge]]), UNIT) == 1).all()


def test_long_fills_are_cut_into_chunks(monkeypatch):
    monkeypatch.setattr("sparseshot_jax.data.rasterize.FILL_CHUNK", 7)
    rng = np.random.default_rng(8)
    objects = [[star(rng, rng.uniform(0, 10, 2), 6)] for _ in range(6)]
    drawn = rasterize(Annotations.from_polygons(objects), UNIT)
    np.testing.assert_array_equal(drawn, by_shapely(objects, UNIT))
