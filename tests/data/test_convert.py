import json

import numpy as np
import pytest
from PIL import Image

from sparseshot_jax.data.annotations import Annotations, Kind
from sparseshot_jax.data.convert import convert
from sparseshot_jax.data.formats import FORMATS, read_annotations
from sparseshot_jax.data.formats.coco_json import read_coco_images, write_coco_images
from sparseshot_jax.data.formats.format import Picture
from sparseshot_jax.data.formats.geojson import write_geojson
from sparseshot_jax.data.formats.points_csv import read_points_csv_images
from sparseshot_jax.errors import InputError

KNOWN = Picture(name="x.png", width=60, height=40)


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def polygons(*classes):
    return Annotations.from_polygons([[square(2 + 9 * k, 3, 5)] for k in range(len(classes))], classes)


def names(annotations):
    return [annotations.class_names[k] for k in annotations.class_ids]


def save_picture(path, width=60, height=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


@pytest.fixture
def source(tmp_path):
    """Polygons of two classes, one with a hole."""
    given = Annotations.concatenate(
        [polygons("a", "b"), Annotations.from_polygons([[square(30, 20, 9), square(33, 23, 2)]], "a")]
    )
    write_geojson(tmp_path / "x.geojson", given)
    return tmp_path / "x.geojson"


def test_a_file_to_a_file_that_holds_everything(source, tmp_path):
    assert convert(source, tmp_path / "y.xml", target_format="asap") == []
    found = read_annotations(tmp_path / "y.xml")
    assert names(found) == ["a", "b", "a"]
    assert found.areas_px.tolist() == [25, 25, 77]


def test_the_format_by_the_suffix(source, tmp_path):
    assert convert(str(source), str(tmp_path / "y.geojson.gz")) == []
    with pytest.raises(
        InputError, match=r"share the suffix '\.json'; name .*one of geojson, coco, points_json"
    ):
        convert(source, tmp_path / "y.json")
    with pytest.raises(InputError, match="Did you mean 'coco'"):
        convert(source, tmp_path / "y.json", target_format="cocoa")
    with pytest.raises(InputError, match="Did you mean 'coco'"):
        convert(source, tmp_path / "y.geojson", source_format="Coco")
    with pytest.raises(InputError, match=r"y\.doc: is of no known annotation format"):
        convert(source, tmp_path / "y.doc")


def test_nothing_is_overwritten_unasked(source, tmp_path):
    target = tmp_path / "y.xml"
    target.write_text("mine")
    with pytest.raises(InputError, match=r"y\.xml: exists already"):
        convert(source, target, target_format="asap")
    assert target.read_text() == "mine"
    convert(source, target, target_format="asap", overwrite=True)
    assert len(read_annotations(target)) == 3


def test_what_has_no_suffix_of_the_format_is_never_overwritten(source, coco, tmp_path):
    slide = tmp_path / "slide.svs"
    slide.write_text("mine")
    for given in (source, coco):  # one image, and many
        with pytest.raises(InputError, match=r"slide\.svs: exists already.* COCO JSON: \.json, \.json\.gz\."):
            convert(given, slide, target_format="coco", overwrite=True)
    assert slide.read_text() == "mine"


def test_lost_kinds_and_holes_are_said(source, tmp_path):
    assert convert(source, tmp_path / "y.csv") == ["3 polygons became points."]
    np.testing.assert_array_equal(read_annotations(tmp_path / "y.csv").xy_px[0], [4.5, 5.5])
    save_picture(tmp_path / "x.png")
    assert convert(source, tmp_path / "y.xml", target_format="voc", images=tmp_path / "x.png") == [
        "3 polygons became boxes."
    ]


def test_points_that_a_format_cannot_hold_are_left_out_and_said(tmp_path):
    mixed = Annotations.concatenate([polygons("a"), Annotations.from_points([[1, 2], [3, 4]], "p")])
    write_geojson(tmp_path / "x.geojson", mixed)
    said = convert(tmp_path / "x.geojson", tmp_path / "y.json", target_format="coco")
    assert said == ["2 points were left out: COCO JSON has none."]
    assert names(read_annotations(tmp_path / "y.json")) == ["a"]
    write_geojson(tmp_path / "p.geojson", mixed.take(mixed.is_point))
    with pytest.raises(InputError, match="COCO has no points"):
        convert(tmp_path / "p.geojson", tmp_path / "z.json", target_format="coco")
    assert not (tmp_path / "z.json").exists()


def test_masks_move_outlines_and_it_is_said(source, tmp_path):
    save_picture(tmp_path / "images" / "x.png")
    given = Annotations.from_polygons([[square(30.25, 20.25, 9.5), square(33, 23, 2)]], "a")
    write_geojson(source, given)
    with pytest.raises(InputError, match="width and height must be known"):
        convert(source, tmp_path / "y.json", target_format="coco")
    said = convert(source, tmp_path / "y.json", target_format="coco", images=tmp_path / "images")
    # 9.5 x 9.5 - 4 = 86.25 becomes 10 x 10 - 4 or 9 x 9 - 4, by where the centres of pixels lie: 96.
    assert said == ["Outlines of 1 polygons moved (to whole pixels): area +11 %."]
    images = read_coco_images(tmp_path / "y.json")
    assert images["x.png"][0] == KNOWN
    assert images["x.png"][1].areas_px.tolist() == [96]


def test_lost_classes_and_hidden_objects_are_said(tmp_path):
    given = Annotations.from_polygons(
        [[square(2, 3, 5)], [square(4, 3, 6)], [square(20, 3, 6)]], ["a", "b", ""]
    )
    write_geojson(tmp_path / "x.geojson", given)
    save_picture(tmp_path / "x.png")
    said = convert(tmp_path / "x.geojson", tmp_path / "labels.tif", images=tmp_path / "x.png")
    assert "Classes of 3 objects were lost: no class, a, b became object." in said
    assert "1 objects are hidden in part or whole by later ones that overlap them." in said
    said = convert(tmp_path / "x.geojson", tmp_path / "y.mat", images=tmp_path / "x.png")
    assert "Classes of 3 objects became numbers: no class = 3, a = 1, b = 2." in said
    assert names(read_annotations(tmp_path / "y.mat")) == ["1", "2", "3"]


def test_objects_outside_the_picture_are_said_to_be_missing(tmp_path):
    given = Annotations.concatenate([polygons("1"), Annotations.from_polygons([[square(500, 3, 5)]], "1")])
    write_geojson(tmp_path / "x.geojson", given)
    save_picture(tmp_path / "x.png")
    said = convert(tmp_path / "x.geojson", tmp_path / "y.mat", images=tmp_path / "x.png")
    assert said == ["1 polygons are missing in the file."]


def test_what_the_reader_repaired_is_said(tmp_path):
    held = {"a": [[1, 2]], "b": []}
    (tmp_path / "x.json").write_text(json.dumps(held))
    (tmp_path / "x.csv").write_text("x,y\n1,2\n,3\n")
    said = convert(tmp_path / "x.csv", tmp_path / "y.geojson")
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'x.csv'}: 1 rows with coordinates that are missing")
    assert convert(tmp_path / "x.json", tmp_path / "z.csv") == []


