"""Targets of the cells, against loops written from METHOD."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.models.assign import assign, iou
from sparseshot_jax.types import Ground, Objects

STRIDE, ROWS, COLUMNS = 8, 6, 5
ANCHORS = np.array([[10.0, 10.0]], np.float32)


def objects_of(*tiles, places=8):
    """Objects from lists of (y, x, height, width, label)."""
    boxes = np.zeros((len(tiles), places, 4), np.float32)
    label, present = np.zeros((len(tiles), places), np.uint8), np.zeros((len(tiles), places), bool)
    for b, tile in enumerate(tiles):
        for k, (y, x, h, w, c) in enumerate(tile):
            boxes[b, k] = y - h / 2, x - w / 2, y + h / 2, x + w / 2
            label[b, k], present[b, k] = c, True
    return Objects(boxes_yxyx_px=boxes, label=label, present=present, left_out=np.zeros(len(tiles), np.int32))


def blank(objects, anchors=1):
    """Ground that nobody looked at, and boxes of no size."""
    b = objects.present.shape[0]
    ground = np.full((b, ROWS * STRIDE, COLUMNS * STRIDE), Ground.UNANNOTATED, np.uint8)
    return ground, np.zeros((b, ROWS, COLUMNS, anchors, 4), np.float32)


def run(objects, ground=None, predicted=None, anchors=ANCHORS, heat=False, ignore_iou=0.6):
    empty = blank(objects, len(anchors))
    return assign(
        jax.tree.map(jnp.asarray, objects),
        jnp.asarray(empty[0] if ground is None else ground),
        jnp.asarray(empty[1] if predicted is None else predicted),
        jnp.asarray(anchors),
        stride=STRIDE,
        heat=heat,
        ignore_iou=ignore_iou,
    )


def test_an_object_goes_to_the_cell_of_its_centre():
    objects = objects_of([(9.0, 30.0, 12, 14, 2), (47.9, 0.0, 5, 5, 1)], [])
    found = run(objects)
    annotated = np.asarray(found.targets.annotated)
    assert np.argwhere(annotated).tolist() == [[0, 1, 3, 0], [0, 5, 0, 0]]
    assert found.targets.label[0, 1, 3, 0] == 2
    np.testing.assert_array_equal(found.boxes_yxyx_px[0, 1, 3, 0], objects.boxes_yxyx_px[0, 0])
    assert found.matched.tolist() == [2, 0]
    assert found.collisions.tolist() == [0, 0]
    assert (np.asarray(found.targets.ground)[~annotated] == Ground.UNANNOTATED).all()
    assert not np.asarray(found.boxes_yxyx_px)[~annotated].any()


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_centres_in_a_cell_the_nearest_wins_and_the_other_is_counted(swapped):
    near, far = (20.5, 20.0, 10, 10, 1), (17.0, 23.0, 10, 10, 2)
    found = run(objects_of([far, near] if swapped else [near, far]))
    assert (found.matched.tolist(), found.collisions.tolist()) == ([1], [1])
    assert found.targets.label[0, 2, 2, 0] == 1


def test_of_two_as_near_the_first_wins():
    found = run(objects_of([(19.0, 20.0, 10, 10, 1), (21.0, 20.0, 10, 10, 2)]))
    assert (int(found.targets.label[0, 2, 2, 0]), found.collisions.tolist()) == (1, [1])


def test_a_centre_outside_the_tile_is_matched_to_nothing_and_no_collision():
    found = run(objects_of([(-0.1, 20.0, 10, 10, 1), (20.0, 40.0, 10, 10, 1), (48.0, 1.0, 9, 9, 1)]))
    assert not np.asarray(found.targets.annotated).any()
    assert (found.matched.tolist(), found.collisions.tolist()) == ([0], [0])


def test_the_anchor_of_the_best_shape_is_taken():
    anchors = np.array([[6.0, 6.0], [24.0, 12.0]], np.float32)
    found = run(objects_of([(20.0, 20.0, 7, 6, 1), (20.5, 20.5, 20, 12, 1)]), anchors=anchors)
    assert found.matched.tolist() == [2]  # one cell, two anchors
    assert np.asarray(found.targets.annotated)[0, 2, 2].tolist() == [True, True]
    np.testing.assert_allclose(found.boxes_yxyx_px[0, 2, 2, 1], [10.5, 14.5, 30.5, 26.5])


def test_an_unmatched_cell_whose_box_fits_an_annotated_one_is_ignored():
    objects = objects_of([(20.0, 20.0, 10, 10, 1)])
    _, predicted = blank(objects)
    predicted[0, 2, 1, 0] = [15.0, 14.0, 25.0, 24.0]  # IoU 9 / 11
    predicted[0, 3, 3, 0] = [15.0, 18.0, 25.0, 28.0]  # IoU 7 / 13
    predicted[0, 2, 2, 0] = [15.0, 15.0, 25.0, 25.0]  # matched: never ignored
    ground = np.asarray(run(objects, predicted=predicted).targets.ground)[0, :, :, 0]
    assert ground[2, 1] == Ground.IGNORED
    assert ground[2, 2] == Ground.ANNOTATED
    assert (np.delete(ground.ravel(), [2 * COLUMNS + 1, 2 * COLUMNS + 2]) == Ground.UNANNOTATED).all()
    ground = np.asarray(run(objects, predicted=predicted, ignore_iou=0.5).targets.ground)[0, :, :, 0]
    assert (ground == Ground.IGNORED).sum() == 2
    absent = dataclasses.replace(objects, present=np.zeros_like(objects.present))
    assert not (np.asarray(run(absent, predicted=predicted).targets.ground) == Ground.IGNORED).any()


def test_other_ground_is_what_most_of_a_cell_is():
    objects = objects_of([(20.0, 20.0, 10, 10, 1), (4.0, 4.0, 10, 10, 1), (44.0, 38.0, 10, 10, 1)])
    ground, _ = blank(objects)
    ground[:, :30] = Ground.BACKGROUND  # three rows of cells, and 6 of 8 pixels of the fourth
    ground[:, 40:45] = Ground.BACKGROUND  # 5 of 8
    ground[:, :, 35:] = Ground.IGNORED  # 5 of 8
    found = run(objects, ground)
    expected = np.full((ROWS, COLUMNS), Ground.UNANNOTATED)
    expected[:4] = Ground.BACKGROUND
    expected[:, 4] = Ground.IGNORED
    expected[2, 2] = expected[0, 0] = Ground.ANNOTATED
    np.testing.assert_array_equal(np.asarray(found.targets.ground)[0, :, :, 0], expected)
    # The third lies on ignored ground: neither matched nor a collision.
    assert (found.matched.tolist(), found.collisions.tolist()) == ([2], [0])


def test_an_object_left_unmarked_in_an_exhaustive_region_is_no_background():
    objects = objects_of([])
    ground, _ = blank(objects)
    ground[:] = Ground.BACKGROUND
    yy, xx = np.mgrid[: ground.shape[1], : ground.shape[2]]
    ground[0, (yy - 19.5) ** 2 + (xx - 20.5) ** 2 < 3.0**2] = Ground.UNANNOTATED  # 4 in 10 pixels of its cell
    found = np.asarray(run(objects, ground).targets.ground)[0, :, :, 0]
    assert np.argwhere(found != Ground.BACKGROUND).tolist() == [[2, 2]]
    assert found[2, 2] == Ground.UNANNOTATED


def test_heat_leaves_known_background_as_it_is():
    objects = objects_of([(20.0, 20.0, 48, 24, 1)])
    ground, _ = blank(objects)
    ground[:, :, :16] = Ground.BACKGROUND
    weight = np.asarray(run(objects, ground, heat=True).background_weight)[0, :, :, 0]
    assert (weight[:, :2] == 1.0).all()
    assert (weight[1:4, 3] < 1.0).all()


def test_heat_spares_the_neighbours_of_a_centre_and_replaces_the_rule_by_iou():
    objects = objects_of([(20.0, 20.0, 48, 24, 1)], [])
    _, predicted = blank(objects)
    predicted[0, 2, 1, 0] = objects.boxes_yxyx_px[0, 0]
    found = run(objects, predicted=predicted, heat=True)
    weight = np.asarray(found.background_weight)[..., 0]
    assert weight[0, 2, 2] == 1.0  # F is not weighed
    for row, column in np.ndindex(ROWS, COLUMNS):
        if (row, column) != (2, 2):
            d = (8 * (row - 2) / 8.0) ** 2 + (8 * (column - 2) / 4.0) ** 2
            assert weight[0, row, column] == pytest.approx((1 - np.exp(-d / 2)) ** 4, rel=1e-4)
    assert (weight[1] == 1.0).all()
    assert found.targets.ground[0, 2, 1, 0] == Ground.UNANNOTATED


def test_random_tiles_against_a_loop():
    rng = np.random.default_rng(0)
    anchors = np.array([[6.0, 8.0], [12.0, 10.0]], np.float32)
    tiles = [
        [(*rng.uniform(-4, [52, 44]), *rng.uniform(4, 16, 2), int(rng.integers(0, 4))) for _ in range(30)]
        for _ in range(3)
    ]
    objects = objects_of(*tiles, places=40)
    found = jax.jit(lambda o: run(o, anchors=anchors))(objects)
    for b, tile in enumerate(tiles):
        taken = {}
        for k, (y, x, h, w, _) in enumerate(tile):
            if 0 <= y < ROWS * STRIDE and 0 <= x < COLUMNS * STRIDE:
                shared = np.minimum([h, w], anchors).prod(axis=1)
                best = int((shared / (h * w + anchors.prod(axis=1) - shared)).argmax())
                cell = (int(y // STRIDE), int(x // STRIDE), best)
                distance = np.hypot(y / STRIDE - cell[0] - 0.5, x / STRIDE - cell[1] - 0.5)
                taken.setdefault(cell, []).append((distance, k))
        assert found.matched[b] == len(taken)
        assert found.collisions[b] == sum(map(len, taken.values())) - len(taken) > 0
        assert {tuple(c) for c in np.argwhere(np.asarray(found.targets.annotated[b]))} == set(taken)
        for cell, those in taken.items():
            np.testing.assert_array_equal(
                found.boxes_yxyx_px[b][cell], objects.boxes_yxyx_px[b, min(those)[1]]
            )
            assert found.targets.label[b][cell] == tile[min(those)[1]][4]


def test_no_gradient_and_one_trace():
    objects = objects_of([(20.0, 20.0, 10, 10, 1)])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def weight_of(predicted, ignore_iou):
        found = run(objects, predicted=predicted, ignore_iou=ignore_iou)
        return jnp.sum(found.background_weight) + jnp.sum(found.boxes_yxyx_px)

    _, predicted = blank(objects)
    for limit in (0.5, 0.7):
        assert not np.asarray(jax.jit(jax.grad(lambda p, i: weight_of(p, i)))(predicted, limit)).any()


def test_iou_of_empty_boxes_is_zero():
    assert float(iou(jnp.zeros(4), jnp.zeros(4))) == 0.0
    assert float(iou(jnp.array([0.0, 0, 4, 4]), jnp.array([2.0, 2, 6, 6]))) == pytest.approx(4 / 28)
