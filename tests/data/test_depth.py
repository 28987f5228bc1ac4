import numpy as np
import pytest

from sparseshot_jax.data import depth
from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.depth import Depths
from sparseshot_jax.types import Window


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]


def blobs(count=30, side=128, seed=0):
    """Polygons of many sizes that overlap, some over the edge of the picture."""
    random = np.random.default_rng(seed)
    angle = np.arange(12) * np.pi / 6
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centres, radii = random.uniform(0, side, (count, 2)), random.uniform(1, 25, count)
    return Annotations.from_polygons([[c + r * circle] for c, r in zip(centres, radii)])


def test_the_distance_to_the_border_over_the_largest():
    drawn = Depths(Annotations.from_polygons([box(1, 1, 6, 6)])).draw(
        Window(x_px=0, y_px=0, width=7, height=7)
    )
    # Distances 1, 2 and 3 to the nearest pixel outside; 3 is the largest.
    ring = [0, 85, 85, 85, 85, 85, 0]
    assert drawn.tolist() == [
        [0] * 7,
        ring,
        [0, 85, 170, 170, 170, 85, 0],
        [0, 85, 170, 255, 170, 85, 0],
        [0, 85, 170, 170, 170, 85, 0],
        ring,
        [0] * 7,
    ]


def test_touching_objects_have_a_hill_each_and_the_last_one_shows():
    window = Window(x_px=0, y_px=0, width=12, height=6)
    pair = [box(0, 0, 6, 6), box(6, 0, 12, 6)]
    alone = [Depths(Annotations.from_polygons([one])).draw(window) for one in pair]
    both = Depths(Annotations.from_polygons(pair)).draw(window)
    assert (both == alone[0] + alone[1]).all()
    assert (both[:, 5:7] <= both[:, 2:3]).all()  # a valley where they touch
    assert both.min() >= 1
    over = [box(0, 0, 8, 6), box(6, 0, 12, 6)]
    first, last = (Depths(Annotations.from_polygons([one])).draw(window) for one in over)
    assert (Depths(Annotations.from_polygons(over)).draw(window) == np.where(last, last, first)).all()


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize(("large", "most"), [(depth._LARGE_PX, depth._MOST_PX), (400, 1 << 22), (300, 900)])
def test_an_object_cut_by_the_window_has_the_values_of_the_whole(monkeypatch, scale, large, most):
    monkeypatch.setattr(depth, "_LARGE_PX", large)
    monkeypatch.setattr(depth, "_MOST_PX", most)
    shapes = blobs()
    side = round(128 / scale)
    whole = Depths(shapes).draw(Window(x_px=0, y_px=0, width=side, height=side, scale=scale))
    cut = Depths(shapes)
    random = np.random.default_rng(1)
    for row, column in random.integers(0, side - 40, (20, 2)).tolist():
        window = Window(x_px=column * scale, y_px=row * scale, width=40, height=30, scale=scale)
        assert (cut.draw(window) == whole[row : row + 30, column : column + 40]).all()
    assert whole.max() == 255
    assert (whole == 0).any()


def test_it_lies_where_the_objects_lie():
    from sparseshot_jax.data.rasterize import rasterize

    window = Window(x_px=3.25, y_px=1.5, width=90, height=70, scale=1.3)
    assert ((Depths(blobs()).draw(window) > 0) == (rasterize(blobs(), window) > 0)).all()


def test_large_objects_are_measured_once(monkeypatch):
    monkeypatch.setattr(depth, "_LARGE_PX", 64)
    measured = []
    hill = depth._hill
    monkeypatch.setattr(depth, "_hill", lambda shape, box: measured.append(len(shape)) or hill(shape, box))
    depths = Depths(Annotations.from_polygons([box(0, 0, 30, 30), box(2, 2, 5, 5)]))
    for x in (0, 4, 8):
        depths.draw(Window(x_px=x, y_px=0, width=16, height=16))
    assert measured == [1]


def test_one_by_one_and_all_at_once_are_the_same(monkeypatch):
    window = Window(x_px=3.25, y_px=1.5, width=90, height=70, scale=1.3)
    at_once = Depths(blobs(60)).draw(window)
    monkeypatch.setattr(depth, "_LARGE_PX", 200)  # some of them
    assert (Depths(blobs(60)).draw(window) == at_once).all()
    monkeypatch.setattr(depth, "_LARGE_PX", 0)
    assert (Depths(blobs(60)).draw(window) == at_once).all()


def test_a_coarse_object_is_near_the_fine_one(monkeypatch):
    shapes = Annotations.from_polygons([box(10, 20, 210, 160)])
    window = Window(x_px=0, y_px=0, width=220, height=180)
    fine = Depths(shapes).draw(window)
    monkeypatch.setattr(depth, "_LARGE_PX", 1)
    monkeypatch.setattr(depth, "_MOST_PX", 1 << 12)  # 3 pixels in one
    coarse = Depths(shapes).draw(window)
    inside = (fine > 15) & (coarse > 15)
    # The largest distance is 70 px: 255 / 70 a pixel, and an error of 3 pixels.
    assert np.abs(fine[inside].astype(int) - coarse[inside]).max() <= 3 * 255 / 70
    assert ((fine > 0) == (coarse > 0)).mean() > 0.98


def test_nothing_to_draw():
    window = Window(x_px=0, y_px=0, width=5, height=4)
    assert not Depths(Annotations.empty()).draw(window).any()
    tiny = Annotations.from_polygons([box(1.1, 1.1, 1.2, 1.2)])  # covers no pixel centre
    assert not Depths(tiny).draw(window).any()
