"""Suppression against the sequential loop that defines it.

Coordinates are multiples of a quarter pixel, so that every area and distance is exact in float32: nothing
hangs on the rounding of a pair that lies just at the limit, and ties at the limit are tested.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.suppress import soften, suppress
from sparseshot_jax.models.suppress_cells import CellGrid

GRIDS = {
    1: CellGrid(height=17, width=20, stride_px=8),
    2: CellGrid(height=6, width=7, anchors=2, stride_px=8),
}
traces = []


@functools.partial(jax.jit, static_argnames=("by", "class_aware", "grid"))
def jitted(*candidates, **rule):
    traces.append(rule)
    return suppress(*candidates, **rule)


jitted_soft = jax.jit(soften, static_argnames=("class_aware",))


def near_to(boxes, i, *, by, limit):
    """[n]: who is too near the i-th."""
    y0, x0, y1, x1 = boxes.T
    if by == "distance":
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        return (y - y[i]) ** 2 + (x - x[i]) ** 2 < np.float32(limit) ** 2
    height = np.minimum(y1, y1[i]) - np.maximum(y0, y0[i])
    width = np.minimum(x1, x1[i]) - np.maximum(x0, x0[i])
    shared = np.maximum(height, 0) * np.maximum(width, 0)
    area = np.maximum(y1 - y0, 0) * np.maximum(x1 - x0, 0)
    return shared > np.float32(limit) * (area + area[i] - shared)


def sequential(boxes, score, class_ids, valid, *, by, limit, class_aware):
    """Who is kept by greedy suppression, best first, of one image."""
    kept = np.zeros(len(boxes), bool)
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-score[i], i)):
        near = near_to(boxes, i, by=by, limit=limit)
        rivals = near & (class_ids == class_ids[i]) if class_aware else near
        kept[i] = not kept[rivals].any()
    return kept


def scene(rng, grid, *, size_px, giants=0.0, astray=0.5, levels=5, classes=3, images=1):
    """Candidates whose centres lie up to `astray` cells from their cells' centres; scores with ties."""
    shape = (images, grid.height, grid.width, grid.anchors)
    row, column = np.mgrid[: grid.height, : grid.width]
    cell = np.stack([row, column], -1)[:, :, None] + 0.5
    centre = (cell + rng.uniform(-astray, astray, (*shape, 2))) * grid.stride_px
    sides = size_px * np.exp(rng.normal(0, 0.3, (*shape, 2)))
    sides = np.where(rng.random((*shape, 1)) < giants, rng.uniform(300, 2000, (*shape, 2)), sides)
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], -1).reshape(images, -1, 4)
    n = boxes.shape[1]
    return (
        np.round(4 * boxes).astype(np.float32) / 4,
        rng.integers(1, levels + 1, (images, n)).astype(np.float32) / levels,
        rng.integers(0, classes, (images, n)),
        rng.random((images, n)) < 0.9,
    )


def expect_sequential(given_scene, *, grid, **rule):
    found = np.asarray(jitted(*given_scene, grid=grid, **rule))
    for k, image in enumerate(zip(*given_scene, strict=True)):
        np.testing.assert_array_equal(found[k], sequential(*image, **rule))
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    anchors=st.sampled_from([1, 2]),
    size_px=st.sampled_from([0.3, 6.0, 20.0, 60.0, 150.0]),
    giants=st.sampled_from([0.0, 0.01, 0.05, 0.9]),  # none, compared with all, and too many for that
    astray=st.sampled_from([0.0, 0.5, 2.0, 4.1, 9.0]),
    levels=st.sampled_from([1, 3, 1000]),
    rule=st.sampled_from([("iou", 0.5), ("iou", 0.0), ("iou", 0.3), ("distance", 12.0), ("distance", 150.0)]),
    classes=st.sampled_from([1, 3]),
)
def test_cells_give_what_the_sequential_loop_gives(
    seed, anchors, size_px, giants, astray, levels, rule, classes
):
    numbers = {"size_px": size_px, "giants": giants, "astray": astray, "levels": levels}
    candidates = scene(np.random.default_rng(seed), GRIDS[anchors], classes=classes, **numbers)
    by, limit = rule
    expect_sequential(candidates, grid=GRIDS[anchors], by=by, limit=limit, class_aware=True)


@pytest.mark.parametrize(("by", "limit", "class_aware"), [("iou", 0.4, True), ("distance", 20.0, False)])
def test_candidates_without_a_grid(by, limit, class_aware):
    rng = np.random.default_rng(1)
    candidates = scene(rng, GRIDS[2], size_px=20, giants=0.05, astray=3, images=3)
    found = expect_sequential(candidates, grid=None, by=by, limit=limit, class_aware=class_aware)
    assert 0 < found.sum() < candidates[3].sum()


@pytest.mark.parametrize("giants", [0.0, 0.02, 0.9])
def test_images_of_a_batch_are_independent(giants):
    rng = np.random.default_rng(2)
    small = scene(rng, GRIDS[1], size_px=9)
    large = scene(rng, GRIDS[1], size_px=60, giants=giants)
    nobody = (*small[:3], np.zeros_like(small[3]))
    batch = [np.concatenate(parts) for parts in zip(small, nobody, large, strict=True)]
    expect_sequential(batch, grid=GRIDS[1], by="iou", limit=0.5, class_aware=False)


