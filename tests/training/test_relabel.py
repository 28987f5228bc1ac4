"""Which finds become pseudo labels, pixel by pixel, and how they are counted against dense truth."""

import dataclasses

import numpy as np
import pytest

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, whole_window
from sparseshot_jax.data.labels import LabelSpec, TargetMaps
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.slides.slide import ArraySlide
from sparseshot_jax.data.sparsify import without
from sparseshot_jax.training.relabel import Agreement, agreement, free_detections, free_parts
from sparseshot_jax.types import Ground

SIDE, MPP = 100, 0.5
SPEC = LabelSpec(classes=("cell",), known_background=("not",))


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]


def case_of(given, truth=None, spec=SPEC):
    slide = ArraySlide(np.full((SIDE, SIDE, 3), 255, np.uint8), MPP)
    return Case(name="a", slide=slide, mpp=MPP, given=given, truth=truth, held_out=None, labels=spec)


MARKS = Annotations.from_polygons(
    [box(10, 10, 20, 20), box(60, 10, 70, 20), box(10, 60, 30, 90), box(60, 60, 95, 95)],
    ["cell", "not", "Ignore*", "Exhaustive"],
)


def random_boxes(rng, n, side=(3, 14)):
    low = rng.uniform(0, SIDE - 15, (n, 2))
    return np.concatenate([low, low + rng.uniform(*side, (n, 2))], axis=1)


def pixels(objects, window):
    return rasterize(objects, window) > 0


@pytest.mark.parametrize("mpp", [0.5, 0.7])
def test_outlines_are_cut_to_unannotated_ground(mpp):
    """Pixel by pixel as training is told of it; an object that was dropped in a region is part of it."""
    hidden = Annotations.from_polygons([box(66, 66, 76, 76), box(40, 40, 46, 52)], "cell")
    gone = np.array([False] * 4 + [True] * 2)
    case = case_of(without(Annotations.concatenate([MARKS, hidden]), gone, SPEC))
    rng = np.random.default_rng(0)
    found = Annotations.from_polygons([box(*b) for b in random_boxes(rng, 300)], "cell")
    parts, which = free_parts(found, case, min_area_um2=0.0)
    assert parts.class_names == ("cell",)
    whole = whole_window(case, mpp)
    ground, _ = TargetMaps(case.given, SPEC, mpp=MPP).draw(whole)
    kept = 0
    for k in range(len(found)):
        one = found.take(np.array([k]))
        ours = pixels(parts.take(which == k), whole)
        free = pixels(one, whole) & (ground == Ground.UNANNOTATED)
        if ours.any():
            kept += 1
            np.testing.assert_array_equal(ours, free)
        else:
            assert free.sum() <= 0.7 * pixels(one, whole).sum(), k  # half of its area, at few pixels
    assert 150 < kept < 300
    assert len(np.setdiff1d(np.arange(len(found)), which)) > 20


def test_the_find_of_a_mark_is_dropped_and_its_neighbour_is_cut_off():
    found = Annotations.from_polygons(
        [box(9, 9, 21, 21), box(12, 12, 40, 20), box(9, 12, 24, 20), box(21, 10, 22, 20)], "cell"
    )
    parts, which = free_parts(found, case_of(MARKS), min_area_um2=0.0)
    assert which.tolist() == [3, 1]
    assert parts.bounds_px[1] == pytest.approx([20, 12, 40, 20], abs=0.01)
    parts, which = free_parts(found, case_of(MARKS), min_area_um2=41.0)  # 160 pixels are 40
    assert which.tolist() == [3]


def test_what_a_find_falls_into_are_labels_of_their_own():
    across = Annotations.from_polygons([box(0, 14, 40, 16)], "cell")
    parts, which = free_parts(across, case_of(MARKS), min_area_um2=0.0)
    assert which.tolist() == [0, 0]
    assert sorted(parts.areas_px.tolist()) == pytest.approx([20, 40], abs=0.02)


