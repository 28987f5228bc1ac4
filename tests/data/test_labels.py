import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.labels import (
    DROPPED,
    LabelSpec,
    Role,
    TargetMaps,
    check_classes,
    draw_targets,
    label_ids,
    point_radii_um,
    role_of,
    wanted,
)
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

U, F, B, X = Ground.UNANNOTATED, Ground.ANNOTATED, Ground.BACKGROUND, Ground.IGNORED


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]


def row(width, scale=1.0, x_px=0.0):
    return Window(x_px=x_px, y_px=0.0, width=width, height=1, scale=scale)


def test_four_kinds_of_ground_in_drawing_order():
    # Listed against the drawing order on purpose: the file's order must not matter between roles.
    marks = Annotations.from_polygons(
        [box(7, 0, 9, 1), box(2, 0, 4, 1), box(5, 0, 8, 1), box(1, 0, 6, 1)],
        ["Ignore*", "tumour", "lymphocyte", "Exhaustive"],
    )
    spec = LabelSpec(classes=("stroma", "tumour"), known_background=("lymphocyte",))
    ground, label = draw_targets(marks, row(10), spec, mpp=0.5)
    assert ground.tolist() == [[U, B, F, F, B, B, B, X, X, U]]
    assert label.tolist() == [[0, 0, 2, 2, 0, 0, 0, 0, 0, 0]]


def test_ignored_beats_annotated_and_annotated_beats_known_background():
    marks = Annotations.from_polygons(
        [box(0, 0, 4, 1), box(3, 0, 6, 1), box(1, 0, 4, 1)], ["Ignore*", "look-alike", "cell"]
    )
    spec = LabelSpec(classes=("cell",), known_background=("look*",))
    ground, label = draw_targets(marks, row(7), spec, mpp=0.5)
    assert ground.tolist() == [[X, X, X, X, B, B, U]]
    assert not label.any()
    without_region = marks.take(np.array([1, 2]))
    ground, label = draw_targets(without_region, row(7), spec, mpp=0.5)
    assert ground.tolist() == [[U, F, F, F, B, B, U]]
    assert label.tolist() == [[0, 1, 1, 1, 0, 0, 0]]


def test_no_classes_means_every_other_class_is_an_object():
    marks = Annotations.from_polygons(
        [box(0, 0, 1, 1), box(1, 0, 2, 1), box(2, 0, 3, 1)], ["", "any", "Ignore*"]
    )
    ground, label = draw_targets(marks, row(4), LabelSpec(), mpp=0.5)
    assert ground.tolist() == [[F, F, X, U]]
    assert label.tolist() == [[1, 1, 0, 0]]


def test_unused_classes_draw_nothing():
    marks = Annotations.from_polygons([box(0, 0, 4, 1), box(1, 0, 2, 1)], ["", "cell"])
    spec = LabelSpec(classes=("cell",), unused=("",))
    ground, _ = draw_targets(marks, row(4), spec, mpp=0.5)
    assert ground.tolist() == [[U, F, U, U]]


def test_a_point_is_a_disc_of_the_asked_radius_at_any_resolution():
    points = Annotations.from_points([[50.0, 40.0]], "cell")
    spec = LabelSpec(classes=("cell",), point_radius_um=3.0)
    for scale in (1.0, 2.0):
        window = Window(x_px=0, y_px=0, width=int(100 / scale), height=int(80 / scale), scale=scale)
        ground, _ = draw_targets(points, window, spec, mpp=0.25)
        y, x = np.nonzero(ground == F)
        area = len(y) * scale**2
        assert area == pytest.approx(np.pi * 12**2, rel=0.03)  # pixels on a circle's edge
        centre = (x.mean() + 0.5) * scale, (y.mean() + 0.5) * scale
        assert centre == pytest.approx((50, 40), abs=0.1)


def test_a_window_shows_its_part_of_the_whole():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (40, 2))
    marks = Annotations.from_polygons([box(x, y, x + 7, y + 5) for x, y in corners], ["a", "b"] * 20)
    maps = TargetMaps(marks, LabelSpec(classes=("a", "b")), mpp=0.5)
    ground, label = maps.draw(Window(x_px=0, y_px=0, width=64, height=64))
    part_ground, part_label = maps.draw(Window(x_px=13, y_px=21, width=20, height=30))
    np.testing.assert_array_equal(part_ground, ground[21:51, 13:33])
    np.testing.assert_array_equal(part_label, label[21:51, 13:33])
    assert set(np.unique(label)) == {0, 1, 2}


