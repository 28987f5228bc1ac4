"""Each mistake that a user can make is put into a clean synthetic case, and must be named."""

import dataclasses

import numpy as np
import pytest
import shapely
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.checks.contrast import contrasts, sample
from sparseshot_jax.data.checks.findings import Severity, totals
from sparseshot_jax.data.checks.shapes import overlaps
from sparseshot_jax.data.checks.source import unchecked
from sparseshot_jax.data.checks.validate import (
    Subject,
    ground_map,
    ground_shares,
    subjects_of,
    validate_case,
    validate_splits,
    validate_subjects,
)
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.formats.label_map import read_label_map
from sparseshot_jax.data.labels import LabelSpec, Role
from sparseshot_jax.data.slides.slide import ArraySlide, open_slide
from sparseshot_jax.data.sources.folder import FolderSource
from sparseshot_jax.data.sources.slides import SlideSource
from sparseshot_jax.data.synthetic.scene import Scene, SyntheticSlide
from sparseshot_jax.types import Ground

WIDTH, HEIGHT, MPP = 900, 640, 0.5
LABELS = LabelSpec(classes=("tumour",), known_background=("lymphocyte", "fibroblast"))


@pytest.fixture(scope="module")
def scene():
    """Pixels, the marked tumour nuclei, and all nuclei."""
    drawn = Scene(SyntheticSlide(seed=1, width=WIDTH, height=HEIGHT, mpp=MPP))
    truth = drawn.truth()
    return drawn.draw(0, 0, WIDTH, HEIGHT), truth.take(drawn.given()), truth


@pytest.fixture(scope="module")
def check(scene):
    def run(annotations, *, labels=LABELS, mpp=MPP, image=scene[0], **fields):
        subject = Subject(
            name="slide",
            slide=ArraySlide(image, mpp),
            mpp=mpp,
            annotations=annotations,
            labels=labels,
            **fields,
        )
        return validate_case(subject)

    return run


def kinds(findings):
    return [one.kind for one in findings.findings]


def the(findings, kind):
    (one,) = (one for one in findings.findings if one.kind == kind)
    return one


def exchanged(annotations):
    return dataclasses.replace(annotations, xy_px=annotations.xy_px[:, ::-1].copy())


def square(x, y, side=20.0):
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side]]]


def test_clean_marks_raise_nothing(scene, check):
    _, given, truth = scene
    assert check(given).findings == ()
    assert check(Annotations.from_points(given.centroids_px, "tumour")).findings == ()
    dense = check(truth)
    assert dense.worst in (None, Severity.NOTE)
    rows = {row.name: (row.role, row.polygons, row.total) for row in dense.classes}
    counts = np.bincount(truth.class_ids)
    assert rows == {
        name: (Role.OBJECT if name == "tumour" else Role.BACKGROUND, n, n)
        for name, n in zip(truth.class_names, counts.tolist())
    }


def test_shares_of_ground_are_those_that_training_draws():
    marks = Annotations.from_polygons(
        [square(0, 0, 50), square(10, 10, 10), square(60, 0, 20), square(90, 90, 10)],
        ["Exhaustive", "cell", "Ignore*", "other"],
    )
    subject = Subject(
        name="a",
        slide=ArraySlide(np.full((100, 200, 3), 200, np.uint8), 1.0),
        mpp=1.0,
        annotations=marks,
        labels=LabelSpec(classes=("cell",), known_background=("other",)),
    )
    assert ground_shares(subject) == pytest.approx(
        {
            Ground.UNANNOTATED: (20_000 - 2500 - 400 - 100) / 20_000,
            Ground.ANNOTATED: 100 / 20_000,
            Ground.BACKGROUND: (2500 - 100 + 100) / 20_000,
            Ground.IGNORED: 400 / 20_000,
        }
    )
    ground, scale = ground_map(subject, 100)
    assert scale == 2.0
    assert ground.shape == (50, 100)
    assert ground[7, 7] == Ground.ANNOTATED
    assert ground[7, 35] == Ground.IGNORED


