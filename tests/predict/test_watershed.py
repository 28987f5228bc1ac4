"""Foreground to separate objects, against a sequential loop; touching discs against components."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sparseshot_jax.errors import InputError
from sparseshot_jax.predict.watershed import SplitSpec, basins, split

RADIUS = 8.0


def by_loops(relief: np.ndarray, mask: np.ndarray, absolute: float, relative: float) -> np.ndarray:
    """Every pixel walks to its summit; passes are taken one by one from the highest down."""
    height, width = mask.shape
    relief = relief.astype(np.float32)
    pixels = [(i, j) for i in range(height) for j in range(width) if mask[i, j]]

    def neighbours(i, j):
        around = ((i - 1, j), (i, j - 1), (i, j + 1), (i + 1, j))
        return [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width and mask[a, b]]

    def rank(pixel):
        return (relief[pixel], (-pixel[0], -pixel[1]))

    def summit(pixel):
        while (higher := max([pixel, *neighbours(*pixel)], key=rank)) != pixel:
            pixel = higher
        return pixel

    top = {pixel: summit(pixel) for pixel in pixels}
    owner = {summit: summit for summit in top.values()}
    passes = []
    for pixel in pixels:
        for other in neighbours(*pixel):
            if pixel < other and top[pixel] != top[other]:
                pair = tuple(sorted((top[pixel], top[other])))
                passes.append((-min(relief[pixel], relief[other]), pair))
    for negative, (a, b) in sorted(passes):
        low, high = sorted((owner[a], owner[b]), key=rank)
        drop = max(np.float32(absolute), np.float32(relative) * relief[low])
        if low != high and -negative > relief[low] - drop:
            owner = {summit: high if own == low else own for summit, own in owner.items()}
    number = {own: k + 1 for k, own in enumerate(sorted(set(owner.values())))}
    labels = np.zeros(mask.shape, np.int32)
    for pixel in pixels:
        labels[pixel] = number[owner[top[pixel]]]
    return labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([(0.05, 0.0), (0.3, 0.0), (0.01, 0.2)]))
def test_basins_equal_a_sequential_loop(seed, coarse, drops):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 20, 2))
    relief = ndimage.gaussian_filter(rng.random(shape), 1.0)
    relief = (relief - relief.min()) / max(np.ptp(relief), 1e-9)
    if coarse:  # many equal heights
        relief = np.round(relief * 6) / 6
    mask = rng.random(shape) < 0.8
    found = basins(relief, mask, absolute=drops[0], relative=drops[1])
    np.testing.assert_array_equal(found.labels, by_loops(relief, mask, *drops))


def discs(places, shape, radius=RADIUS):
    """p, and the depth of the topmost disc at each pixel: what a perfect model gives."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    top = np.zeros(shape, np.int32)
    for k, (x, y) in enumerate(places):
        top[np.hypot(columns - x, rows - y) < radius] = k + 1
    depth = np.zeros(shape, np.float32)
    for k in range(len(places)):
        inside = np.pad(top == k + 1, 1)
        distance = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        depth += (distance / max(distance.max(), 1)).astype(np.float32)
    return (top > 0).astype(np.float32), depth


def pairs(count, apart, seed=0):
    """Two discs each, `apart` radii between their centres, in any direction, on a grid."""
    rng = np.random.default_rng(seed)
    places, step, across = [], 5 * RADIUS, 8
    for k in range(count):
        centre = np.array([k % across, k // across]) * step + step / 2 + rng.random(2)
        angle = rng.random() * 2 * np.pi
        half = apart * RADIUS / 2 * np.array([np.cos(angle), np.sin(angle)])
        places += [centre - half, centre + half]
    return places, (int(-(-count // across) * step), int(across * step))


@pytest.mark.parametrize(("apart", "by_waist"), [(1.9, True), (1.6, True), (1.35, False), (1.0, False)])
def test_touching_discs_are_parted(apart, by_waist):
    p, depth = discs(*pairs(40, apart))
    assert ndimage.label(p > 0.5)[1] == 40
    assert split(p, depth, threshold=0.5).labels.max() == 80
    # Blurred and noisy as a model's.
    rough = ndimage.gaussian_filter(depth, 1.5) + np.random.default_rng(1).normal(scale=0.03, size=p.shape)
    assert split(p, np.clip(rough, 0, 1), threshold=0.5).labels.max() == 80
    if by_waist:
        assert split(p, threshold=0.5).labels.max() == 80


@pytest.mark.parametrize("radius", [2.5, 4.0, 8.3, 30.0])
def test_a_disc_stays_one_object(radius):
    p, depth = discs([(32.3, 31.6)], (64, 64), radius)
    assert split(p, depth, threshold=0.5).labels.max() == 1
    assert split(p, threshold=0.5).labels.max() == 1


def test_every_pixel_has_an_object_that_is_connected_and_holds_its_summit():
    rng = np.random.default_rng(3)
    p = ndimage.gaussian_filter(rng.normal(size=(90, 110)), 2.5) > 0
    parts = split(p.astype(np.float32), threshold=0.5)
    np.testing.assert_array_equal(parts.labels > 0, p)
    count = len(parts.summits_yx)
    assert ndimage.label(p)[1] < count == parts.labels.max()
    np.testing.assert_array_equal(parts.labels[tuple(parts.summits_yx.T)], np.arange(1, count + 1))
    assert all(ndimage.label(parts.labels == k)[1] == 1 for k in range(1, count + 1))


def test_objects_do_not_depend_on_where_the_array_begins():
    p, depth = discs(*pairs(16, 1.3))
    depth = np.clip(depth + np.random.default_rng(0).normal(scale=0.05, size=p.shape), 0, 1)
    for relief in (depth, None):
        whole = split(p, relief, threshold=0.5)
        for top, left in itertools.product((1, 7), (2, 12)):
            wide = [None if a is None else np.pad(a, ((top, 3), (left, 9))) for a in (p, relief)]
            moved = split(*wide, threshold=0.5)
            np.testing.assert_array_equal(moved.labels[top:-3, left:-9], whole.labels)
            np.testing.assert_array_equal(moved.summits_yx - (top, left), whole.summits_yx)


def test_nothing_and_everything():
    none = split(np.zeros((5, 7), np.float32), threshold=0.5)
    assert none.labels.shape == (5, 7)
    assert none.summits_yx.shape == (0, 2)
    everything = np.ones((5, 7), np.float32)
    for depth in (None, everything, 0 * everything):
        assert (split(everything, depth, threshold=0.5).labels == 1).all()


def test_the_threshold_is_strict_in_float32():
    p = np.full((1, 3), 0.3, np.float32)
    assert not split(p, threshold=0.3).labels.any()


def test_a_larger_drop_gives_fewer_objects():
    relief = ndimage.gaussian_filter(np.random.default_rng(5).random((60, 60)), 1.5)
    relief = (relief - relief.min()) / np.ptp(relief)
    mask = np.ones(relief.shape, bool)
    counts = [len(basins(relief, mask, absolute=d).summits_yx) for d in (0.0, 0.05, 0.15, 0.4, 1.1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] == 1


@pytest.mark.parametrize("fields", [{"drop": 0.0}, {"drop": 1.0}, {"smooth_px": -1.0}, {"smooth_px": np.nan}])
def test_a_field_out_of_range_is_refused_by_name(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        SplitSpec(**fields)


def test_shapes_must_agree():
    with pytest.raises(InputError, match="one shape"):
        split(np.zeros((3, 4)), np.zeros((4, 3)), threshold=0.5)
