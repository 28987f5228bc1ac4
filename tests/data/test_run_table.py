import numpy as np
import pytest

from sparseshot_jax.data import run_table
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec, TargetMaps
from sparseshot_jax.data.rasterize import covered, fill, rasterize
from sparseshot_jax.data.run_table import RunCache
from sparseshot_jax.types import Window


def shapes(seed=0, count=120, side=400.0):
    """Crossing polygons with holes, on whole and on broken coordinates; a few far outside, one huge."""
    rng = np.random.default_rng(seed)
    turn = np.arange(9) * 2 * np.pi / 9
    objects = []
    for k in range(count):
        ring = rng.uniform(-40, side, 2) + rng.uniform(3, 30) * np.stack([np.cos(turn), np.sin(turn)], 1)
        middle = ring.mean(0)
        ring = np.round(ring * 2) / 2 if k % 2 else ring
        objects.append([ring, middle + 0.3 * (ring - middle)] if k % 3 else [ring])
    objects.append([[[-900.0, -900.0], [side, -900.0], [side / 2, 2 * side]]])
    return Annotations.from_polygons(objects, ["a", "b", "c"] * 40 + ["a"])


def drawn(runs, window):
    plane = np.zeros((window.height, window.width), np.int32)
    fill(runs, (plane, (runs.objects + 1).astype(np.int32)))
    return plane


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0, 1.7])
def test_looked_up_and_drawn_anew_are_equal_to_the_last_pixel(scale):
    marks = shapes()
    cache = RunCache(marks)
    rng = np.random.default_rng(1)
    for k in range(40):
        x, y = rng.integers(-100, 400, 2)
        window = Window(x_px=x * scale, y_px=y * scale, width=70, height=50, scale=scale)
        np.testing.assert_array_equal(drawn(cache.covered(window), window), rasterize(marks, window))
        assert (cache._table is not None) == (k >= run_table._USES)


def test_windows_of_one_grid_show_the_same_pixels():
    marks = shapes(2)
    whole = rasterize(marks, Window(x_px=0, y_px=0, width=300, height=300, scale=1.3))
    for x, y in ((0, 0), (7, 100), (150, 33)):
        part = rasterize(marks, Window(x_px=x * 1.3, y_px=y * 1.3, width=120, height=90, scale=1.3))
        np.testing.assert_array_equal(part, whole[y : y + 90, x : x + 120])


def test_between_the_pixels_and_at_other_scales_it_is_drawn_anew():
    marks = shapes(3)
    cache = RunCache(marks)
    aligned = Window(x_px=10, y_px=20, width=64, height=64)
    for _ in range(run_table._USES + 1):
        cache.covered(aligned)
    table = cache._table
    assert table is not None
    for window in (
        Window(x_px=10.25, y_px=20, width=64, height=64),
        Window(x_px=10, y_px=20.5, width=64, height=64),
        Window(x_px=10, y_px=20, width=32, height=32, scale=2.0),
    ):
        np.testing.assert_array_equal(drawn(cache.covered(window), window), rasterize(marks, window))
    assert cache._table is table


def test_too_many_runs_make_no_table(monkeypatch):
    monkeypatch.setattr(run_table, "_MOST_RUNS", 100)
    cache = RunCache(shapes())
    window = Window(x_px=0, y_px=0, width=9, height=9)
    for _ in range(20):
        cache.covered(window)
    assert cache._table is None
    assert cache.nbytes == shapes().nbytes


def test_bytes_are_counted_before_the_table_is_there():
    cache = RunCache(shapes())
    before = cache.nbytes
    for _ in range(run_table._USES + 1):
        cache.covered(Window(x_px=0, y_px=0, width=9, height=9))
    table = cache._table
    # polygons with holes have two runs a row
    assert table.rows.nbytes + table.begins.nbytes + table.ends.nbytes < 2 * (before - shapes().nbytes)


def test_targets_stay_the_same_when_they_are_looked_up():
    marks = shapes(4)
    marks = marks.take(np.arange(len(marks) - 1))  # the huge one would cover the others
    maps = TargetMaps(marks, LabelSpec(classes=("a", "b"), known_background=("c",)), mpp=0.5)
    windows = [Window(x_px=x, y_px=3 * x, width=80, height=60) for x in range(0, 100, 9)]
    first = [maps.draw(window) for window in windows[:6]]
    for _ in range(2):
        for window in windows:
            maps.draw(window)
    for window, (ground, label) in zip(windows, first):
        again = maps.draw(window)
        np.testing.assert_array_equal(again[0], ground)
        np.testing.assert_array_equal(again[1], label)
    assert set(np.unique([ground for ground, _ in first])) == {0, 1, 2}


def test_runs_of_nothing():
    cache = RunCache(Annotations.from_points([[5.0, 5.0]], "a"))
    window = Window(x_px=0, y_px=0, width=9, height=9)
    for _ in range(run_table._USES + 2):
        assert not len(cache.covered(window).starts)
    assert not len(covered(Annotations.empty(), window).starts)