def test_the_longest_chain():
    """Each of a row lies too near the next: they are settled one after the other, end to end."""
    places = np.arange(GRIDS[1].places)
    left = 8 * places.astype(np.float32)
    boxes = np.stack([0 * left, left, 0 * left + 8, left + 20], -1)[None]  # IoU of neighbours 12 / 28
    score = np.linspace(1, 0.1, len(places), dtype=np.float32)[None]
    rest = (0 * places[None], places[None] < GRIDS[1].width)
    expected = rest[1] & (places % 2 == 0)
    found = expect_sequential((boxes, score, *rest), grid=GRIDS[1], by="iou", limit=0.4, class_aware=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grid", [None, CellGrid(height=2, width=2, stride_px=8)])
def test_what_is_no_candidate_may_be_anything(grid):
    boxes = np.array([[[0, 0, 8, 8], [np.nan] * 4, [np.inf] * 4, [0, 0, 8, 8]]], np.float32)
    score = np.array([[0.5, np.nan, 0.9, 0.6]], np.float32)
    valid = np.array([[True, False, False, True]])
    found = jitted(boxes, score, np.zeros((1, 4), int), valid, by="iou", limit=0.5, grid=grid)
    np.testing.assert_array_equal(found, [[0, 0, 0, 1]])


def test_boxes_without_area_overlap_nothing():
    boxes = np.zeros((1, 4, 4), np.float32)
    boxes[:, 2:] = [4, 4, 2, 2]  # inside out
    rest = (np.ones((1, 4), np.float32), np.zeros((1, 4), int), np.ones((1, 4), bool))
    assert jitted(boxes, *rest, by="iou", limit=0.0).all()


def test_no_places_at_all():
    nothing = (np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.float32), np.zeros((2, 0), int))
    valid = np.zeros((2, 0), bool)
    assert jitted(*nothing, valid, by="iou", limit=0.5).shape == (2, 0)
    assert jitted_soft(*nothing, valid, sigma=0.5, threshold=0.1).shape == (2, 0)


def test_exactly_greedy_at_five_thousand():
    grid = CellGrid(height=80, width=80, stride_px=8)
    candidates = scene(np.random.default_rng(5), grid, size_px=9, levels=10**6)
    found = expect_sequential(candidates, grid=grid, by="iou", limit=0.5, class_aware=False)
    assert found.sum() > 4500


def test_new_limits_compile_nothing():
    candidates = scene(np.random.default_rng(6), GRIDS[1], size_px=20)
    before = len(traces)
    kept = [
        int(jitted(*candidates, by="iou", limit=t, class_aware=True, grid=GRIDS[1]).sum())
        for t in (0.0, 0.3, 0.9)
    ]
    assert len(traces) - before <= 1
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_mistakes_are_named():
    boxes, score, class_ids, valid = map(jnp.asarray, scene(np.random.default_rng(0), GRIDS[2], size_px=9))
    with pytest.raises(InputError, match="by must be iou or distance; got 'area'"):
        suppress(boxes, score, class_ids, valid, by="area", limit=0.5)
    with pytest.raises(InputError, match="holds 340; got 84"):
        suppress(boxes, score, class_ids, valid, by="iou", limit=0.5, grid=GRIDS[1])


def sequential_soft(boxes, score, class_ids, valid, *, sigma, threshold, class_aware):
    """Soft suppression of one image as its authors write it, in float64."""
    low, high = boxes[:, None, :2].astype(float), boxes[:, None, 2:].astype(float)
    inside = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
    shared, area = inside.clip(0).prod(-1), (high - low).clip(0).prod(-1)
    iou = shared / (area + area.T - shared)
    left, done = np.where(valid, score, 0.0).astype(float), np.zeros(len(boxes))
    while left.max() > threshold:
        best = int(left.argmax())
        done[best], left[best] = left[best], 0.0
        met = class_ids == class_ids[best] if class_aware else np.ones(len(boxes), bool)
        left[met] *= np.exp(-(iou[best][met] ** 2) / sigma)
    return done


@pytest.mark.parametrize("class_aware", [False, True])
@pytest.mark.parametrize(("sigma", "threshold"), [(0.5, 0.02), (0.1, 0.3)])
def test_soft_suppression_is_that_of_its_authors(class_aware, sigma, threshold):
    # Scores without ties: in which order ties are taken after weighting would hang on rounding.
    candidates = scene(np.random.default_rng(7), GRIDS[2], size_px=20, levels=10**7, images=3)
    rule = {"sigma": sigma, "threshold": threshold, "class_aware": class_aware}
    found = np.asarray(jitted_soft(*candidates, **rule))
    for k, image in enumerate(zip(*candidates, strict=True)):
        truth = sequential_soft(*image, **rule)
        assert (truth > 0).any()
        np.testing.assert_array_equal(found[k] > 0, truth > 0)
        # A score is weighted some ten times, each time with float32's 6e-8 and that of exp.
        np.testing.assert_allclose(found[k], truth, rtol=1e-5)


def test_soft_suppression_leaves_what_stands_alone():
    boxes = np.array([[[0, 0, 8, 8], [0, 0, 8, 8], [20, 0, 28, 8], [0, 0, 0, 0]]], np.float32)
    score = np.array([[0.5, 0.8, 0.3, 0.4]], np.float32)
    rest = (np.zeros((1, 4), int), np.ones((1, 4), bool))
    found = jitted_soft(boxes, score, *rest, sigma=0.5, threshold=0.02)
    np.testing.assert_allclose(found, [[0.5 * np.exp(-2.0), 0.8, 0.3, 0.4]], rtol=1e-6)