def test_an_unknown_class_names_file_class_count_and_remedy():
    marks = Annotations.from_polygons([box(0, 0, 1, 1)] * 3, ["Tumor", "Tumor", ""], source="slide.geojson")
    spec = LabelSpec(classes=("tumour",))
    with pytest.raises(InputError) as caught:
        check_classes(marks, spec)
    message = str(caught.value)
    for part in (
        "slide.geojson",
        "Tumor (2 objects)",
        "(unclassified) (1 objects)",
        "tumour for Tumor",
        "labels.known_background",
        "labels.ignored_regions",
    ):
        assert part in message
    check_classes(marks, LabelSpec(classes=("Tumor",), unused=("",)))
    check_classes(marks, LabelSpec())


def test_a_class_without_objects_is_no_error():
    marks = Annotations.from_polygons([box(0, 0, 1, 1)] * 2, ["cell", "other"])
    check_classes(marks.take(np.array([0])), LabelSpec(classes=("cell",)))


def test_a_wanted_class_wins_over_a_pattern():
    spec = LabelSpec(classes=("Ignored cell",))
    assert role_of("Ignored cell", spec) == Role.OBJECT
    assert role_of("Ignore*", spec) == Role.IGNORED


@pytest.mark.parametrize("bad", [{"point_radius_um": 0.0}, {"classes": ("a", "a")}])
def test_a_spec_that_cannot_be(bad):
    with pytest.raises(InputError, match=r"labels\."):
        LabelSpec(**bad)


def test_objects_of_unknown_class_are_wanted_and_have_no_class():
    spec = LabelSpec(classes=("a", "b"), unknown_class=("?", "det*", ""), known_background=("d*",))
    marks = Annotations.from_points(np.arange(12).reshape(6, 2), ["b", "?", "detection", "", "dirt", "a"])
    assert wanted(marks, spec).tolist() == [True, True, True, True, False, True]
    assert label_ids(marks, spec).tolist() == [2, 0, 0, 0, 0, 1]
    check_classes(marks, spec)


def test_an_unknown_object_is_annotated_ground_without_a_class():
    marks = Annotations.from_polygons([box(1, 0, 2, 1), box(2, 0, 3, 1)], ["?", "a"])
    ground, label = draw_targets(marks, row(4), LabelSpec(classes=("a",), unknown_class=("?",)), mpp=0.5)
    assert ground.tolist() == [[U, F, F, U]]
    assert label.tolist() == [[0, 0, 1, 0]]


def test_points_have_the_radius_of_their_class():
    spec = LabelSpec(
        classes=("a", "b"), unknown_class=("?",), point_radius_um=2.0, class_radius_um=(1.0, 4.0)
    )
    marks = Annotations.from_points([[50, 50], [150, 50], [250, 50]], ["a", "?", "b"])
    assert point_radii_um(marks, spec).tolist() == [1.0, 2.0, 4.0]
    objects = TargetMaps(marks, spec, mpp=0.25).objects()
    assert np.allclose(objects.areas_px, np.pi * np.array([4.0, 8.0, 16.0]) ** 2)
    one = LabelSpec(class_radius_um=(5.0,))
    assert point_radii_um(marks, one).tolist() == [5.0] * 3


def test_what_was_dropped_is_as_large_as_it_can_have_been():
    spec = LabelSpec(classes=("a", "b"), class_radius_um=(1.0, 4.0))
    assert point_radii_um(Annotations.from_points([[5, 5]], DROPPED), spec).tolist() == [4.0]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"unknown_class": ("?",)}, "classes, which must not be empty"),
        ({"classes": ("a", "b"), "class_radius_um": (1.0,)}, "a radius for each of a, b"),
        ({"classes": ("a",), "class_radius_um": (0.0,)}, "above 0 micrometres each"),
    ],
)
def test_impossible_specs(fields, match):
    with pytest.raises(InputError, match=match):
        LabelSpec(**fields)


def test_ground_without_the_wanted_objects():
    marks = Annotations.from_polygons(
        [box(0, 0, 5, 1), box(1, 0, 3, 1), box(6, 0, 8, 1), box(4, 0, 5, 1)],
        ["Exhaustive", "cell", "cell", "Ignore*"],
    )
    maps = TargetMaps(marks, LabelSpec(classes=("cell",)), mpp=0.5)
    ground, label = maps.draw(row(9), objects=False)
    assert ground.tolist() == [[B, B, B, B, X, U, U, U, U]]
    assert not label.any()
    assert maps.draw(row(9))[0].tolist() == [[B, F, F, B, X, U, F, F, U]]


def test_distance_is_of_wanted_objects_alone():
    marks = Annotations.from_polygons([box(0, 0, 9, 1), box(2, 0, 5, 1)], ["Exhaustive", "cell"])
    drawn = TargetMaps(marks, LabelSpec(classes=("cell",)), mpp=0.5).distance(row(9))
    assert drawn.tolist() == [[0, 0, 255, 255, 255, 0, 0, 0, 0]]  # one pixel high: all at its border
    assert not TargetMaps(marks.take(np.array([0])), LabelSpec(), mpp=0.5).distance(row(9)).any()
