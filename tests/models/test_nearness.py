"""When two detections are too near, and how far off none can be."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.models.nearness import Nearness, overlap

BOXES = jnp.array([[[0.0, 0, 10, 10], [0, 5, 10, 15], [20, 0, 30, 10], [0, 0, 0, 10]]])
VALID = jnp.ones((1, 4), bool)


def pairs(rule, boxes=BOXES, valid=VALID):
    fields = rule.fields(boxes, valid)
    return np.asarray(rule.near(fields[..., :, None], fields[..., None, :]))[0]


def test_areas_of_two_boxes():
    fields = Nearness(by="iou", limit=0.5).fields(BOXES, VALID)
    shared, union = overlap(fields[..., :1], fields[..., 1:])
    np.testing.assert_array_equal(shared, [[50, 0, 0]])
    np.testing.assert_array_equal(union, [[150, 200, 100]])


def test_too_near_is_above_the_limit_and_never_at_it():
    half = pairs(Nearness(by="iou", limit=0.5), BOXES.at[0, 1].set(jnp.array([0.0, 0, 10, 5])))
    assert not half[0, 1]  # IoU is one half
    assert pairs(Nearness(by="iou", limit=0.33))[0, 1]  # a third
    assert not pairs(Nearness(by="iou", limit=0.34))[0, 1]
    assert not pairs(Nearness(by="iou", limit=0.0))[3].any()  # no area, not even near itself


def test_distance_is_between_centres_and_below_the_limit():
    assert pairs(Nearness(by="distance", limit=5.1))[0, 1]
    assert not pairs(Nearness(by="distance", limit=5.0))[0, 1]


def test_what_is_not_valid_counts_as_zero():
    fields = Nearness(by="iou", limit=0.5).fields(BOXES.at[0, 1].set(jnp.nan), VALID.at[0, 1].set(False))
    assert not fields[:, 0, 1].any()


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.7])
def test_nothing_beyond_the_reach_of_the_larger_is_near(limit):
    rng = np.random.default_rng(0)
    centre, sides = rng.uniform(0, 60, (1, 400, 2)), np.exp(rng.uniform(-1, 4, (1, 400, 2)))
    boxes = jnp.asarray(np.concatenate([centre - sides / 2, centre + sides / 2], -1), jnp.float32)
    rule = Nearness(by="iou", limit=limit)
    near = pairs(rule, boxes, jnp.ones((1, 400), bool))
    reach = np.asarray(rule.reach_px(boxes))[0]
    apart = np.abs(centre[0, :, None] - centre[0, None]).max(-1)
    # 1e-4 px: float32 at coordinates up to some hundred.
    assert not near[apart > np.maximum(reach[:, None], reach) + 1e-4].any()
    assert near.sum() > 400  # more than each with itself


def test_the_reach_is_attained():
    """Two of one size: IoU is above the limit up to M (1 - t) / (1 + t), and no farther."""
    rule = Nearness(by="iou", limit=0.5)
    reach = float(rule.reach_px(BOXES)[0, 0])
    for factor, expected in ((0.99, True), (1.01, False)):
        moved = BOXES.at[0, 1].set(BOXES[0, 0] + jnp.array([0, 1.0, 0, 1.0]) * factor * reach)
        assert pairs(rule, moved)[0, 1] == expected


def test_an_unknown_rule():
    with pytest.raises(InputError, match="by must be iou or distance; got 'area'"):
        Nearness(by="area", limit=0.5)
