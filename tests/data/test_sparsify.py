import itertools
import math

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec, draw_targets
from sparseshot_jax.data.sparsify import REGIMES, nested_subset, sparse_subset, spatial_holdout, without
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


def scattered(n=240, seed=0, classes=("a", "b", "c"), shares=(0.7, 0.2, 0.1)):
    """Points on 1000 x 600 pixels; the region comes first, so that indices into the whole differ."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, [1000, 600], (n, 2))
    points = Annotations.from_points(xy, [classes[k] for k in rng.choice(len(classes), n, p=shares)])
    region = Annotations.from_polygons([[[[0, 0], [500, 0], [500, 500]]]], "Exhaustive")
    return Annotations.concatenate([region, points])


def subset(marks, keep, regime, **fields):
    is_object = ~marks.of_classes(["Exhaustive"])
    return sparse_subset(marks, is_object, keep, regime=regime, **{**NAMES, **fields})


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n", [0, 1, 2, 97])
def test_every_regime_is_nested_and_exact_and_leaves_regions(regime, n):
    marks = scattered(n)
    previous = np.zeros(n + 1, bool)
    for percent in (1, 5, 10, 29, 30, 57, 70, 99, 100):
        stays = subset(marks, percent / 100, regime)
        assert stays[0]  # the region
        assert stays[1:].sum() == math.ceil(percent * n / 100)
        assert not (previous & ~stays).any()
        previous = stays
    assert previous.all()


def test_the_uniform_regime_is_the_protocol():
    stays = subset(scattered(120), 0.3, "uniform")
    np.testing.assert_array_equal(stays[1:], nested_subset(120, 0.3, **NAMES))


@pytest.mark.parametrize("regime", REGIMES)
def test_seed_image_and_data_set_decide_every_regime(regime):
    marks = scattered()
    one = subset(marks, 0.3, regime)
    np.testing.assert_array_equal(one, subset(marks, 0.3, regime))
    for other in ({"seed": 1}, {"dataset": "kumar"}, {"image": "01_2"}):
        assert (one != subset(marks, 0.3, regime, **other)).any()


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("uniform", [3, 6, 10, 11, 15, 17, 20, 21]),
        ("clustered", [2, 4, 7, 16, 18, 19, 20, 21]),
        ("per-field", [1, 3, 6, 9, 11, 14, 21, 23]),
        ("class-biased", [6, 7, 10, 15, 19, 20, 21, 22]),
    ],
)
def test_published_subsets_never_change(regime, expected):
    xy = [[37 * k % 101 * 10.0, 53 * k % 89 * 10.0] for k in range(24)]
    marks = Annotations.from_points(xy, ["a", "b", "a"] * 8)
    stays = sparse_subset(marks, np.ones(24, bool), 0.3, regime=regime, cluster_objects=4, **NAMES)
    assert np.flatnonzero(stays).tolist() == expected


def test_clusters_are_whole_but_for_the_last():
    marks = scattered(400)
    xy = marks.centroids_px[1:]
    stays = subset(marks, 0.3, "clustered", cluster_objects=20)[1:]
    middles = np.flatnonzero(nested_subset(400, 20 / 400, **NAMES))
    owner = np.argmin(((xy[:, None] - xy[middles]) ** 2).sum(-1), axis=1)
    share = np.array([stays[owner == k].mean() for k in range(20)])
    assert ((share > 0) & (share < 1)).sum() <= 1
    cut = np.flatnonzero((share > 0) & (share < 1))
    for k in cut:  # from its middle outwards
        away = np.linalg.norm(xy - xy[middles[k]], axis=1)
        assert away[(owner == k) & stays].max() <= away[(owner == k) & ~stays].min() + 0.1


def test_fields_are_wholly_marked_but_for_one_cut_by_a_vertical_line():
    marks = scattered(400)
    xy = marks.centroids_px[1:]
    stays = subset(marks, 0.3, "per-field", field_px=100.0)[1:]
    owner = np.floor(xy / 100) @ np.array([1, 100])
    cut = 0
    for field in np.unique(owner):
        here = owner == field
        if 0 < stays[here].sum() < here.sum():
            cut += 1
            assert xy[here & stays, 0].max() <= xy[here & ~stays, 0].min() + 0.1
    assert cut <= 1
    # A field of many objects is as likely to come early as one of few.
    share = np.mean([subset(marks, 0.3, "per-field", seed=s)[1:] for s in range(200)], axis=0)
    assert abs(share.mean() - 0.3) < 1e-9
    assert share.min() > 0.1


def test_each_rarer_class_has_twice_the_share_until_it_is_whole():
    marks = scattered(1000)
    for keep, ratio in ((0.1, 2.0), (0.1, 3.0), (0.6, 2.0)):
        stays = subset(marks, keep, "class-biased", class_ratio=ratio)
        share = [stays[marks.of_classes([name])].mean() for name in "abc"]
        for common, rare in itertools.pairwise(share):
            assert rare == pytest.approx(min(1.0, ratio * common), abs=0.015)
    one = scattered(100, classes=("a",), shares=(1.0,))
    np.testing.assert_array_equal(subset(one, 0.3, "class-biased"), subset(one, 0.3, "uniform"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"regime": "random"}, "uniform, clustered, per-field, class-biased"),
        ({"regime": "per-field", "field_px": 0.0}, "side of a field"),
        ({"regime": "clustered", "cluster_objects": 0}, "cluster"),
        ({"regime": "class-biased", "class_ratio": 0.5}, "ratio"),
    ],
)
def test_what_a_regime_cannot_be(fields, match):
    with pytest.raises(InputError, match=match):
        subset(scattered(5), 0.3, **fields)
