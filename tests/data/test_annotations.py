import dataclasses
import pickle

import numpy as np
import pytest
import shapely

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

OUTER = [[0, 0], [10, 0], [10, 10], [0, 10]]
HOLE = [[2, 2], [2, 6], [6, 6], [6, 2]]
ISLAND = [[3, 3], [4, 3], [4, 4], [3, 4]]  # inside the hole
APART = [[20, 0], [22, 0], [22, 3], [20, 3]]


@pytest.fixture
def mixed():
    """A part with a hole and an island in it, a point, a triangle."""
    polygons = Annotations.from_polygons(
        [[OUTER, HOLE, ISLAND, APART], [[[0, 0], [3, 0], [0, 3]]]], ["tumour", "stroma"], source="a"
    )
    point = Annotations.from_points([[7.5, -2.0]], "tumour", source="b")
    return Annotations.concatenate([polygons, point]).take(np.array([0, 2, 1]))


def test_fields_of_a_mixed_value(mixed):
    assert len(mixed) == 3
    assert mixed.class_names == ("tumour", "stroma")
    np.testing.assert_array_equal(mixed.class_ids, [0, 0, 1])
    np.testing.assert_array_equal(mixed.is_point, [False, True, False])
    np.testing.assert_array_equal(mixed.ring_offsets, [0, 4, 8, 12, 16, 17, 20])
    np.testing.assert_array_equal(mixed.object_offsets, [0, 4, 5, 6])
    assert mixed.source == "a, b"


def test_areas_and_centroids_agree_with_shapely(mixed):
    shape = shapely.Polygon(OUTER, [HOLE]).union(shapely.Polygon(ISLAND)).union(shapely.Polygon(APART))
    assert shape.area == 100 - 16 + 1 + 6
    np.testing.assert_allclose(mixed.areas_px, [shape.area, 0, 4.5], rtol=1e-14)  # rounding alone
    expected = [[shape.centroid.x, shape.centroid.y], [7.5, -2], [1, 1]]
    np.testing.assert_allclose(mixed.centroids_px, expected, rtol=1e-14)


def test_area_keeps_its_digits_far_from_the_origin():
    ring = np.array([[0, 0], [0.25, 0], [0.25, 0.5]])
    far = Annotations.from_polygons([[ring + 2.0**20]])
    assert far.areas_px[0] == 0.0625
    # Doubles at 2**20 are 2**-32 apart.
    np.testing.assert_allclose(far.centroids_px - 2.0**20, [[0.5 / 3, 0.5 / 3]], atol=2.0**-32)