def test_an_unknown_class_is_an_error_with_the_nearest_name(scene, check):
    _, given, _ = scene
    misspelt = dataclasses.replace(given, class_names=tuple(n.capitalize() for n in given.class_names))
    found = check(misspelt)
    one = the(found, "unknown-class")
    assert one.severity == Severity.ERROR
    assert f"Tumour ({len(given)} objects; did you mean tumour?)" in one.what
    assert "labels.known_background" in one.remedy
    assert found.classes[0].role == Role.UNKNOWN


def test_an_empty_case(scene, check):
    _, _, truth = scene
    assert kinds(check(Annotations.empty())) == ["empty"]
    others = truth.take(truth.of_classes(["lymphocyte"]))
    assert f"{len(others)} others" in the(check(others), "empty").what


def test_duplicates_are_counted_once_and_are_no_overlaps(scene, check):
    _, given, _ = scene
    twice = given.take(np.array([3, 5, 5])).transformed(dx=0.2)
    found = check(Annotations.concatenate([given, twice]))
    one = the(found, "duplicate")
    assert one.count == 3
    n = len(given)
    assert {place.index for place in one.places} == {n, n + 1, n + 2}
    assert one.places[0].x_px == pytest.approx(given.centroids_px[3, 0] + 0.2)
    assert "overlap" not in kinds(found)
    assert "different classes" not in one.what


def test_points_within_a_pixel_are_duplicates(scene, check):
    _, given, _ = scene
    xy = given.centroids_px
    points = Annotations.from_points(
        np.concatenate([xy, xy[:2] + np.array([0.7, 0]), xy[2:3] + np.array([1.5, 0])]), "tumour"
    )
    assert the(check(points), "duplicate").count == 2


def test_a_duplicate_of_another_class_says_so(scene, check):
    _, given, _ = scene
    other = Annotations.from_points(given.centroids_px[:1], "fibroblast")
    points = Annotations.from_points(given.centroids_px, "tumour")
    assert "different classes" in the(check(Annotations.concatenate([points, other])), "duplicate").what


def test_overlaps_name_the_worst_first(scene, check):
    _, given, _ = scene
    shapes = given.take(np.array([0, 1]))
    width = shapes.bounds_px[:, 2] - shapes.bounds_px[:, 0]
    moved = Annotations.concatenate(
        [shapes.take(np.array([k])).transformed(dx=share * width[k]) for k, share in enumerate((0.4, 0.2))]
    )
    one = the(check(Annotations.concatenate([given, moved])), "overlap")
    assert one.severity == Severity.WARNING
    assert one.count == 2
    assert [place.index for place in one.places] == [len(given) + 1, len(given)]


def test_intersection_over_union_is_exact():
    # 20 x 20 squares 5 apart: 300 of 500; a ring with a hole meets what lies in the hole nowhere.
    hole = [*square(100, 100, 30), *square(105, 105, 20)]
    marks = Annotations.from_polygons([square(0, 0), square(5, 0), hole, square(105, 105)])
    pairs, iou = overlaps(marks)
    assert pairs.tolist() == [[0, 1]]
    assert iou.tolist() == pytest.approx([0.6])


def test_self_crossing_outlines_are_no_obstacle():
    bow = [[[0, 0], [20, 20], [20, 0], [0, 20]]]
    pairs, iou = overlaps(Annotations.from_polygons([bow, square(0, 0)]))
    assert pairs.tolist() == [[0, 1]]
    assert iou.tolist() == pytest.approx([0.5])
    assert not shapely.is_valid(shapely.Polygon(bow[0]))


def test_overlapping_regions_are_in_order(scene, check):
    _, given, _ = scene
    box = given.bounds_px
    region = [[[box[:, 0].min(), 10], [box[:, 2].max(), 10], [box[:, 2].max(), 400], [10, 400]]]
    regions = Annotations.from_polygons([region, region], ["Exhaustive", "Exhaustive"])
    assert kinds(check(Annotations.concatenate([given, regions]))) == []