@pytest.fixture
def coco(tmp_path):
    """Two images of two and one objects, and one without any."""
    images = {
        "train/one.png": (Picture(name="train/one.png", width=60, height=40), polygons("a", "b")),
        "train/two.tif": (Picture(name="train/two.tif", width=60, height=40), polygons("c")),
        "none.png": (Picture(name="none.png"), Annotations.empty(("a",))),
    }
    write_coco_images(tmp_path / "all.json", images)
    return tmp_path / "all.json"


def test_a_file_of_many_images_to_a_folder(coco, tmp_path):
    said = convert(coco, tmp_path / "out" / "cells", target_format="geojson")
    assert said == [f"{coco}: none.png: The file holds no object of this image that can be used."]
    folder = tmp_path / "out" / "cells"
    assert sorted(path.name for path in folder.iterdir()) == ["none.geojson", "one.geojson", "two.geojson"]
    assert names(read_annotations(folder / "one.geojson")) == ["a", "b"]
    with pytest.raises(InputError, match="exists already"):
        convert(coco, folder, target_format="geojson")
    with pytest.raises(InputError, match="cells: is a folder; name the format of its files, one of geojson"):
        convert(coco, folder)


def test_a_file_of_many_images_to_another(coco, tmp_path):
    said = convert(coco, tmp_path / "all.csv")
    assert said[1:] == [
        "3 polygons became points.",
        "1 images have no entry in the file, since they have no object.",
    ]
    assert list(read_points_csv_images(tmp_path / "all.csv")) == ["train/one.png", "train/two.tif"]
    with pytest.raises(
        InputError, match=r"holds one image, and the source has 3\. Name a folder .* coco, points_csv"
    ):
        convert(coco, tmp_path / "all.geojson")


def test_a_folder_to_a_file_of_many_images_and_back(tmp_path):
    for name, classes in [("one", "ab"), ("two", "c")]:
        (tmp_path / "in").mkdir(exist_ok=True)
        write_geojson(tmp_path / "in" / f"{name}.geojson.gz", polygons(*classes))
        save_picture(tmp_path / "images" / f"{name}.png", width=70)
    (tmp_path / "in" / "notes.doc").write_text("a")
    (tmp_path / "in" / "more.txt").write_text("a")
    said = convert(tmp_path / "in", tmp_path / "a.json", target_format="coco", images=tmp_path / "images")
    assert said == [f"{tmp_path / 'in'}: 2 files of other kinds were left out: more.txt, notes.doc."]
    images = read_coco_images(tmp_path / "a.json")
    assert {name: (picture.width, names(one)) for name, (picture, one) in images.items()} == {
        "one.png": (70, ["a", "b"]),
        "two.png": (70, ["c"]),
    }
    assert convert(tmp_path / "a.json", tmp_path / "back", target_format="geojson") == []
    again = read_annotations(tmp_path / "back" / "one.geojson")
    np.testing.assert_array_equal(again.xy_px, polygons("a", "b").xy_px)


