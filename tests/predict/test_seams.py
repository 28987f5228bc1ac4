"""Contours of tiles against contours of the whole map: equal to the last bit."""

import itertools

import numpy as np
import pytest
import shapely
from scipy import ndimage

from sparseshot_jax.predict.contours import HOLD_OFF, contour
from sparseshot_jax.predict.seams import SeamlessContours


def field(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Smooth noise on three scales: blobs, holes, islands in holes, objects longer than any tile."""
    rng = np.random.default_rng(seed)
    z = np.zeros(shape)
    for sigma in (0.7, 2.0, 6.0):
        part = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        z += part / part.std()
    return (1 / (1 + np.exp(-2 * z))).astype(np.float32)


def tiled(p: np.ndarray, tile: int, first: int | None = None, threshold: float = 0.5) -> list:
    """Objects as (outer ring, holes, sum, count); the first row and column of tiles is `first` wide."""
    height, width = p.shape
    first = first or tile
    contours = SeamlessContours(width=width, height=height, threshold=threshold)
    columns = [0, *range(first, width, tile), width]
    rows = [0, *range(first, height, tile), height]
    found = []
    for y0, y1 in itertools.pairwise(rows):
        for x0, x1 in itertools.pairwise(columns):
            found.append(contours.add(x0, y0, p[y0:y1, x0:x1]))
    assert contours.waiting == 0
    return sorted(piece for regions in found for piece in plain(regions))


def plain(regions) -> list:
    out = []
    o = regions.outlines
    for k in range(len(regions)):
        rings = [
            o.xy_px[o.ring_offsets[i] : o.ring_offsets[i + 1]]
            for i in range(o.object_offsets[k], o.object_offsets[k + 1])
        ]
        starts = [min(range(len(r)), key=lambda i, r=r: tuple(r[i])) for r in rings]
        turned = [np.roll(r, -i, axis=0).tolist() for r, i in zip(rings, starts)]
        out.append((turned[0], sorted(turned[1:]), int(regions.p_count[k]), float(regions.p_sum[k])))
    return out


def assert_equal(one: list, many: list) -> None:
    assert len(one) == len(many)
    for a, b in zip(one, many):
        assert a[:3] == b[:3]  # every vertex of every ring, bit for bit, and the pixel count
        assert a[3] == pytest.approx(b[3], rel=1e-12)  # sums of float64 in another order


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("tile", "first"), [(7, None), (16, 8), (50, 25), (64, None), (64, 32)])
def test_tiles_give_the_objects_of_one_pass(seed, tile, first):
    p = field(seed, (150, 170))
    assert_equal(tiled(p, 1000), tiled(p, tile, first))


@pytest.mark.parametrize("tile", [1, 2, 3])
def test_tiles_of_a_pixel_or_two(tile):
    p = field(3, (31, 26))
    assert_equal(tiled(p, 1000), tiled(p, tile))


def test_samples_equal_to_the_threshold_are_outside_and_break_nothing():
    # Rounded to tenths: one sample in ten equals the threshold, often on seams and saddles.
    p = np.round(field(4, (150, 170)), 1).astype(np.float32)
    one = tiled(p, 1000)
    assert_equal(one, tiled(p, 16))
    assert sum(count for _, _, count, _ in one) == int((p > np.float32(0.5)).sum())


def test_threshold_is_compared_in_the_precision_of_p():
    p = np.full((4, 4), 0.3, np.float32)
    assert tiled(p, 2, threshold=0.3) == []  # float32(0.3) > 0.3 as float64


def test_outlines_are_simple_and_disjoint_and_hold_the_pixels_above_the_threshold():
    p = field(5, (90, 110))
    objects = tiled(p, 32)
    polygons = [shapely.Polygon(outer, holes) for outer, holes, _, _ in objects]
    assert all(shapely.is_valid(polygons))
    assert sum(q.area for q in polygons) == pytest.approx(shapely.union_all(polygons).area, abs=1e-9)
    rows, columns = np.mgrid[:90, :110] + 0.5
    inside = np.stack([shapely.contains_xy(q, columns, rows) for q in polygons])
    np.testing.assert_array_equal(inside.sum(0), p > np.float32(0.5))
    for mask, (_, _, count, p_sum) in zip(inside, objects):
        assert count == mask.sum()
        assert p_sum == pytest.approx(p[mask].sum(dtype=float), rel=1e-9)


@pytest.mark.parametrize("tile", [8, 13, 24])
def test_ring_across_every_seam_keeps_its_hole_and_the_island_in_it(tile):
    y, x = np.mgrid[:60, :60] + 0.5
    radius = np.hypot(x - 30, y - 30)
    p = (1 / (1 + np.exp(np.minimum(np.abs(radius - 20) - 4, radius - 6)))).astype(np.float32)
    objects = tiled(p, tile)
    assert sorted(len(holes) for _, holes, _, _ in objects) == [0, 1]
    areas = sorted(shapely.Polygon(outer, holes).area for outer, holes, _, _ in objects)
    # Marching squares cuts corners: some 1 % of a disc of 6 px radius.
    assert areas == pytest.approx([np.pi * 36, np.pi * (24**2 - 16**2)], rel=0.02)


def test_object_as_large_as_the_map_waits_with_nothing_but_its_outline():
    p = np.ones((400, 400), np.float32)
    contours = SeamlessContours(width=400, height=400, threshold=0.5)
    found = []
    for y in range(0, 400, 20):
        for x in range(0, 400, 20):
            found += plain(contours.add(x, y, p[y : y + 20, x : x + 20]))
            assert contours.waiting <= 4 * 20 + 4  # a few points for each tile of the band
    ((outer, holes, count, p_sum),) = found
    assert holes == []
    assert (count, p_sum) == (160_000, 160_000.0)
    assert shapely.Polygon(outer).area == pytest.approx(160_000, abs=1.0)  # the four corners are cut
    assert len(outer) == 4 * 400  # none of the seams' vertices is left


def test_objects_are_given_as_soon_as_they_are_complete():
    p = np.zeros((8, 12), np.float32)
    p[1, 1] = p[1, 4] = p[4, 1] = 1.0  # inside the first tile; on its last column + 1; below it
    contours = SeamlessContours(width=12, height=8, threshold=0.5)
    counts = [len(contours.add(x, y, p[y : y + 4, x : x + 4])) for y in (0, 4) for x in (0, 4, 8)]
    assert counts == [1, 1, 0, 1, 0, 0]


def test_skipped_tiles_count_as_zero_and_close_what_reaches_them():
    p = field(6, (64, 96))
    p[:, 32:64] = 0.0
    contours = SeamlessContours(width=96, height=64, threshold=0.5)
    found = []
    for y in (0, 32):
        for x in (0, 32, 64):
            tile = None if x == 32 else p[y : y + 32, x : x + 32]
            found += plain(contours.add(x, y, tile, size=32))
    assert_equal(tiled(p, 1000), sorted(found))


def test_vertices_keep_off_the_samples():
    p = field(7, (40, 40)).astype(float)
    p[10, 10:20] = 0.5 + 1e-9
    xy = contour(np.pad(p, 1), threshold=0.5).outlines.xy_px - 0.5
    along = np.abs(xy - np.round(xy)).max(axis=1)
    assert along.min() > HOLD_OFF / 2


def test_interpolation_is_linear_between_centres():
    p = np.zeros((3, 4))
    p[1, 1:3] = 1.0, 0.8
    xy = contour(p, threshold=0.5, x=10, y=20).outlines.xy_px
    assert xy[:, 0].min() == pytest.approx(10.5 + 0.5)
    assert xy[:, 0].max() == pytest.approx(12.5 + (0.8 - 0.5) / 0.8)