def test_what_the_reader_repaired_is_told(scene, check):
    _, given, _ = scene
    found = check(dataclasses.replace(given, notes=("2 of 60 polygons crossed themselves.",)))
    assert kinds(found) == ["reader"]
    assert found.worst == Severity.NOTE


def test_objects_outside_the_slide(scene, check):
    _, given, _ = scene
    away = given.take(np.array([4, 7])).transformed(dx=2.0 * WIDTH)
    one = the(check(Annotations.concatenate([given, away])), "outside")
    assert (one.severity, one.count) == (Severity.WARNING, 2)
    assert one.places[0].index == len(given)
    gone = the(check(given.transformed(dy=-2.0 * HEIGHT)), "outside")
    assert (gone.severity, gone.count) == (Severity.ERROR, len(given))


def test_objects_on_glass(check):
    drawn = Scene(SyntheticSlide(seed=3, width=1000, height=1000, mpp=MPP))
    image, given = drawn.draw(0, 0, 1000, 1000), drawn.truth().take(drawn.given())
    assert "glass" not in kinds(check(given, image=image))
    image[:200, :200] = 244
    stray = Annotations.from_points([[90.0, 60.0], [95.0, 130.0]], "tumour")
    some = given.take((given.centroids_px > 260).all(axis=1))
    one = the(check(Annotations.concatenate([some, stray]), image=image), "glass")
    assert one.count == 2
    assert (one.places[0].x_px, one.places[0].y_px) == (90.0, 60.0)


@pytest.mark.parametrize(
    ("mpp", "words"),
    [
        (4.0, ("8x too large", "data.mpp 4 meant to be")),
        (0.1, ("too small", "data.mpp 0.1 meant to be")),
    ],
)
def test_a_wrong_mpp(scene, check, mpp, words):
    _, given, _ = scene
    one = the(check(given, mpp=mpp), "mpp")
    assert one.severity == Severity.WARNING
    for word in words[1:]:
        assert word in one.what
    suggested = float(one.what.rsplit(" ", 1)[1].rstrip("?"))
    assert 4 <= np.median(np.sqrt(given.areas_px / np.pi)) * 2 * suggested <= 25


def test_the_suggested_mpp_is_the_nearest_usual_one(check):
    boxes = [[x, y, x + 90.0, y + 90.0] for x in (0, 200, 400, 600) for y in (0, 200, 400)]
    one = the(check(Annotations.from_boxes(boxes, "tumour"), mpp=0.5), "mpp")
    # 90 px at 0.5 are 45 um; at 0.25 they are 22.5
    assert "looks 2x too large: was data.mpp 0.5 meant to be 0.25?" in one.what


@pytest.mark.parametrize(("shift", "points"), [((30.0, -14.0), False), ((-18.0, 50.0), True)])
def test_an_offset_is_found_and_measured(scene, check, shift, points):
    _, given, truth = scene
    marks = Annotations.from_points(given.centroids_px, "tumour") if points else truth
    one = the(check(marks.transformed(dx=shift[0], dy=shift[1])), "offset")
    assert one.severity == Severity.ERROR
    x, y = (float(word) for word in one.what.split("(")[1].split(")")[0].split(","))
    # Discs of fixed size on nuclei of many sizes fit best within a few pixels.
    assert (x, y) == pytest.approx((-shift[0], -shift[1]), abs=5.0 if points else 1.0)


def test_a_bounds_offset_is_known_by_name(scene, check):
    _, _, truth = scene
    bounds = (120.0, 90.0)
    inside = truth.take((truth.bounds_px[:, :2] > bounds).all(axis=1))
    one = the(check(inside.transformed(dx=-120.0, dy=-90.0), bounds_px=bounds), "offset")
    assert "--coords bounds" in one.remedy
    assert "(120, 90)" in one.what
    kept = truth.take((truth.bounds_px[:, 2:] < np.array([WIDTH, HEIGHT]) - bounds).all(axis=1))
    one = the(check(kept.transformed(dx=120.0, dy=90.0), bounds_px=bounds), "offset")
    assert "--coords level0" in one.remedy
    assert check(truth, bounds_px=bounds).worst in (None, Severity.NOTE)