def test_a_folder_to_a_folder(tmp_path):
    for name in ("one", "two"):
        write_geojson(tmp_path / f"{name}.geojson", polygons("a"))
    convert(tmp_path, tmp_path / "xml", target_format="imagescope")
    assert sorted(path.name for path in (tmp_path / "xml").iterdir()) == ["one.xml", "two.xml"]


def test_folders_that_do_not_fit(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="in: must hold annotation files; it holds no file"):
        convert(tmp_path / "in", tmp_path / "out", target_format="geojson")
    write_geojson(tmp_path / "in" / "a.geojson", polygons("a"))
    (tmp_path / "in" / "a.csv").write_text("1,2\n")
    with pytest.raises(
        InputError, match=r"one format; it holds geojson, points_csv\. Name the source's format"
    ):
        convert(tmp_path / "in", tmp_path / "out", target_format="geojson")
    convert(tmp_path / "in", tmp_path / "out", source_format="points_csv", target_format="geojson")
    assert read_annotations(tmp_path / "out" / "a.geojson").kind.tolist() == [Kind.POINT]
    with pytest.raises(InputError, match=r"of the format coco; it holds a\.csv, a\.geojson"):
        convert(tmp_path / "in", tmp_path / "out", source_format="coco", target_format="geojson")
    write_geojson(tmp_path / "in" / "a.geojson.gz", polygons("a"))
    with pytest.raises(InputError, match=r"holds the image 'a', which .*a\.geojson holds already"):
        convert(tmp_path / "in", tmp_path / "b", source_format="geojson", target_format="geojson")


def test_pictures_that_do_not_fit(coco, source, tmp_path):
    save_picture(tmp_path / "images" / "one.png", width=61)
    with pytest.raises(
        InputError, match=r"one\.png: must be 60 x 40, as the annotations of train/one\.png say; it is 61"
    ):
        convert(coco, tmp_path / "out", target_format="voc", images=tmp_path / "images")
    with pytest.raises(InputError, match=r"holds no picture named 'x'; it has one\.png"):
        convert(source, tmp_path / "y.png", images=tmp_path / "images")
    with pytest.raises(InputError, match="no such picture or folder"):
        convert(source, tmp_path / "y.png", images=tmp_path / "nothing")
    save_picture(tmp_path / "one.png")
    with pytest.raises(InputError, match="is one picture, and the source has more images"):
        convert(coco, tmp_path / "out", target_format="voc", images=tmp_path / "one.png")


def test_names_in_files_lead_nowhere_else(tmp_path):
    images = {name: (Picture(name=name), polygons("a")) for name in ("../../up.png", "C:\\a\\b:c?.png")}
    write_coco_images(tmp_path / "a.json", images)
    convert(tmp_path / "a.json", tmp_path / "out", target_format="geojson")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b_c_.geojson", "up.geojson"]
    for bad in ("..", "/", ".png"):
        write_coco_images(tmp_path / "a.json", {bad: (Picture(name=bad), polygons("a"))})
        with pytest.raises(InputError, match="no file can be named after the image"):
            convert(tmp_path / "a.json", tmp_path / "out", target_format="geojson", overwrite=True)
    images = {name: (Picture(name=name), polygons("a")) for name in ("a/1.png", "b/1.png")}
    write_coco_images(tmp_path / "a.json", images)
    with pytest.raises(InputError, match=r"'a/1\.png' and 'b/1\.png' would both be written here"):
        convert(tmp_path / "a.json", tmp_path / "new", target_format="geojson")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_to_every_other(tmp_path, name):
    """Nothing but a picture's size is needed, and whatever is lost is said."""
    given = Annotations.from_boxes([[2, 3, 9, 8], [20, 3, 30, 12]], ["1", "2"])
    one = FORMATS[name]
    path = tmp_path / f"x{one.suffixes[0]}"
    assert one.write is not None
    one.write(path, given, KNOWN)
    save_picture(tmp_path / "images" / "x.jpg")
    for other, target in FORMATS.items():
        before = read_annotations(path, name)
        to = tmp_path / f"to_{other}{target.suffixes[0]}"
        arguments = {"source_format": name, "target_format": other, "images": tmp_path / "images"}
        if before.is_point.all() and "points" not in target.keeps.split(";")[0]:
            with pytest.raises(InputError, match="points"):
                convert(path, to, **arguments)
            continue
        said = convert(path, to, **arguments)
        after = read_annotations(to, other)
        same = before.kind.tolist() == after.kind.tolist() and names(before) == names(after)
        assert same == (not any("became" in text for text in said))