def test_a_point_is_as_large_as_its_disc():
    case = case_of(Annotations.from_points([[50.0, 50.0]], "cell"))  # 3 um: 6 pixels
    found = Annotations.from_polygons([box(50, 48, 60, 52), box(50, 48, 68, 52)], "cell")
    parts, which = free_parts(found, case, min_area_um2=0.0)
    assert which.tolist() == [1]
    assert 11 * 4 < parts.areas_px[0] < 13 * 4


@pytest.mark.parametrize("points", [False, True])
def test_a_detection_is_free_where_neither_middle_lies_in_the_other_box(points):
    rng = np.random.default_rng(1)
    marked = random_boxes(rng, 12)
    given = Annotations.concatenate([Annotations.from_boxes(marked, "cell"), MARKS.take(np.array([1, 2, 3]))])
    case = case_of(given)
    boxes = random_boxes(rng, 400)
    found = Annotations.from_boxes(boxes, "cell")
    if points:
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        found = Annotations.from_points(middles, "cell")
        boxes = np.concatenate([middles - 6.0, middles + 6.0], axis=1)
    free = free_detections(found, case, mpp=0.5)
    ground, _ = TargetMaps(given, SPEC, mpp=MPP).draw(whole_window(case, 0.5), objects=False)
    for k, one in enumerate(boxes):
        x, y = (one[:2] + one[2:]) / 2
        expected = ground[int(y), int(x)] == Ground.UNANNOTATED
        for other in marked:
            u, v = (other[:2] + other[2:]) / 2
            expected &= not (other[0] <= x <= other[2] and other[1] <= y <= other[3])
            expected &= not (one[0] <= u <= one[2] and one[1] <= v <= one[3])
        assert free[k] == expected, k
    assert 50 < free.sum() < 350


def test_nothing_found_and_nothing_marked():
    none = Annotations.empty(("cell",))
    some = Annotations.from_polygons([box(1, 1, 9, 9)], "cell")
    assert not len(free_parts(none, case_of(MARKS), min_area_um2=0.0)[0])
    assert not len(free_detections(none, case_of(MARKS), mpp=0.5))
    parts, which = free_parts(some, case_of(none), min_area_um2=0.0)
    assert (len(parts), which.tolist()) == (1, [0])
    assert free_detections(some, case_of(none), mpp=0.5).tolist() == [True]


def test_counts_against_dense_truth():
    """Two of three unmarked cells are found, and one label is wrong; the marked cell counts nowhere."""
    cells = [box(10, 10, 20, 20), box(40, 10, 50, 20), box(70, 10, 80, 20), box(10, 40, 20, 50)]
    truth = Annotations.from_polygons(cells, "cell")
    case = case_of(truth.take(np.array([0])), truth)
    pseudo = Annotations.from_polygons(
        [box(42, 10, 52, 20), box(70, 10, 80, 16), box(60, 60, 70, 70)], "cell"
    )
    found = agreement(pseudo, case, mpp=0.5, distance_um=3.0, pixels=True)
    assert found == Agreement(added=3, unmarked=3, found=2, pixels=260, true_pixels=140, unmarked_pixels=300)
    assert found.measures() == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "pixel_precision": 140 / 260, "pixel_recall": 140 / 300}
    )
    near = agreement(pseudo, case, mpp=0.5, distance_um=0.7, pixels=False)
    assert near is not None
    assert (near.found, near.pixels) == (0, 0)
    assert list(near.measures()) == ["precision", "recall"]
    total = Agreement.total([found, near])
    assert (total.added, total.found, total.pixels) == (6, 2, 260)
    assert (
        agreement(pseudo, dataclasses.replace(case, truth=None), mpp=0.5, distance_um=3.0, pixels=True)
        is None
    )
    assert Agreement.total([]).measures() == {"precision": None, "recall": None}