@pytest.mark.parametrize("points", [False, True])
def test_exchanged_coordinates(scene, check, points):
    _, given, _ = scene
    marks = Annotations.from_points(given.centroids_px, "tumour") if points else given
    assert the(check(exchanged(marks)), "exchanged").severity == Severity.ERROR


@pytest.mark.parametrize("points", [False, True])
def test_micrometre_coordinates(scene, check, points):
    _, given, _ = scene
    marks = Annotations.from_points(given.centroids_px, "tumour") if points else given
    found = check(marks.transformed(scale=MPP))
    assert "450 x 320" in the(found, "micrometres").what
    assert "mpp" not in kinds(found)  # the same mistake is told once


@pytest.mark.parametrize("shift", [(1.0, 0.0), (-1.0, 2.0)])
def test_a_shift_by_a_pixel_or_two(scene, check, shift):
    _, _, truth = scene
    found = check(truth.transformed(dx=shift[0], dy=shift[1]))
    one = the(found, "pixel-shift")
    x, y = (float(word) for word in one.what.split("(")[1].split(")")[0].split(","))
    assert (x, y) == pytest.approx((-shift[0], -shift[1]), abs=0.3)


def test_half_a_pixel_is_let_pass(scene, check):
    _, _, truth = scene
    assert check(truth.transformed(dx=0.4, dy=0.2)).worst in (None, Severity.NOTE)


def test_from_few_objects_nothing_is_concluded(scene, check):
    _, given, _ = scene
    assert kinds(check(given.take(np.arange(9)).transformed(dx=25.0))) == []


def test_contrast_is_that_of_single_objects(scene):
    image, given, _ = scene
    found = contrasts(ArraySlide(image, MPP), given, sample(given, 20), reach=4, scale=1.0, band_px=2)
    assert found.at.shape[1:] == (9, 9)
    # Moving the object by (dx, dy) is looking at the shift (dx, dy).
    moved = given.transformed(dx=-3.0, dy=2.0)
    again = contrasts(ArraySlide(image, MPP), moved, sample(moved, 20), reach=4, scale=1.0, band_px=2)
    both = min(len(found.here), len(again.here))
    assert both > 10
    assert again.at[:, 4 - 2, 4 + 3].mean() == pytest.approx(found.here.mean(), rel=1e-6)


def case(name, image, marks, labels=LABELS, **fields):
    given = {"truth": marks, "held_out": None, **fields}
    return Case(name=name, slide=ArraySlide(image, MPP), mpp=MPP, given=marks, labels=labels, **given)


def test_one_image_in_two_splits_is_an_error_on_both_sides(scene):
    image, none = scene[0], Annotations.empty()
    splits = Splits(
        train=(case("a", image, none), case("b", image[:, ::-1].copy(), none)),
        validation=(),
        test=(case("c", image, none),),
    )
    found = {one.name: one for one in validate_splits(splits, LABELS)}
    assert list(found) == ["train/a", "train/b", "test/c"]
    assert kinds(found["train/b"]) == ["empty"]
    assert "test/c" in the(found["train/a"], "same-image").what
    assert the(found["test/c"], "same-image").severity == Severity.ERROR
    assert kinds(found["test/c"])[0] == "same-image"  # the worst first
    twice = Splits(train=(case("a", image, none), case("b", image, none)), validation=(), test=())
    assert the(validate_splits(twice, LABELS)[0], "same-image").severity == Severity.WARNING