def test_nesting_gives_depth_and_the_smallest_ring_round_each(mixed):
    depth, parent = mixed.nesting
    np.testing.assert_array_equal(depth, [0, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(parent, [-1, 0, 1, -1, -1, -1])


def test_rings_of_other_objects_do_not_nest():
    both = Annotations.from_polygons([[OUTER, APART], [HOLE, [[1, 1], [2, 1], [1, 2]]]])
    assert not both.nesting[0].any()


def test_vertex_order_does_not_matter():
    turned = Annotations.from_polygons([[OUTER[::-1], HOLE], [OUTER, HOLE[::-1]]])
    np.testing.assert_array_equal(turned.areas_px, [84, 84])


def test_bounds(mixed):
    expected = [[0, 0, 22, 10], [7.5, -2, 7.5, -2], [0, 0, 3, 3]]
    np.testing.assert_array_equal(mixed.bounds_px, expected)


def test_touching_compares_in_level_0_pixels(mixed):
    window = Window(x_px=12, y_px=4, width=4, height=4, scale=2.0)  # to x = 20, y = 12
    np.testing.assert_array_equal(mixed.touching(window), [0])
    assert not len(mixed.touching(dataclasses.replace(window, scale=1.0, y_px=11)))


def test_take_by_mask_and_by_index(mixed):
    np.testing.assert_array_equal(mixed.take(np.array([True, False, True])).areas_px, [91, 4.5])
    turned = mixed.take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(turned.areas_px, [4.5, 91, 4.5])
    np.testing.assert_array_equal(turned.class_ids, [1, 0, 1])
    assert turned.class_names == mixed.class_names
    assert len(mixed.take(np.zeros(0, np.int64))) == 0
    with pytest.raises(InputError, match="must have 3 elements"):
        mixed.take(np.array([True]))


def test_of_classes(mixed):
    np.testing.assert_array_equal(mixed.of_classes(["stroma", "nothing"]), [False, False, True])
    assert not len(Annotations.empty().of_classes(["stroma"]))


def test_discs_replace_points_by_polygons_of_the_discs_area(mixed):
    discs = mixed.discs(3.0)
    assert not discs.is_point.any()
    # A polygon of equal area by construction: only rounding is left.
    np.testing.assert_allclose(discs.areas_px, [91, np.pi * 9, 4.5], rtol=1e-12)
    np.testing.assert_allclose(discs.centroids_px[1], [7.5, -2.0], rtol=1e-12)
    np.testing.assert_array_equal(np.diff(discs.ring_offsets), [4, 4, 4, 4, 24, 3])
    assert mixed.take(np.array([0])).discs(3.0).areas_px[0] == 91


def test_transformed_scales_then_moves(mixed):
    moved = mixed.transformed(2.0, dx=1.0, dy=-5.0)
    np.testing.assert_array_equal(moved.xy_px[16], [16, -9])
    np.testing.assert_array_equal(moved.areas_px, 4 * mixed.areas_px)


def test_concatenate_merges_class_names():
    first = Annotations.from_points([[0, 0], [1, 1]], ["a", "b"])
    second = Annotations.from_points([[2, 2], [3, 3]], ["c", "a"])
    both = Annotations.concatenate([first, second])
    assert [both.class_names[i] for i in both.class_ids] == ["a", "b", "c", "a"]
    assert len(Annotations.concatenate([])) == 0


def test_concatenate_says_which_file_a_note_is_of():
    parts = [Annotations.empty(source=name, notes=("1 ring was closed.",)) for name in "ab"]
    assert Annotations.concatenate(parts).notes == ("a: 1 ring was closed.", "b: 1 ring was closed.")
    assert Annotations.concatenate(parts[:1]).notes == ("1 ring was closed.",)


def test_a_repeated_first_vertex_is_dropped():
    np.testing.assert_array_equal(Annotations.from_polygons([[[*OUTER, OUTER[0]]]]).xy_px, OUTER)


def test_empty():
    empty = Annotations.empty(("a",))
    assert empty.bounds_px.shape == (0, 4)
    assert empty.areas_px.shape == (0,)
    assert empty.centroids_px.shape == (0, 2)
    assert len(Annotations.from_polygons([])) == len(empty.discs(2.0)) == 0


def test_pickles(mixed):
    _ = mixed.bounds_px
    again = pickle.loads(pickle.dumps(mixed))
    np.testing.assert_array_equal(again.bounds_px, mixed.bounds_px)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ring_offsets", np.array([0, 3, 3, 4]), "ring_offsets must rise strictly from 0 to 4"),
        ("object_offsets", np.array([0, 1, 2]), "object_offsets must rise strictly from 0 to 1"),
        ("class_ids", np.array([1], np.int32), "indices into the 1 class_names"),
        ("class_ids", np.array([-1], np.int32), "indices into the 1 class_names"),
        ("class_names", ("a", "a"), "distinct"),
        ("xy_px", np.full((4, 2), np.nan), "finite"),
        ("kind", np.array([Kind.POINT], np.uint8), "one ring of one vertex"),
        ("kind", np.array([3], np.uint8), "`Kind` codes"),
        ("xy_px", np.zeros((2, 2)), "must rise strictly from 0 to 2"),
    ],
)
def test_inconsistent_arrays_are_refused(field, value, message):
    square = Annotations.from_polygons([[OUTER]], "a", source="x.geojson")
    with pytest.raises(InputError, match=message) as caught:
        dataclasses.replace(square, **{field: value})
    assert "x.geojson" in str(caught.value)


def test_a_ring_of_two_vertices_is_refused():
    with pytest.raises(InputError, match="need 3 vertices; 1 have fewer"):
        Annotations.from_polygons([[[[0, 0], [1, 1]]]])
    with pytest.raises(InputError, match="as many"):
        Annotations.from_polygons([[OUTER]], ["a", "b"])


def test_a_box_must_have_four_vertices():
    triangle = Annotations.from_polygons([[[[0, 0], [4, 0], [4, 4]]]], "a")
    with pytest.raises(InputError, match="one ring of four vertices"):
        dataclasses.replace(triangle, kind=np.array([Kind.BOX], np.uint8))


def test_boxes_keep_their_kind_and_extent():
    boxes = Annotations.from_boxes([[1, 2, 5, 4], [0, 0, 1, 1]], ["a", "b"])
    np.testing.assert_array_equal(boxes.bounds_px, [[1, 2, 5, 4], [0, 0, 1, 1]])
    np.testing.assert_array_equal(boxes.areas_px, [8, 1])
    mixed = Annotations.concatenate([boxes, Annotations.from_points([[3, 3]], "a")])
    np.testing.assert_array_equal(mixed.kind, [Kind.BOX, Kind.BOX, Kind.POINT])
    np.testing.assert_array_equal(mixed.take(np.array([2, 0])).kind, [Kind.POINT, Kind.BOX])
    np.testing.assert_array_equal(mixed.discs(2.0).kind, [Kind.BOX, Kind.BOX, Kind.POLYGON])


def test_a_pickled_copy_carries_nothing_computed():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (2000, 2))
    marks = Annotations.from_boxes(np.hstack([corner, corner + 4]), "cell")
    size = len(pickle.dumps(marks))
    window = Window(x_px=20, y_px=20, width=9, height=9)
    touching = marks.touching(window)
    assert len(marks.areas_px) == len(marks.nesting[0]) == 2000
    assert len(pickle.dumps(marks)) == size
    again = pickle.loads(pickle.dumps(marks))
    np.testing.assert_array_equal(again.touching(window), touching)
    np.testing.assert_array_equal(again.bounds_px, marks.bounds_px)
    assert again.nbytes == marks.nbytes < size
