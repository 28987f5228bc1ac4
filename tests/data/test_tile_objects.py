import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import LabelSpec
from sparseshot_jax.data.tile_objects import OBJECT_KEYS, TileObjects, empty_objects
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

SPEC = LabelSpec(classes=("a", "b"), unknown_class=("?",), point_radius_um=2.0, class_radius_um=(1.0, 3.0))
TILE = Window(x_px=100, y_px=200, width=32, height=24)


def boxes_of(tile):
    return tile["boxes_yxyx_px"][tile["object_present"]].tolist()


def test_polygons_points_and_boxes_become_boxes_of_the_tile():
    marks = Annotations.concatenate(
        [
            Annotations.from_polygons([[[[104, 202], [110, 204], [106, 210]]]], "a"),
            Annotations.from_points([[120, 210], [121, 211], [122, 212]], ["a", "b", "?"]),
            Annotations.from_boxes([[101, 203, 105, 209]], "b"),
        ]
    )
    tile = TileObjects(marks, SPEC, mpp=0.5).objects_in(TILE, 6)
    assert tuple(tile) == OBJECT_KEYS
    assert boxes_of(tile) == [
        [2, 4, 10, 10],
        [8, 18, 12, 22],  # 1 um is 2 px
        [5, 15, 17, 27],  # 3 um
        [8, 18, 16, 26],  # of unknown class: 2 um
        [3, 1, 9, 5],
    ]
    assert tile["object_label"].tolist() == [1, 1, 2, 0, 2, 0]
    assert tile["object_present"].tolist() == [True] * 5 + [False]
    assert tile["boxes_yxyx_px"][5].tolist() == [0, 0, 0, 0]
    assert tile["left_out"] == 0
    for key, like in empty_objects(6).items():
        assert tile[key].dtype == like.dtype
        assert tile[key].shape == like.shape


def test_regions_and_look_alikes_are_no_objects():
    spec = LabelSpec(classes=("a",), known_background=("b",))
    marks = Annotations.from_boxes(np.tile([101, 201, 105, 205], (4, 1)), ["a", "b", "Exhaustive", "Ignore*"])
    assert len(TileObjects(marks, spec, mpp=0.5)) == 1


def test_boxes_are_not_clipped_and_scale_with_the_window():
    marks = Annotations.from_boxes([[90, 190, 130, 230]], "a")
    objects = TileObjects(marks, SPEC, mpp=0.5)
    assert boxes_of(objects.objects_in(TILE, 1)) == [[-10, -10, 30, 30]]
    half = Window(x_px=100, y_px=200, width=16, height=12, scale=2.0)
    assert boxes_of(objects.objects_in(half, 1)) == [[-5, -5, 15, 15]]


def test_objects_with_their_centre_inside_come_first_and_overflow_is_counted():
    edge = [[96, 202, 102, 204], [128, 202, 140, 204]]  # centres at x 99 and 134
    inner = [[k + 100, 210, k + 102, 212] for k in range(5)]
    objects = TileObjects(Annotations.from_boxes([edge[0], *inner, edge[1]], "a"), SPEC, mpp=0.5)
    every = boxes_of(objects.objects_in(TILE, 8))
    assert every == [[10, k, 12, k + 2] for k in range(5)] + [[2, -4, 4, 2], [2, 28, 4, 40]]
    six = objects.objects_in(TILE, 6)
    assert boxes_of(six) == every[:6]
    assert six["left_out"] == 0
    three = objects.objects_in(TILE, 3)
    assert boxes_of(three) == every[:3]
    assert three["left_out"] == 2


def test_an_edge_that_is_shared_is_not_inside():
    objects = TileObjects(
        Annotations.from_boxes([[90, 200, 100, 210], [132, 200, 140, 210]], "a"), SPEC, mpp=1.0
    )
    assert not objects.objects_in(TILE, 2)["object_present"].any()


def test_a_tile_of_no_objects():
    tile = TileObjects(Annotations.empty(), SPEC, mpp=0.5).objects_in(TILE, 3)
    assert not tile["object_present"].any()
    assert not tile["boxes_yxyx_px"].any()


def test_a_place_at_least_is_needed():
    with pytest.raises(InputError, match="at least 1 place"):
        TileObjects(Annotations.empty(), SPEC, mpp=0.5).objects_in(TILE, 0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1 << 32), count=st.integers(0, 1500), places=st.integers(1, 80))
def test_the_index_finds_what_comparing_all_finds(seed, count, places):
    random = np.random.default_rng(seed)
    corner, size = random.uniform(-20, 420, (count, 2)), random.uniform(0.5, 40, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    x, y = random.integers(0, 300, 2).tolist()
    window = Window(x_px=float(x), y_px=float(y), width=48, height=64, scale=1.5)
    tile = TileObjects(Annotations.from_boxes(boxes, "a"), SPEC, mpp=0.5).objects_in(window, places)
    local = (boxes - np.array([x, y, x, y])) / 1.5
    centre = (local[:, :2] + local[:, 2:]) / 2
    inside = ((centre >= 0) & (centre < (48, 64))).all(axis=1)
    meets = ((local[:, 2:] > 0) & (local[:, :2] < (48, 64))).all(axis=1) & ~inside
    expected = np.concatenate([np.flatnonzero(inside), np.flatnonzero(meets)])[:places]
    assert tile["object_present"].sum() == len(expected)
    assert (
        tile["boxes_yxyx_px"][: len(expected)] == local[expected][:, [1, 0, 3, 2]].astype(np.float32)
    ).all()
    assert tile["left_out"] == max(0, inside.sum() - places)
