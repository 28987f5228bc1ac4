import dataclasses
import gzip
import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations
from sparseshot_jax.data.cases import read_whole, truth_instances, whole_window
from sparseshot_jax.data.formats import FORMATS
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.labels import LabelSpec, draw_targets, label_ids, wanted
from sparseshot_jax.data.rasterize import rasterize
from sparseshot_jax.data.slides.backends import BACKENDS
from sparseshot_jax.data.slides.pyramid import write_pyramid
from sparseshot_jax.data.sources import (
    SOURCES,
    FolderSource,
    SlideSource,
    SyntheticSource,
    TfdsSource,
)
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Ground, Window

LABELS = LabelSpec()


def save_image(path, width=40, height=30, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def label_map(objects=8, width=40, height=30):
    """2 x 2 px objects in a row."""
    array = np.zeros((height, width), np.uint16)
    for k in range(objects):
        array[3:5, 4 * k : 4 * k + 2] = 10 + k
    return array


def save_label_map(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four images with eight objects each."""
    for k, stem in enumerate(("a_1", "a_2", "b_1", "c_1")):
        save_image(tmp_path / "images" / f"{stem}.png", seed=k)
        save_label_map(tmp_path / "instances" / f"{stem}.png", label_map())
    return tmp_path


def source(root, **fields):
    given = {"train": ("a_*",), "validation": ("b_*",), "test": ("c_*",), **fields}
    return FolderSource(root=str(root), **given)


def test_registered():
    assert set(SOURCES.values()) == {FolderSource, SlideSource, SyntheticSource, TfdsSource}


def test_folder_of_label_maps(folder):
    splits = source(folder, keep=0.3).load(LABELS, 0)
    assert [c.name for c in splits.train] == ["a_1", "a_2"]
    assert [c.name for c in splits.validation] == ["b_1"]
    assert [c.name for c in splits.test] == ["c_1"]
    assert [len(c.given) for c in splits.train] == [3, 3]  # ceil(0.3 * 8)
    assert len(splits.train[0].truth) == 8  # training images are measured densely too
    assert [len(c.given) for c in (*splits.validation, *splits.test)] == [8, 8]  # sparse in training alone
    case = splits.train[0]
    assert case.mpp == case.slide.mpp == 0.25
    np.testing.assert_array_equal(truth_instances(case, whole_window(case, 0.25)) > 0, label_map() > 0)
    with Image.open(folder / "images/a_1.png") as image:
        np.testing.assert_array_equal(read_whole(case, 0.25), np.asarray(image))
    assert pickle.loads(pickle.dumps(case)).name == "a_1"


def test_subsets_are_nested_and_follow_the_seed(folder):
    def boxes(keep, seed=0):
        case = source(folder, keep=keep).load(LABELS, seed).train[0]
        return {tuple(box) for box in case.given.bounds_px.tolist()}

    assert boxes(0.25) < boxes(0.5) < boxes(0.75) < boxes(1.0)
    assert boxes(0.5) == boxes(0.5)
    assert any(boxes(0.5, seed) != boxes(0.5) for seed in range(1, 4))


@pytest.mark.parametrize("root", ["gs://bucket/tnbc", "s3://bucket/tnbc"])
def test_a_folder_at_a_url_is_refused_in_words(root):
    with pytest.raises(InputError, match=rf"on a disk; got {root}. Mount.*gcsfuse.*train\.shards"):
        source(root).load(LABELS, 0)


def test_images_in_no_split_are_counted(folder):
    splits = source(folder, test=()).load(LABELS, 0)
    assert splits.test == ()
    assert splits.notes == ("1 of 4 images are in no split.",)


def test_split_file(folder):
    (folder / "split.json").write_text(json.dumps({"fit": ["a_1", "b_1"], "choose": ["a_2"], "x": ["c_1"]}))
    named = source(folder, split_file="split.json", train=("fit",), validation=("choose",), test=("x",))
    splits = named.load(LABELS, 0)
    assert [c.name for c in splits.train] == ["a_1", "b_1"]
    assert [c.name for c in splits.validation] == ["a_2"]
    with pytest.raises(InputError, match=r"matches no list.*fit, choose, x"):
        dataclasses.replace(named, test=("y",)).load(LABELS, 0)
    (folder / "split.json").write_text('{"fit": ["a_1", "a_9"]}')
    with pytest.raises(InputError, match=r"split\.json.*a_9"):
        named.load(LABELS, 0)
    (folder / "split.json").write_text("[1")
    with pytest.raises(InputError, match=r"split\.json.*JSON"):
        named.load(LABELS, 0)


def test_folder_of_points(tmp_path):
    save_image(tmp_path / "images/a.jpg")
    (tmp_path / "points").mkdir()
    points = {"detection": [[3, 4], [10, 4], [20, 9]], "epithelial": [[3, 4]]}
    (tmp_path / "points/a.json").write_text(json.dumps(points))
    plain = FolderSource(root=str(tmp_path)).load(LABELS, 0).train[0]
    assert plain.given.is_point.all()
    np.testing.assert_allclose(plain.given.xy_px, np.array(points["detection"]) + 0.5)
    classed = LabelSpec(classes=("epithelial",), unused=("detection",))
    case = FolderSource(root=str(tmp_path)).load(classed, 0).train[0]
    assert wanted(case.given, classed).sum() == 1
    with pytest.raises(InputError, match=r"a\.json.*detection \(3 objects\)"):
        FolderSource(root=str(tmp_path)).load(LabelSpec(classes=("epithelial",)), 0)


def test_folder_of_geojson_keeps_regions_when_objects_are_dropped(tmp_path):
    save_image(tmp_path / "images/a.tif")
    (tmp_path / "annotations").mkdir()
    marks = Annotations.from_polygons(
        [[[[4 * k, 2], [4 * k + 2, 2], [4 * k + 2, 4], [4 * k, 4]]] for k in range(6)]
        + [[[[0, 10], [20, 10], [20, 20], [0, 20]]]],
        ["cell"] * 6 + ["Ignore*"],
    )
    write_geojson(tmp_path / "annotations/a.geojson", marks)
    labels = LabelSpec(classes=("cell",))
    case = FolderSource(root=str(tmp_path), keep=0.5).load(labels, 0).train[0]
    assert wanted(case.given, labels).sum() == 3
    assert len(case.given) == 4


def test_a_mix_of_kinds_names_the_files(folder):
    (folder / "points").mkdir()
    (folder / "points/a_1.json").write_text("{}")
    with pytest.raises(InputError, match=r"one kind.*instances/ \(a_1\.png.*points/ \(a_1\.json"):
        source(folder).load(LABELS, 0)


def test_images_and_labels_must_match(folder):
    (folder / "instances/a_2.png").rename(folder / "instances/z.png")
    with pytest.raises(InputError, match=r"images.*without: a_2\.png"):
        source(folder).load(LABELS, 0)
    save_label_map(folder / "instances/a_2.png", label_map())
    with pytest.raises(InputError, match=r"instances.*without: z\.png"):
        source(folder).load(LABELS, 0)


def test_no_folder_no_images_no_annotations(tmp_path):
    with pytest.raises(InputError, match=r"images: no such folder"):
        source(tmp_path).load(LABELS, 0)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no images in it"):
        source(tmp_path).load(LABELS, 0)
    save_image(tmp_path / "images/a_1.png")
    with pytest.raises(InputError, match="no annotations"):
        source(tmp_path).load(LABELS, 0)
    save_image(tmp_path / "images/a_1.jpg")
    with pytest.raises(InputError, match=r"a_1\.png.*same name"):
        source(tmp_path).load(LABELS, 0)


def test_size_mismatch(folder):
    save_label_map(folder / "instances/a_1.png", label_map(width=41))
    with pytest.raises(InputError, match=r"instances/a_1\.png.*41 x 30.*a_1\.png is 40 x 30"):
        source(folder).load(LABELS, 0)


def test_a_picture_for_a_label_map(folder):
    save_image(folder / "instances/a_1.png")
    with pytest.raises(InputError, match=r"instances/a_1\.png.*label map"):
        source(folder).load(LABELS, 0)


def test_label_maps_have_one_class(folder):
    case = source(folder).load(LabelSpec(classes=("nucleus",)), 0).train[0]
    assert case.given.class_names == ("nucleus",)
    with pytest.raises(InputError, match=r"a_1\.png.*no classes.*GeoJSON"):
        source(folder).load(LabelSpec(classes=("a", "b")), 0)


def test_a_broken_image_is_named(folder):
    (folder / "images/a_1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"images/a_1\.png"):
        source(folder).load(LABELS, 0)


def test_patterns_that_match_nothing_or_twice(folder):
    with pytest.raises(InputError, match=r"data\.validation pattern 'q\*' matches no image.*a_1"):
        source(folder, validation=("q*",)).load(LABELS, 0)
    with pytest.raises(InputError, match=r"a_2\.png.*in train and in test"):
        source(folder, test=("a_2",)).load(LABELS, 0)
    with pytest.raises(InputError, match=r"data\.train.*at least one"):
        source(folder, train=()).load(LABELS, 0)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        *((kind, {field: value}) for kind in SOURCES for field, value in (("keep", 0.0), ("keep", 1.5))),
        *((kind, {"mpp": 0.0}) for kind in SOURCES),
        *(("slides", {"train_keep": value}) for value in (0.0, 1.5)),
        *(("slides", {"hold_out": value}) for value in (-0.1, 1.0)),
        ("slides", {"block_um": 0.0}),
        *(("synthetic", {field: -1}) for field in ("train_px", "measure_px", "seed")),
    ],
)
def test_a_number_out_of_range_is_found_when_the_spec_is_made(kind, bad):
    """And not when it loads: by then trials of a sweep may have trained."""
    with pytest.raises(InputError, match=f"data.{next(iter(bad))}.* got "):
        SOURCES[kind](**bad)


def test_tnbc(shared_data):
    tnbc = FolderSource(
        root=str(shared_data / "tnbc"),
        train=("01_*", "02_*", "03_*", "04_*"),
        validation=("05_*", "06_*"),
        test=("07_*", "08_*"),
        keep=0.3,
    )
    splits = tnbc.load(LABELS, 0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [23, 7, 7]
    assert sum(len(c.truth) for c in splits.train) == 1531
    for case in splits.train:
        assert len(case.given) == -(-3 * len(case.truth) // 10)
    # two data sets' worth of checks in one: outlines redraw the label map of the first test image
    case = splits.test[0]
    with Image.open(shared_data / "tnbc/instances" / f"{case.name}.png") as image:
        labels = np.asarray(image)
    drawn = truth_instances(case, whole_window(case, 0.25))
    np.testing.assert_array_equal(drawn > 0, labels > 0)


# Slides


def squares(xy, side=6):
    return [[[[x, y], [x + side, y], [x + side, y + side], [x, y + side]]] for x, y in xy]


def write_slide(path, width=600, height=400, mpp=0.5):
    def draw(x, y, w, h):
        rows, columns = np.mgrid[y : y + h, x : x + w]
        return np.stack([rows % 251, columns % 251, (rows + columns) % 251], -1).astype(np.uint8)

    write_pyramid(path, draw, width, height, mpp=mpp)


@pytest.fixture
def slide(tmp_path):
    write_slide(tmp_path / "one.tiff")
    rng = np.random.default_rng(0)
    xy = rng.uniform(10, 380, (60, 2)).round(1)
    marks = Annotations.from_polygons(squares(xy.tolist()), ["tumour"] * 50 + ["lymphocyte"] * 10)
    write_geojson(tmp_path / "one.geojson", marks)
    return tmp_path / "one.tiff"


SLIDE_LABELS = LabelSpec(classes=("tumour",), known_background=("lymphocyte",))


def test_a_slide_with_marks(slide):
    splits = SlideSource(slides=(str(slide),), hold_out=0.2).load(SLIDE_LABELS, 0)
    (case,) = splits.train
    assert splits.validation == (case,)
    assert splits.test == ()
    assert case.mpp == pytest.approx(0.5)
    assert case.truth is None
    given, held = wanted(case.given, SLIDE_LABELS), wanted(case.held_out, SLIDE_LABELS)
    assert held.all()
    assert given.sum() + len(case.held_out) == 50
    assert 5 <= len(case.held_out) <= 15
    assert case.given.of_classes(["lymphocyte"]).sum() == 10  # only objects are held out
    boxes = {tuple(b) for b in case.given.bounds_px.tolist()}
    assert not boxes & {tuple(b) for b in case.held_out.bounds_px.tolist()}
    window = Window(x_px=0, y_px=0, width=600, height=400)
    # what is held out is drawn as any unmarked object
    ground, _ = draw_targets(case.given, window, SLIDE_LABELS, mpp=0.5)
    hidden = (rasterize(case.held_out, window) > 0) & (rasterize(case.given, window) == 0)
    assert hidden.any()
    assert (ground[hidden] == Ground.UNANNOTATED).all()


def test_keep_comes_before_the_hold_out(slide):
    (case,) = SlideSource(slides=(str(slide),), keep=0.4).load(SLIDE_LABELS, 0).train
    assert wanted(case.given, SLIDE_LABELS).sum() + len(case.held_out) == 20
    (none,) = SlideSource(slides=(str(slide),), hold_out=0.0).load(SLIDE_LABELS, 0).train
    assert none.held_out is None


def test_slides_by_pattern_with_annotations_and_truth_elsewhere(tmp_path):
    (tmp_path / "slides").mkdir()
    for name in ("s1", "s2"):
        write_slide(tmp_path / f"slides/{name}.tiff")
    for folder in ("marks", "dense"):
        (tmp_path / folder).mkdir()
        for name in ("s1", "s2"):
            marks = Annotations.from_polygons(squares([[10, 10], [50, 50]][: 1 + (folder == "dense")]))
            write_geojson(tmp_path / folder / f"{name}.geojson", marks)
    packed = gzip.compress((tmp_path / "marks/s2.geojson").read_bytes())
    (tmp_path / "marks/s2.geojson.gz").write_bytes(packed)
    (tmp_path / "marks/s2.geojson").unlink()
    splits = SlideSource(
        slides=(str(tmp_path / "slides/*.tiff"),),
        annotations=str(tmp_path / "marks"),
        truth=str(tmp_path / "dense"),
    ).load(LABELS, 0)
    assert [c.name for c in splits.train] == ["s1", "s2"]
    assert [len(c.truth) for c in splits.test] == [2, 2]
    assert splits.validation == ()  # a single mark cannot be held out


def test_missing_slide_annotations_and_mpp(tmp_path, slide):
    with pytest.raises(InputError, match=r"nowhere\.svs: no such slide"):
        SlideSource(slides=(str(tmp_path / "nowhere.svs"),)).load(LABELS, 0)
    with pytest.raises(InputError, match=r"data\.slides must name at least one"):
        SlideSource().load(LABELS, 0)
    save_image(tmp_path / "plain.png")
    plain = SlideSource(slides=(str(tmp_path / "plain.png"),))
    with pytest.raises(InputError, match=r"plain\.png.*Set data\.mpp"):
        plain.load(LABELS, 0)
    with pytest.raises(InputError, match=r"no annotations.*plain\.geojson"):
        dataclasses.replace(plain, mpp=0.5).load(LABELS, 0)


def test_two_slides_of_one_name(tmp_path, slide):
    other = tmp_path / "sub"
    other.mkdir()
    write_slide(other / "one.tiff")
    with pytest.raises(InputError, match="distinct names; one"):
        SlideSource(slides=(str(slide), str(other / "one.tiff"))).load(LABELS, 0)


def test_objects_outside_are_counted_and_a_file_of_them_refused(tmp_path):
    write_slide(tmp_path / "s.tiff")
    inside, outside = [[10, 10], [100, 90], [300, 20]], [[700, 10], [50, 900]]
    path = tmp_path / "s.geojson"
    write_geojson(path, Annotations.from_polygons(squares(inside + outside), "tumour"))
    source = SlideSource(slides=(str(tmp_path / "s.tiff"),), hold_out=0.0)
    splits = source.load(LABELS, 0)
    assert any("2 of 5 objects lie outside" in note for note in splits.notes)
    assert len(splits.train[0].given) == 3
    write_geojson(path, Annotations.from_polygons(squares(outside), "tumour"))
    with pytest.raises(InputError, match=r"s\.geojson.*all 2 lie outside.*600 x 400.*micrometres"):
        source.load(LABELS, 0)


def test_no_wanted_object_in_any_file(slide):
    with pytest.raises(InputError, match="at least one marked object"):
        SlideSource(slides=(str(slide),)).load(
            LabelSpec(classes=("stroma",), unused=("tumour", "lymphocyte")), 0
        )


@pytest.mark.parametrize("name", ["asap", "imagescope", "coco", "geojson"])
def test_marks_in_any_format(tmp_path, name):
    write_slide(tmp_path / "s.tiff")
    marks = Annotations.from_polygons(squares([[10, 20], [100, 90], [300, 20]]), "tumour")
    form = FORMATS[name]
    form.write(tmp_path / f"s{form.suffixes[0]}", marks, Picture(name="s.tiff", width=600, height=400))
    splits = SlideSource(slides=(str(tmp_path / "*"),), hold_out=0.0).load(SLIDE_LABELS, 0)
    (case,) = splits.train
    np.testing.assert_allclose(case.given.bounds_px, marks.bounds_px, atol=1e-3)
    (tmp_path / "images").mkdir()
    (tmp_path / "s.tiff").rename(tmp_path / "images/s.tiff")
    (tmp_path / "annotations").mkdir()
    (tmp_path / f"s{form.suffixes[0]}").rename(tmp_path / f"annotations/s{form.suffixes[0]}")
    (case,) = FolderSource(root=str(tmp_path), mpp=0.5).load(SLIDE_LABELS, 0).train
    np.testing.assert_allclose(case.given.bounds_px, marks.bounds_px, atol=1e-3)


def test_label_maps_of_slides_lie_in_a_folder_of_their_own(tmp_path):
    write_slide(tmp_path / "s.tiff", width=40, height=30)
    save_label_map(tmp_path / "s.png", label_map())
    with pytest.raises(InputError, match="no annotations"):  # beside it, it may be any picture
        SlideSource(slides=(str(tmp_path / "s.tiff"),)).load(SLIDE_LABELS, 0)
    save_label_map(tmp_path / "maps/s.png", label_map())
    source = SlideSource(slides=(str(tmp_path / "s.tiff"),), annotations=str(tmp_path / "maps"), hold_out=0.0)
    assert len(source.load(SLIDE_LABELS, 0).train[0].given) == 8


def test_several_annotation_files_of_one_slide(slide):
    slide.with_name("one.xml").write_text("<ASAP_Annotations/>")
    with pytest.raises(InputError, match=r"one annotation file; one has one\.geojson, one\.xml"):
        SlideSource(slides=(str(slide),)).load(SLIDE_LABELS, 0)


def test_coordinates_from_the_corner_of_the_scanned_part(slide, monkeypatch):
    plain = SlideSource(slides=(str(slide),), hold_out=0.0)
    (level0,) = plain.load(SLIDE_LABELS, 0).train
    assert level0.slide.bounds is None
    moved = dataclasses.replace(plain, coords="bounds")
    np.testing.assert_array_equal(moved.load(SLIDE_LABELS, 0).train[0].given.xy_px, level0.given.xy_px)
    opened = BACKENDS["fastslide"]

    def scanned(path):
        return dataclasses.replace(opened(path), bounds=(30, 7, 500, 380))

    monkeypatch.setitem(BACKENDS, "fastslide", scanned)
    (case,) = moved.load(SLIDE_LABELS, 0).train
    np.testing.assert_allclose(case.given.xy_px, level0.given.xy_px + np.array([30, 7]))
    np.testing.assert_array_equal(plain.load(SLIDE_LABELS, 0).train[0].given.xy_px, level0.given.xy_px)


def test_many_slides_open_in_threads_in_their_order(tmp_path):
    for k in range(20):
        write_slide(tmp_path / f"{k:02}.tiff", width=64 + k, height=64)
        write_geojson(tmp_path / f"{k:02}.geojson", Annotations.from_polygons(squares([[5, 5]]), "tumour"))
    source = SlideSource(slides=(str(tmp_path / "*.tiff"),), hold_out=0.0)
    splits = source.load(SLIDE_LABELS, 0)
    assert [case.slide.width for case in splits.train] == list(range(64, 84))
    (tmp_path / "07.geojson").unlink()
    (tmp_path / "12.geojson").write_text("{")
    with pytest.raises(InputError, match=r"07\.tiff: no annotations"):  # the first in order
        source.load(SLIDE_LABELS, 0)


def test_synthetic_slides_are_drawn_once(tmp_path):
    synthetic = SyntheticSource(cache=str(tmp_path / "cache"), train_px=512, measure_px=256)
    labels = LabelSpec(classes=("tumour",))
    splits = synthetic.load(labels, 0)
    (train,) = splits.train
    assert 0 < len(train.given) < len(train.truth)
    assert (train.slide.width, splits.test[0].slide.width) == (512, 256)
    for case in (*splits.validation, *splits.test):
        assert len(case.truth) == len(case.given)
        assert case.truth.of_classes(["tumour"]).all()
    files = sorted((tmp_path / "cache").rglob("*.*"))
    times = [f.stat().st_mtime_ns for f in files]
    again = synthetic.load(LabelSpec(), 1)
    assert [f.stat().st_mtime_ns for f in sorted((tmp_path / "cache").rglob("*.*"))] == times
    assert len(again.train[0].given) == len(train.given)
    assert len(again.test[0].truth) == len(splits.test[0].truth)
    dataclasses.replace(synthetic, keep=0.5).load(labels, 0)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache.*data\.cache"):
        SyntheticSource(cache=str(tmp_path / "file/cache")).load(LABELS, 0)


def voc(boxes):
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    return f"<annotation><size><width>40</width><height>30</height></size>{rows}</annotation>"


@pytest.fixture
def voc_folder(tmp_path):
    """As Pascal VOC lays it out, with a box that has no area."""
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    for k, (stem, part) in enumerate((("i1", "train"), ("i2", "train"), ("i3", "val"))):
        save_image(tmp_path / "JPEGImages" / f"{stem}.jpg", seed=k)
        marks = [("RBC", 1, 1, 10, 10), ("WBC", 5, 5, 5, 9 + k), ("RBC", 20, 11, 30, 20)]
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc(marks))
        with (lists / f"{part}.txt").open("a") as file:
            file.write(f"{stem}\n")
    return tmp_path


VOC_LABELS = LabelSpec(classes=("RBC", "WBC"))


def test_a_pascal_voc_folder(voc_folder):
    given = {"train": ("train",), "validation": ("val",), "test": (), "split_file": "ImageSets/Main"}
    splits = source(voc_folder, keep=0.5, **given).load(VOC_LABELS, 0)
    assert [c.name for c in splits.train] == ["i1", "i2"]
    assert [c.name for c in splits.validation] == ["i3"]
    assert [len(c.given) for c in splits.train] == [1, 1]
    assert splits.validation[0].truth.bounds_px.tolist() == [[0, 0, 10, 10], [19, 10, 30, 20]]
    degenerate = [note for note in splits.notes if "1 boxes without width or height" in note]
    assert [note.split(":")[0] for note in degenerate] == ["i1.xml", "i2.xml", "i3.xml"]
    with pytest.raises(InputError, match=r"matches no list of the split file\. There are: train, val"):
        source(voc_folder, **{**given, "test": ("test",)}).load(VOC_LABELS, 0)


def test_real_bccd_as_released(shared_data):
    root = shared_data / "bccd"
    splits = FolderSource(
        root=str(root),
        train=("train",),
        validation=("val",),
        test=("test",),
        split_file="ImageSets/Main",
        mpp=0.07,
    ).load(LabelSpec(classes=("RBC", "WBC", "Platelets")), 0)
    parts = splits.train, splits.validation, splits.test
    assert [len(cases) for cases in parts] == [205, 87, 72]
    assert [sum(len(case.truth) for case in cases) for cases in parts] == [2804, 1137, 945]
    degenerate = sorted(note for note in splits.notes if "1 boxes without width or height" in note)
    assert [note.split(":")[0] for note in degenerate] == ["BloodImage_00338.xml", "BloodImage_00343.xml"]


def test_points_with_a_list_of_all_and_one_a_class(tmp_path):
    lists = {"detection": [[3, 3], [12, 8], [20, 20], [30, 9]], "a": [[3.5, 3]], "b": [[20, 20.9], [35, 25]]}
    for stem in ("a_1", "b_1"):
        save_image(tmp_path / "images" / f"{stem}.png", seed=len(stem) + ord(stem[0]))
        (tmp_path / "points").mkdir(exist_ok=True)
        (tmp_path / "points" / f"{stem}.json").write_text(json.dumps(lists))
    labels = LabelSpec(classes=("a", "b"), unknown_class=("detection",))
    splits = source(tmp_path, keep=0.4, test=()).load(labels, 0)
    truth = splits.validation[0].truth
    assert label_ids(truth, labels).tolist() == [1, 0, 2, 0, 2]
    assert len(splits.train[0].given) == 2  # 40 % of all five
    assert "2 class points without a point of 'detection' were added to these." in splits.notes
    assert any(note.startswith("4 of 10 objects are of unknown class") for note in splits.notes)


def test_real_crchisto_with_unknown_classes(shared_data):
    classes = ("epithelial", "fibroblast", "inflammatory", "others")
    labels = LabelSpec(classes=classes, unknown_class=("detection",))
    splits = FolderSource(
        root=str(shared_data / "crchisto"),
        train=("img*[1379]", "img[26]", "img[2468][26]", "img[13579][48]"),
        validation=("img[48]", "img[2468][48]", "img[13579][26]"),
        test=("img*[05]",),
        mpp=0.5,
        keep=0.3,
    ).load(labels, 0)
    cases = {part: getattr(splits, part) for part in ("train", "validation", "test")}
    assert sum(map(len, cases.values())) == 80
    for part, several in cases.items():
        numbers = [int(case.name.removeprefix("img")) for case in several]
        by_number = ["test" if n % 5 == 0 else "validation" if n % 4 == 0 else "train" for n in numbers]
        assert by_number == [part] * len(several)
    objects = [case.truth for several in cases.values() for case in several]
    # 23,254 detections and 48 class points without one; 5 lie outside their image.
    assert sum(map(len, objects)) == 23254 + 48 - 5
    assert sum(int((label_ids(one, labels) > 0).sum()) for one in objects) == 17796
    for case in splits.train:
        assert len(case.given) == math.ceil(0.3 * len(case.truth))
    kept = np.concatenate([label_ids(case.given, labels) for case in splits.train])
    assert (kept == 0).any()  # the unknown ones are thinned like all others
