import collections
import time

import numpy as np
import pytest

from sparseshot_jax.data import rings
from sparseshot_jax.data.annotations import Kind
from sparseshot_jax.data.formats import polygon_repair
from sparseshot_jax.data.formats.polygon_repair import Shapes, clean

SQUARE = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])


def cleaned(*outlines):
    """Polygons of one ring each, and what was said of them."""
    count = len(outlines)
    shapes = Shapes(
        xy=np.concatenate([np.concatenate([o, o[:1]]) for o in outlines]),
        ring_offsets=rings.offsets_of(np.array([len(o) + 1 for o in outlines])),
        part_offsets=np.arange(count + 1),
        object_offsets=np.arange(count + 1),
        class_ids=np.arange(count, dtype=np.int32),
        kind=np.full(count, Kind.POLYGON, np.uint8),
    )
    counts = collections.Counter()
    found = clean(shapes, tuple(map(str, range(count))), counts)
    return found, {text: n for text, n in counts.items() if n}


@pytest.mark.parametrize("count", [100, 3000])
def test_polygons_that_cross_all_over_are_rejected_at_once(count):
    scribble = np.random.default_rng(0).uniform(0, 100, (count, 2))
    begun = time.perf_counter()
    found, notes = cleaned(SQUARE, scribble, SQUARE + 10)
    assert time.perf_counter() - begun < 5  # the repair of 3,000 takes half a minute
    assert notes == {polygon_repair.TANGLED: 1}
    np.testing.assert_array_equal(found.class_ids, [0, 2])
    np.testing.assert_array_equal(found.areas_px, [16, 16])


def test_nothing_but_tangles_leaves_nothing():
    found, notes = cleaned(np.random.default_rng(0).uniform(0, 100, (200, 2)))
    assert len(found) == 0
    assert notes == {polygon_repair.TANGLED: 1}


def test_long_outlines_that_cross_here_and_there_are_repaired():
    angle = (np.arange(20_000) + 0.5) * 2 * np.pi / 20_000  # one crossing, amid an edge
    lissajous = 1000 * np.stack([np.sin(angle), np.sin(2 * angle)], axis=1)
    # A hundred strokes to and fro: their boxes all meet, and none crosses another; then one across.
    strokes = [(k, 0.0) if k % 2 else (k + 100.0, 100) for k in range(200)]
    across = [(300.0, 50), (0, 51), (-50, 10)]
    found, notes = cleaned(lissajous, np.array(strokes + across))
    assert notes == {polygon_repair.REPAIRED: 2}
    # Each lobe of the figure has an area of 4/3 of its square.
    np.testing.assert_allclose(found.areas_px[0], 2 * 4 / 3 * 1000**2, rtol=1e-3)
    assert found.areas_px[1] > 0


def test_an_outline_too_long_to_repair_is_kept_where_it_needs_none(monkeypatch):
    monkeypatch.setattr(polygon_repair, "MAX_REPAIRED_VERTICES", 60)
    angle = np.arange(100) * 2 * np.pi / 100
    # A horseshoe: no star, so that the full test runs.
    shoe = np.concatenate([np.stack([np.cos(angle * 0.8), np.sin(angle * 0.8)], 1) * r for r in (9, 8)])
    shoe[100:] = shoe[:99:-1]
    eight = np.stack([np.sin(angle + 0.01), np.sin(2 * angle + 0.02)], axis=1)
    found, notes = cleaned(shoe, eight)
    np.testing.assert_array_equal(found.class_ids, [0])
    assert notes == {polygon_repair.TANGLED: 1}