def test_a_slide_that_trains_and_is_measured_on_held_out_marks_is_one_image(scene, tmp_path):
    image, given, _ = scene
    given = given.take(np.arange(3))
    Image.fromarray(image).save(tmp_path / "a.png")
    one = dataclasses.replace(case("a", image, given), slide=open_slide(tmp_path / "a.png", mpp=MPP))
    splits = Splits(train=(one,), validation=(one,), test=())
    assert [found.name for found in validate_splits(splits, LABELS)] == ["train/a"]


def test_totals_add_up(scene, check):
    _, given, truth = scene
    few, fewer = truth.take(truth.of_classes(["fibroblast"])).take(np.arange(4)), given.take(np.arange(3))
    both = totals([check(few), check(fewer), check(few)])
    assert {row.name: row.total for row in both.classes} == {"fibroblast": 8, "tumour": 3}
    assert sum(both.ground.values()) == pytest.approx(1.0)
    assert both.ground[Ground.BACKGROUND] == pytest.approx(check(few).ground[Ground.BACKGROUND] * 2 / 3)
    assert both.findings == ()
    assert totals([]).classes == ()


def test_a_folder_is_checked_as_it_lies_on_disk(scene, tmp_path):
    image, given, _ = scene
    marks = Annotations.concatenate(
        [
            given.take(np.arange(5)),
            given.take(np.arange(2)).transformed(dx=2000.0),
            Annotations.from_points([[50.0, 60.0]], "tumor"),
        ]
    )
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    write_geojson(tmp_path / "annotations" / "a.geojson", marks)
    source = FolderSource(root=str(tmp_path), mpp=MPP, keep=0.5)
    (subject,) = unchecked(source, LABELS, 0)
    assert (subject.name, len(subject.annotations)) == ("train/a", 8)
    (found,) = validate_subjects([subject])
    assert kinds(found) == ["unknown-class", "outside"]
    assert the(found, "outside").count == 2


def test_slides_are_checked_as_they_lie_on_disk(scene, tmp_path):
    image, given, _ = scene
    Image.fromarray(image).save(tmp_path / "a.png")
    write_geojson(tmp_path / "a.geojson", given)
    source = SlideSource(slides=(str(tmp_path / "a.png"),), mpp=MPP, keep=0.5, hold_out=0.5)
    (subject,) = unchecked(source, LABELS, 0)
    assert len(subject.annotations) == len(given)


def test_the_corner_of_the_scanned_part_comes_from_the_file(scene, tmp_path):
    image, given, _ = scene
    Image.fromarray(image).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=MPP)
    plain = dataclasses.replace(case("a", image, given), slide=slide)
    assert subjects_of(Splits(train=(plain,), validation=(), test=()), LABELS)[0].bounds_px == (0.0, 0.0)
    slide.bounds = (120, 90, 300, 200)
    assert subjects_of(Splits(train=(plain,), validation=(), test=()), LABELS)[0].bounds_px == (120.0, 90.0)


def test_a_crop_of_tissue_has_no_glass_whatever_its_file_says_of_mpp(scene):
    # 1100 px wide: above 500 um at the 0.5 that is assumed of a file that says nothing, below at 0.25.
    image = np.full((1100, 1100, 3), 248, np.uint8)
    image[300:940, 100:1000] = scene[0]
    points = Annotations.from_points([[20.0, 20.0]], "tumour")
    subject = Subject(name="a", slide=ArraySlide(image), mpp=0.25, annotations=points, labels=LABELS)
    assert kinds(validate_case(subject)) == []


def test_real_images(shared_data):
    for root, stem in (("tnbc", "01_2"), ("kumar", "TCGA-A7-A13E-01Z-00-DX1")):
        (path,) = (shared_data / root / "images").glob(f"{stem}.*")
        marks = read_label_map(shared_data / root / "instances" / f"{stem}.png", "tumour")
        subject = Subject(name=stem, slide=open_slide(path), mpp=0.25, annotations=marks, labels=LABELS)
        assert validate_case(subject).findings == ()
        moved = dataclasses.replace(subject, annotations=marks.transformed(dx=1.0, dy=1.0))
        assert kinds(validate_case(moved)) == ["pixel-shift"]
