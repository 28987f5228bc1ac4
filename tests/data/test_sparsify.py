import math

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec, draw_targets
from sparseshot_jax.data.sparsify import nested_subset, spatial_holdout, without
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

NAMES = {"seed": 0, "dataset": "tnbc", "image": "01_1"}


@pytest.mark.parametrize("n", [0, 1, 7, 10, 313])
def test_every_smaller_share_lies_inside_the_larger_one(n):
    previous = np.zeros(n, bool)
    for percent in range(5, 101, 5):
        chosen = nested_subset(n, percent / 100, **NAMES)
        assert chosen.sum() == math.ceil(percent * n / 100)  # in whole numbers: no rounding error
        assert not (previous & ~chosen).any()
        previous = chosen
    assert previous.all()


def test_the_permutation_depends_on_data_set_image_and_seed_alone():
    one = nested_subset(200, 0.5, **NAMES)
    np.testing.assert_array_equal(one, nested_subset(200, 0.5, **NAMES))
    for other in ({"seed": 1}, {"dataset": "kumar"}, {"image": "01_2"}):
        assert (one != nested_subset(200, 0.5, **{**NAMES, **other})).any()


def test_the_permutation_never_changes():
    # Written down once: published subsets must stay what they are in every later version.
    chosen = np.flatnonzero(nested_subset(20, 0.3, **NAMES))
    assert chosen.tolist() == FIXED


FIXED = [3, 6, 10, 11, 15, 17]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01])
def test_a_share_outside_0_1_is_refused(keep):
    with pytest.raises(InputError, match="keep"):
        nested_subset(5, keep, **NAMES)


def test_each_object_is_as_likely_as_any_other():
    counts = sum(nested_subset(50, 0.3, **{**NAMES, "seed": s}).astype(int) for s in range(400))
    # binomial(400, 0.3): standard deviation 9.2; five of them for 50 objects
    assert np.abs(counts - 120).max() < 46


def test_hold_out_takes_whole_blocks_and_about_its_share():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10_000, (2000, 2))
    held = spatial_holdout(xy, 0.2, seed=3, block_px=1000.0)
    assert held.mean() == pytest.approx(0.2, abs=0.01)  # a block holds 1 % of the objects
    blocks = np.floor(xy / 1000) @ np.array([1000, 1])
    for block in np.unique(blocks):
        assert len(set(held[blocks == block])) == 1
    assert (held != spatial_holdout(xy, 0.2, seed=4, block_px=1000.0)).any()


def test_hold_out_of_marks_in_one_corner_makes_its_blocks_smaller():
    xy = np.random.default_rng(1).uniform(0, 500, (100, 2))
    held = spatial_holdout(xy, 0.2, seed=0, block_px=1000.0)
    assert 0.1 <= held.mean() <= 0.3


@pytest.mark.parametrize("n", [0, 1])
def test_hold_out_of_almost_nothing_is_nothing(n):
    assert not spatial_holdout(np.zeros((n, 2)), 0.2, seed=0, block_px=10.0).any()


def test_hold_out_leaves_something_and_takes_something():
    xy = np.array([[0.0, 0.0], [5000.0, 0.0], [0.0, 5000.0]])
    assert spatial_holdout(xy, 0.2, seed=0, block_px=100.0).sum() == 1
    with pytest.raises(InputError, match="hold_out"):
        spatial_holdout(xy, 1.0, seed=0, block_px=100.0)


def box(x0, x1):
    return [[[x0, 0], [x1, 0], [x1, 1], [x0, 1]]]


def test_dropped_objects_are_unannotated_even_where_the_rest_is_known():
    marks = Annotations.from_polygons(
        [box(0, 6), box(1, 2), box(3, 4), box(7, 8)], ["Exhaustive", "cell", "cell", "cell"]
    )
    spec = LabelSpec(classes=("cell",))
    left = without(marks, np.array([False, True, False, True]), spec)
    ground, label = draw_targets(left, Window(x_px=0, y_px=0, width=9, height=1), spec, mpp=0.5)
    U, F, B = Ground.UNANNOTATED, Ground.ANNOTATED, Ground.BACKGROUND
    assert ground.tolist() == [[B, U, B, F, B, B, U, U, U]]
    assert label.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert left.of_classes(["cell"]).sum() == 1
